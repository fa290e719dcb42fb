package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/internal/testcluster"
)

const sessionManifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: "fake/web:1"}]
`

// useContext makes command lines of the test talk to the cluster.
func useContext(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "config.yaml")
	t.Setenv("HOLDFAST_CONFIG", config)
	t.Setenv("HOLDFAST_CONTEXT", "")
	file := &client.ConfigFile{}
	file.Set(c.Context())
	file.Current = c.Context().Name
	if err := file.Save(config); err != nil {
		t.Fatal(err)
	}
}

// TestSession is a person's half hour with a cluster: every verb against real
// peers, the good and the bad. Only containers are pretended.
func TestSession(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 2})
	dir := t.TempDir()
	useContext(t, c)
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	web := write("web.yaml", sessionManifest)
	wrong := write("wrong.yaml", strings.NewReplacer("replicas: 2", "replica: two", "name: web}", "name: Web}").Replace(sessionManifest))
	missing := write("missing.yaml", strings.NewReplacer("name: web}", "name: miss}", "fake/web:1", "fake/missing:1").Replace(sessionManifest))
	reader := write("reader.yaml", `apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "fake/reader:1", stdin: true, stdinOnce: true, command: [sh, -c, "cat; exit 6"]}]
`)
	pod := ""

	for _, step := range []struct {
		name  string
		line  string // POD stands for a pod of web
		stdin string
		code  int
		want  []string // regular expressions, all in what is printed
		soon  bool     // it may take a moment until all of it is there
	}{
		{name: "an empty cluster", line: "get pods", want: []string{"No objects found"}},
		{
			name: "all faults with their lines, before anything is sent", line: "apply -f " + wrong, code: exitRefused,
			want: []string{`wrong.yaml:3: .*metadata.name`, `wrong.yaml:5: .*did you mean spec.replicas`, "nothing was changed"},
		},
		{name: "nothing was", line: "get deployments", want: []string{"No objects found"}},
		{name: "a dry run", line: "apply --dry-run=server -f " + web, want: []string{`deployment.apps/web created`}},
		{name: "changes nothing", line: "get deployments", want: []string{"No objects found"}},
		{
			name: "apply waits and tells", line: "apply -f " + web,
			want: []string{`deployment.apps/web created`, `pod/web-\S+: scheduled to n\d`, `deployment.apps/web: 2/2 ready`, `done in`},
		},
		{name: "again", line: "apply -f " + web, want: []string{`deployment.apps/web unchanged`}},
		{name: "from standard input", line: "apply -f -", stdin: sessionManifest, want: []string{`deployment.apps/web unchanged`}},
		{name: "table", line: "get deploy", want: []string{`NAME +READY +UP-TO-DATE +AVAILABLE +AGE\nweb +2/2 +2 +2`}},
		{name: "wide", line: "get po -o wide -l app=web", want: []string{`web-\S+ +1/1 +Running +0 +\S+ +10\.\S+ +n\d`}},
		{name: "names", line: "get pods,deployments -o name", want: []string{`pod/web-`, `deployment.apps/web`}},
		{name: "yaml", line: "get deployment web -o yaml", want: []string{`kind: Deployment`, `fake/web:1`, `resourceVersion: "\d+"`}},
		{name: "local read", line: "get pods --consistency local", want: []string{`web-`}},
		{name: "one peer", line: "get pods --peer " + c.Peers[1].Address + ":7443", want: []string{`web-`}},
		{name: "a name that is not there", line: "get pod nope", code: exitNotFound, want: []string{`nope not found`}},
		{name: "a kind that is not there", line: "get podz", code: exitUsage, want: []string{`did you mean pods`}},
		{name: "a kind that is not there yet", line: "get endpoints", code: exitUsage, want: []string{`not supported yet`}},
		{name: "describe", line: "describe pod POD", soon: true, want: []string{`Name: +web-`, `Controlled By: +ReplicaSet/web-`, `Started container web`}},
		{name: "describe by label", line: "describe pods -l app=web", want: []string{`(?s)Name: +web-.*Name: +web-`}},
		{name: "describe by label, none", line: "describe pods -l app=nope", want: []string{`^No objects found in namespace default`}},
		{name: "events", line: "get events", soon: true, want: []string{`Scheduled`, `ScalingReplicaSet`, `Started`}},
		{name: "logs", line: "logs POD", want: []string{`\S`}},
		{name: "logs of all", line: "logs deploy/web --tail 1", want: []string{`(?m)^\[web-`}},
		{name: "logs of nothing", line: "logs nope", code: exitNotFound, want: []string{`nope`}},
		{name: "exec", line: "exec POD -- echo hello", want: []string{`^hello\n$`}},
		{name: "exec in a workload", line: "exec deploy/web -- echo hello", want: []string{`^hello\n$`}},
		{name: "exec passes the exit code", line: "exec POD -- sh -c exit\u00a07", code: 7},
		{name: "exec passes stdin", line: "exec -i POD -- cat", stdin: "to and fro\n", want: []string{`^to and fro\n$`}},
		{name: "logs by label", line: "logs -l app=web --limit-bytes 3", want: []string{`(?m)^\[web-\S+\] fak\[?`}},
		{name: "logs of all containers", line: "logs POD --all-containers", want: []string{`(?m)^\[web-\S+ web\] fake/web:1 started`}},
		{name: "logs without prefix", line: "logs deploy/web --prefix=false --tail 1", want: []string{`(?m)^(alive|fake)`}},
		{name: "logs since the future", line: "logs POD --since-time 2096-01-01T00:00:00Z", want: []string{`^$`}},
		{name: "logs of both", line: "logs POD -l app=web", code: exitUsage, want: []string{`do not go together`}},
		{name: "logs since both", line: "logs POD --since 1m --since-time 2026-01-01T00:00:00Z", code: exitUsage, want: []string{`do not go together`}},
		{name: "too many to follow", line: "logs -f deploy/web --max-log-requests 1", code: exitRefused, want: []string{`2 logs to follow are more than --max-log-requests 1`}},
		{name: "attach where there is no stdin", line: "attach -i POD", stdin: "x", code: exitRefused, want: []string{`has no stdin that is open`}},
		{name: "run something that reads", line: "apply -f " + reader, want: []string{`pod/reader created`}},
		{name: "attach passes stdin and the exit code", line: "attach -i reader", stdin: "to and fro\n", soon: true, code: 6, want: []string{`(?m)^to and fro$`}},
		{name: "attach to what has ended", line: "attach reader", soon: true, code: exitRefused, want: []string{`it is not running, it is exited`}},
		{name: "delete it", line: "delete pod reader", want: []string{`pod/reader gone`}},
		{name: "port-forward of nothing", line: "port-forward nope 80", code: exitNotFound, want: []string{`nope not found`}},
		{name: "port-forward of no port", line: "port-forward POD 80x:1", code: exitUsage, want: []string{`"80x" is no port`}},
		{name: "port-forward of an unknown name", line: "port-forward deploy/web 8080:http", code: exitNotFound, want: []string{`has no port named "http"`}},
		{name: "copy where there is no tar", line: "cp " + web + " POD:/tmp/", code: exitRefused, want: []string{`its image has no tar, which cp needs`, `holdfast exec -i web-`}},
		{name: "copy nothing", line: "cp " + filepath.Join(dir, "none") + " POD:/tmp/", code: exitNotFound, want: []string{`no such file`}},
		{name: "copy between pods", line: "cp POD:/a POD:/b", code: exitUsage, want: []string{`both are in pods`}},
		{name: "top nodes", line: "top nodes", soon: true, want: []string{`NAME +CPU +MEMORY +AGE +CPU% +MEMORY%\nn1 +\d+m +\d+\w+ +\d+s +\d+% +\d+%\nn2 `}},
		{name: "top pods", line: "top pods -l app=web", soon: true, want: []string{`NAME +CPU +MEMORY +AGE +NODE\nweb-\S+ +1m +2Mi +\d+s +n\d\nweb-`}},
		{name: "top containers", line: "top pods POD --containers --no-headers", soon: true, want: []string{`^web-\S+ +web +1m +2Mi `}},
		{name: "top as JSON", line: "top pods -A -o json", want: []string{`"cpuNanocores"`, `"servedBy"`}},
		{name: "top of nothing", line: "top node n9", code: exitNotFound, want: []string{`n9 not found`}},
		{name: "status", line: "cluster status", want: []string{`Leader +p\d, term \d`, `p3 +\S+ +(leader|voter) +alive`, `n2 +\S+ +alive`}},
		{name: "token", line: "token create --role node", want: []string{`^holdfast1\.\S+\n$`}},
		{name: "remove a peer that is not there", line: "peer remove p9", code: exitNotFound, want: []string{`p9`}},
		{name: "all, unasked", line: "delete pods --all", code: exitUsage, want: []string{`--yes`}},
		{name: "still there", line: "get deploy web", want: []string{`2/2`}},
		{
			name: "waiting has an end, and says what for", line: "apply --timeout 2s -f " + missing, code: exitTimeout,
			want: []string{`deployment.apps/miss created`, `not there after 2.0 s`, `pod/miss-\S+: .*Image`, `the change goes on`},
		},
		{
			name: "delete waits for what was owned", line: "delete -f " + web,
			want: []string{`deployment.apps/web deleted`, `pod/web-\S+ gone`, `all gone in`},
		},
		{name: "delete what is gone", line: "delete deployment web", code: exitNotFound, want: []string{`web not found`}},
		{name: "delete by name", line: "delete deployment/miss", want: []string{`deployment.apps/miss deleted`}},
		{name: "nothing left", line: "get all", want: []string{`^NAME +TYPE [^\n]*\nservice/kubernetes [^\n]*\n$`}},
	} {
		if strings.Contains(step.line, "POD") && pod == "" {
			var out strings.Builder
			app := newApp()
			app.stdout, app.stderr = &out, &out
			app.run(t.Context(), []string{"get", "pods", "-o", "name"})
			first, _, _ := strings.Cut(out.String(), "\n")
			pod = strings.TrimPrefix(first, "pod/")
		}
		var args []string
		for _, arg := range strings.Fields(strings.ReplaceAll(step.line, "\u00a0", "_")) {
			args = append(args, strings.ReplaceAll(strings.ReplaceAll(arg, "_", " "), "POD", pod))
		}
		for deadline := time.Now().Add(testcluster.Patience); ; time.Sleep(20 * time.Millisecond) {
			var out strings.Builder
			app := newApp()
			app.stdin, app.stdout, app.stderr = strings.NewReader(step.stdin), &out, &out
			code := app.run(t.Context(), args)
			var faults []string
			if code != step.code {
				faults = append(faults, fmt.Sprintf("exit code %d, want %d", code, step.code))
			}
			for _, want := range step.want {
				if !regexp.MustCompile(want).MatchString(out.String()) {
					faults = append(faults, fmt.Sprintf("%q is not in it", want))
				}
			}
			if len(faults) == 0 {
				break
			}
			if !step.soon || time.Now().After(deadline) {
				t.Errorf("%s: holdfast %s printed\n%s%s", step.name, step.line, out.String(), strings.Join(faults, "; "))
				break
			}
		}
	}

	// A peer's death is no business of who types.
	c.Peers[1].Stop()
	for range 3 {
		var out strings.Builder
		app := newApp()
		app.stdout, app.stderr = &out, &out
		if code := app.run(t.Context(), []string{"get", "nodes", "-o", "name"}); code != exitOK || out.String() != "node/n1\nnode/n2\n" {
			t.Errorf("with a dead peer: exit code %d\n%s", code, out.String())
		}
	}

	// Without a quorum every command says so, and none hangs.
	c.Peers[2].Stop()
	for _, line := range []string{"cluster status", "get pods --request-timeout 5s"} {
		var out strings.Builder
		app := newApp()
		app.stdout, app.stderr = &out, &out
		if code := app.run(t.Context(), strings.Fields(line)); code != exitUnavailable || !strings.Contains(out.String(), "NO QUORUM") {
			t.Errorf("holdfast %s without a quorum: exit code %d, want %d and the reason\n%s", line, code, exitUnavailable, out.String())
		}
	}
	var out, errs strings.Builder
	app := newApp()
	app.stdout, app.stderr = &out, &errs
	code := app.run(t.Context(), []string{"get", "nodes", "-o", "name", "--consistency", "local"})
	if code != exitOK || out.String() != "node/n1\nnode/n2\n" || !regexp.MustCompile(`(?m)^(Served by p1, cut off from the quorum for .*, as of|As peer p1 has it at) revision \d+`).MatchString(errs.String()) {
		t.Errorf("a local read without a quorum: exit code %d\n%s%s", code, out.String(), errs.String())
	}
}
