package kubecompat

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestReach does with kubectl what reaches into pods and nodes and has no transcript,
// since it prints what is never twice the same: attach, port-forward, top, describe, and
// a drain that a disruption budget holds up.
func TestReach(t *testing.T) {
	needKubectl(t)
	all := versions()
	if testing.Short() && len(all) > 2 {
		all = []string{all[0], all[len(all)-1]}
	}
	for i, version := range all {
		t.Run(version, func(t *testing.T) {
			namespace := "reach-" + strings.ReplaceAll(version, ".", "-")
			p := kubectl(t, version, namespace, i%2 == 1)
			must := func(args ...string) string {
				t.Helper()
				out, code := p.run(t.Context(), args...)
				if code != 0 {
					t.Fatalf("kubectl %s: exit %d\n%s", strings.Join(args, " "), code, out)
				}
				return out
			}
			says := func(want string, args ...string) {
				t.Helper()
				if out := must(args...); !strings.Contains(out, want) {
					t.Errorf("kubectl %s: want %q in\n%s", strings.Join(args, " "), want, out)
				}
			}
			must("create", "deployment", "web", "--image=holdfast.dev/web:1", "--replicas=2")
			must("create", "configmap", "settings", "--from-literal=mode=fast")
			must("create", "secret", "generic", "key", "--from-literal=password=hunter2")
			must("create", "serviceaccount", "robot")
			must("create", "quota", "small", "--hard=pods=10")
			must("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2")
			must("expose", "deployment", "web", "--port=80")
			must("wait", "--for=condition=Available", "deployment/web", "--timeout=60s")

			for what, want := range map[string]string{
				"deployment/web": "RollingUpdateStrategy:", "replicaset": "Controlled By:", "pods": "Controlled By:", "service/web": "app=web",
				"configmap/settings": "fast", "secret/key": "password:", "serviceaccount/robot": "Image pull secrets:",
				"poddisruptionbudget/web": "Min available:", "quota/small": "Hard", "namespace/" + namespace: "Status:", "node/n1": "Allocatable:",
			} {
				says(want, "describe", what)
			}
			if got, want := forwarded(t, p, "deployment/web", "80"), "holdfast.dev/web:1 in pod "+namespace+"/web-"; !strings.Contains(got, want) {
				t.Errorf("through the forwarded port: %q, want %q", got, want)
			}

			// From standard input to standard output of a container.
			attach := p.command(t.Context(), "run", "echo", "--image=holdfast.dev/shell:1", "--restart=Never", "-i", "--quiet", "--", "cat")
			attach.Stdin = strings.NewReader("hello\n")
			if out, err := attach.Output(); err != nil || string(out) != "hello\n" {
				t.Errorf("run -i: %q, %v; want hello", out, err)
			}

			// Agents report what is used every now and then.
			until(t, func() bool {
				out, code := p.run(t.Context(), "top", "pods")
				return code == 0 && strings.Contains(out, "web-")
			})
			says("n1", "top", "nodes")

			// Two of two are needed, so the node that has one does not let go of it.
			node := strings.TrimSpace(must("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].spec.nodeName}"))
			defer p.run(context.WithoutCancel(t.Context()), "uncordon", node)
			out, code := p.run(t.Context(), "drain", node, "--pod-selector=app=web", "--timeout=3s")
			if code == 0 || !strings.Contains(out, "violate the pod's disruption budget") {
				t.Errorf("drain against the budget: exit %d\n%s", code, out)
			}
			must("patch", "poddisruptionbudget", "web", "--type=merge", `--patch={"spec":{"minAvailable":1}}`)
			says("drained", "drain", node, "--pod-selector=app=web", "--timeout=60s")
			must("uncordon", node)
		})
	}
}

// until waits until something is so.
func until(t *testing.T, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !so(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v", patience)
		}
	}
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) -> `)

// forwarded forwards a port of a pod, and returns what it answers to GET /.
func forwarded(t *testing.T, p program, target, port string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := p.command(ctx, "port-forward", target, ":"+port)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		found := forwarding.FindStringSubmatch(lines.Text())
		if found == nil {
			continue
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+found[1]+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	t.Fatal("kubectl port-forward ended before it forwarded")
	return ""
}
