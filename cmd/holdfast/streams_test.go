package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/internal/testcluster"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// hostExec runs commands on this machine, in a directory that stands for the
// container's root.
func hostExec(dir string) func(context.Context, *holdfastv1.ExecStart, holdfastv1connect.PodServiceExecServerStream) error {
	return func(ctx context.Context, start *holdfastv1.ExecStart, stream holdfastv1connect.PodServiceExecServerStream) error {
		command := start.GetCommand()
		for i, arg := range command {
			if strings.HasPrefix(arg, "/") {
				command[i] = filepath.Join(dir, arg)
			}
		}
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Dir = dir
		var mu sync.Mutex
		send := func(m *holdfastv1.ExecResponse) error {
			mu.Lock()
			defer mu.Unlock()
			return stream.Send(m)
		}
		cmd.Stdout = sendData(func(p []byte) error {
			return send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stdout{Stdout: bytes.Clone(p)}})
		})
		cmd.Stderr = sendData(func(p []byte) error {
			return send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stderr{Stderr: bytes.Clone(p)}})
		})
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return connect.Errorf(connect.CodeInternal, "exec: %q: executable file not found in $PATH", command[0])
		}
		go func() {
			defer stdin.Close()
			for {
				m, err := stream.Receive()
				if err != nil || m.GetCloseStdin() {
					return
				}
				_, _ = stdin.Write(m.GetStdin())
			}
		}()
		_ = cmd.Wait()
		return send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_ExitCode{ExitCode: int32(cmd.ProcessState.ExitCode())}})
	}
}

// tree lists what is below dir: "mode path content".
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String() + " " + rel
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(data) + " " + info.ModTime().UTC().Format(time.RFC3339)
		case info.Mode()&os.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			text += " -> " + target
		}
		out = append(out, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestCopy: files and directories go both ways, with modes, times and links.
func TestCopy(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs tar")
	}
	here, there := t.TempDir(), t.TempDir()
	for _, dir := range []string{"app/conf.d", "empty"} {
		if err := os.MkdirAll(filepath.Join(here, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, mode := range map[string]os.FileMode{"app/run": 0o755, "app/conf.d/secret": 0o600, "app/read-only": 0o444, "one file": 0o640} {
		path := filepath.Join(here, name)
		if err := os.WriteFile(path, []byte("in "+name), mode); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chmod(path, mode), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("conf.d/secret", filepath.Join(here, "app", "link")), os.Mkdir(filepath.Join(there, "srv"), 0o755)); err != nil {
		t.Fatal(err)
	}
	f := &fakeCluster{exec: hostExec(there)}
	copy := func(from, to string) {
		t.Helper()
		f.run(t.Context(), nil, "cp", from, to).check(t, exitOK, "Copied")
	}
	copy(filepath.Join(here, "app"), "web:/srv")         // into a directory, under its name
	copy(filepath.Join(here, "app"), "team/web:/srv/as") // under another
	copy(filepath.Join(here, "one file"), "web:/srv/")
	copy(filepath.Join(here, "one file"), "web:/srv/app/conf.d/secret") // over what is there
	app := func(at string) string {
		return strings.NewReplacer("@", at).Replace("-r--r--r-- @/read-only in app/read-only 2026-01-02T03:04:05Z\n" +
			"-rwxr-xr-x @/run in app/run 2026-01-02T03:04:05Z\nLrwxrwxrwx @/link -> conf.d/secret\ndrwxr-xr-x @\ndrwxr-xr-x @/conf.d\n")
	}
	lines := func(text string) string {
		all := strings.Split(strings.TrimSpace(text), "\n")
		slices.Sort(all)
		return strings.Join(all, "\n")
	}
	const file, secret = "-rw-r----- one file in one file 2026-01-02T03:04:05Z\n", "-rw------- as/conf.d/secret in app/conf.d/secret 2026-01-02T03:04:05Z\n"
	want := lines(app("app") + app("as") + file + secret + strings.Replace(file, "one file", "app/conf.d/secret", 1))
	if got := tree(t, filepath.Join(there, "srv")); got != want {
		t.Errorf("in the container is\n%s\nwant\n%s", got, want)
	}

	back := t.TempDir()
	copy("web:/srv/as", back)
	copy("web:/srv/as", filepath.Join(back, "other"))
	copy("web:srv/one file", filepath.Join(back, "file")) // relative to where commands run
	copy("web:/srv/as/run", filepath.Join(back, "as", "read-only"))
	want = lines(app("as") + app("other") + secret + strings.Replace(secret, "as/", "other/", 1) + strings.Replace(file, "one file", "file", 1))
	want = strings.Replace(want, "-r--r--r-- as/read-only in app/read-only", "-rwxr-xr-x as/read-only in app/run", 1)
	if got := tree(t, back); got != lines(want) {
		t.Errorf("back here is\n%s\nwant\n%s", got, lines(want))
	}

	f.run(t.Context(), nil, "cp", "web:/srv/none", back).check(t, exitError, "tar ended with", "none")
	f.run(t.Context(), nil, "cp", "web:/srv/as", filepath.Join(back, "no", "where")).check(t, exitNotFound, "no such file")
	f.run(t.Context(), nil, "cp", "web:/", back).check(t, exitUsage, "has no name")
	f.run(t.Context(), nil, "cp", "a", "b").check(t, exitUsage, "neither a nor b is in a pod")
	f.run(t.Context(), nil, "cp", "a/b/c:x", "b").check(t, exitUsage, "want POD:PATH")
	f.exec = func(context.Context, *holdfastv1.ExecStart, holdfastv1connect.PodServiceExecServerStream) error {
		return connect.NewError(connect.CodeInternal, `exec in container main: exec: "tar": executable file not found in $PATH`)
	}
	f.run(t.Context(), nil, "cp", "web:/srv", back).check(t, exitRefused, "its image has no tar", "cat > FILE")
}

// TestCopyTrustsNobody: an archive that leads out of the destination is refused, and
// nothing is written there.
func TestCopyTrustsNobody(t *testing.T) {
	for _, test := range []struct {
		name    string
		entries []tar.Header
		code    int
		want    string
		tree    string // at the end
	}{
		{"an absolute name", []tar.Header{{Name: "/etc/evil", Typeflag: tar.TypeReg}}, exitRefused, `sent "/etc/evil", which is not in app`, ""},
		{"a name that leads up", []tar.Header{{Name: "app/../../evil", Typeflag: tar.TypeReg}}, exitRefused, `"app/../../evil"`, ""},
		{"another name", []tar.Header{{Name: "apple", Typeflag: tar.TypeReg}}, exitRefused, `"apple"`, ""},
		{"a link that leads out, and a file through it", []tar.Header{
			{Name: "app", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "app/out", Typeflag: tar.TypeSymlink, Linkname: "../beside"},
			{Name: "app/out/file", Typeflag: tar.TypeReg, Mode: 0o644},
		}, exitError, "Left out the link app/out", "drwxr-xr-x app\ndrwxr-xr-x beside"},
		{"an absolute link", []tar.Header{{Name: "app", Typeflag: tar.TypeSymlink, Linkname: "/etc"}}, exitOK, "Left out the link app: it leads to /etc", "drwxr-xr-x beside"},
		{"a hard link to elsewhere", []tar.Header{{Name: "app", Typeflag: tar.TypeLink, Linkname: "beside/x"}}, exitRefused, `link to "beside/x"`, ""},
		{"a device", []tar.Header{{Name: "app", Typeflag: tar.TypeChar}}, exitOK, "Left out app", "drwxr-xr-x beside"},
		{"a file in place of a link", []tar.Header{
			{Name: "app", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "app/a", Typeflag: tar.TypeReg, Mode: 0o644},
			{Name: "app/b", Typeflag: tar.TypeSymlink, Linkname: "a"},
			{Name: "app/b", Typeflag: tar.TypeReg, Mode: 0o600},
		}, exitOK, "Copied 2 files", "-rw------- app/b  1970-01-01T00:00:00Z\n-rw-r--r-- app/a  1970-01-01T00:00:00Z\ndrwxr-xr-x app\ndrwxr-xr-x beside"},
	} {
		t.Run(test.name, func(t *testing.T) {
			into := t.TempDir()
			if err := os.Mkdir(filepath.Join(into, "beside"), 0o755); err != nil {
				t.Fatal(err)
			}
			f := &fakeCluster{exec: func(_ context.Context, _ *holdfastv1.ExecStart, stream holdfastv1connect.PodServiceExecServerStream) error {
				var b bytes.Buffer
				w := tar.NewWriter(&b)
				for _, h := range test.entries {
					h.ModTime = time.Unix(0, 0)
					if err := w.WriteHeader(&h); err != nil {
						t.Error(err)
					}
				}
				w.Close()
				_ = stream.Send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stdout{Stdout: b.Bytes()}})
				return stream.Send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_ExitCode{}})
			}}
			f.run(t.Context(), nil, "cp", "web:/srv/app", into).check(t, test.code, test.want)
			want := test.tree
			if want == "" {
				want = "drwxr-xr-x beside"
			}
			if got := tree(t, into); got != want {
				t.Errorf("there is\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestPortForward: connections reach the pod from several ports, each by itself, and
// new ones go on when a peer has died.
func TestPortForward(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 1})
	useContext(t, c)
	c.Apply(strings.Replace(sessionManifest, `image: "fake/web:1"`, `image: "fake/web:1", ports: [{name: http, containerPort: 80}]`, 1))
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	c.WaitFor(ctx, "two ready pods", func() (bool, string) {
		ready := 0
		for _, obj := range c.List("Pod", "default") {
			for _, condition := range obj.(*corev1.Pod).Status.Conditions {
				if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		return ready == 2, fmt.Sprint(ready)
	})

	out := &syncBuffer{grown: make(chan struct{}, 1)}
	app := newApp()
	app.stdin, app.stdout, app.stderr = strings.NewReader(""), out, out
	life, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- app.run(life, []string{"port-forward", "deploy/web", ":http", ":7", ":81", "--address", "127.0.0.1"})
	}()
	address := func(remote string) string {
		return out.wait(t, regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) -> `+remote+"\n"))
	}
	get := func() string {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testcluster.Patience}
		resp, err := client.Get("http://" + address("http") + "/path")
		if err != nil {
			t.Fatalf("%v\n%s", err, out.text())
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	if got := get(); !strings.HasPrefix(got, "fake/web:1 in pod default/web-") || !strings.HasSuffix(got, ": GET /path\n") {
		t.Errorf("the pod answered %q", got)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 100000)
	conn, err := net.Dial("tcp", address("7"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = conn.Write(big)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes of %d came back, %v", len(got), len(big), err)
	}
	refused, err := net.Dial("tcp", address("81"))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(refused); len(got) > 0 {
		t.Errorf("a port without a listener sent %q", got)
	}
	refused.Close()
	out.wait(t, regexp.MustCompile(`(Connection from \S+ to 81: .*connection refused)`))

	// The peer in use dies: what goes through it breaks, and what comes next does not.
	peer := app.dialed.peer()
	for _, p := range c.Peers {
		if strings.HasPrefix(peer, p.Address+":") {
			p.Stop()
		}
	}
	if got := get(); !strings.Contains(got, "GET /path") {
		t.Errorf("after the death of a peer the pod answered %q", got)
	}
	stop()
	if code := <-ended; code != exitInterrupted {
		t.Errorf("exit code %d, want that of an interruption", code)
	}
}

// syncBuffer is output that a test waits for.
type syncBuffer struct {
	mu    sync.Mutex
	b     strings.Builder
	grown chan struct{}
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.grown <- struct{}{}:
	default:
	}
	return s.b.Write(p)
}

func (s *syncBuffer) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// wait returns the first group of what matches.
func (s *syncBuffer) wait(t *testing.T, want *regexp.Regexp) string {
	t.Helper()
	late := time.After(testcluster.Patience)
	for {
		if found := want.FindStringSubmatch(s.text()); found != nil {
			return found[1]
		}
		select {
		case <-s.grown:
		case <-late:
			t.Fatalf("no %s in\n%s", want, s.text())
		}
	}
}

func TestParsePorts(t *testing.T) {
	for _, test := range []struct {
		args string
		want string
	}{
		{"80", "[{80 80}]"},
		{"8080:80 :9090", "[{8080 80} {0 9090}]"},
		{"http 8080:http :http", "[{0 http} {8080 http} {0 http}]"},
		{"0", `port "0": "0" is no port`},
		{"80:", `is no port`},
		{"65536", `"65536" is no port`},
		{"a:80", `"a" is no port`},
	} {
		got, err := parsePorts(strings.Fields(test.args))
		text := fmt.Sprint(got)
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, test.want) {
			t.Errorf("%s: %s, want %s", test.args, text, test.want)
		}
	}
}

// TestLeaveKeys: Ctrl-P Ctrl-Q is kept, however it is split; all else goes through.
func TestLeaveKeys(t *testing.T) {
	for _, test := range []struct {
		pieces []string
		want   string
		left   bool
	}{
		{[]string{"ls\r", "exit\r"}, "ls\rexit\r", false},
		{[]string{"a\x10b\x11c"}, "a\x10b\x11c", false},
		{[]string{"a\x10", "b"}, "a\x10b", false},
		{[]string{"a\x10\x11b"}, "", true},
		{[]string{"a", "\x10", "\x11", "b"}, "a", true},
	} {
		left := false
		pieces := test.pieces
		k := &leaveKeys{left: func() { left = true }, from: readerFunc(func(p []byte) (int, error) {
			if len(pieces) == 0 {
				return 0, io.EOF
			}
			n := copy(p, pieces[0])
			pieces = pieces[1:]
			return n, nil
		})}
		got, _ := io.ReadAll(k)
		if string(got) != test.want || left != test.left {
			t.Errorf("%q: %q, left %t, want %q, %t", test.pieces, got, left, test.want, test.left)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
