package fake_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/runtime/conformance"
)

// TestConformance holds the fake to what containerd is held to. Its state lives
// in the value, so the same value is opened again.
func TestConformance(t *testing.T) {
	byDir := map[string]*fake.Runtime{}
	open := func(t *testing.T, dir string) runtime.Runtime {
		if byDir[dir] == nil {
			byDir[dir] = fake.New(fake.Config{})
		}
		return byDir[dir]
	}
	conformance.Run(t, open, conformance.Options{Image: "busybox:1", Pullable: "nginx:1", Missing: "fake/missing:1"})
	for _, r := range byDir {
		for _, f := range r.Faults() {
			t.Errorf("the suite broke a rule of the interface: %s", f)
		}
	}
}

// output runs a script in a container that goes on, and returns what it wrote to
// both streams.
func output(t *testing.T, script string) (string, int) {
	t.Helper()
	r := fake.New(fake.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	<-r.Ready()
	defer func() {
		cancel()
		<-ended
		r.Close()
	}()
	image, err := r.EnsureImage(ctx, "web:1", corev1.PullIfNotPresent, nil)
	if err == nil {
		err = r.CreatePod(ctx, runtime.Pod{UID: "u", Hostname: "h"})
	}
	id := runtime.ContainerID{PodUID: "u", Name: "c"}
	if err == nil {
		err = r.RunContainer(ctx, runtime.Container{ID: id, Image: image.Ref, Env: []string{"A=1"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code, err := r.Exec(ctx, id, runtime.ExecOptions{Command: []string{"sh", "-c", script}, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), code
}

func TestShell(t *testing.T) {
	for _, test := range []struct {
		script, want string
		code         int
	}{
		{"echo a  b", "a b\n", 0},
		{"echo 'a  b' \"c $A\" '$A' \\$A ${A} ${B:-none}.", "a  b c 1 $A $A 1 none.\n", 0},
		{"echo -n x; printf '%s-%d\\n' y 2", "xy-2\n", 0},
		{"true && echo yes || echo no", "yes\n", 0},
		{"false && echo yes || echo no", "no\n", 0},
		{"false; echo $?", "1\n", 0},
		{"exit 3; echo never", "", 3},
		{"sh -c 'exit 4'; echo $?", "4\n", 0},
		{"if test $A = 1; then echo one; else echo other; fi", "one\n", 0},
		{"if [ $A != 1 ]; then echo one; else echo other; fi", "other\n", 0},
		{"for i in x y; do echo $i; done", "x\ny\n", 0},
		{"N=; while [ \"$N\" != aaa ]; do N=a$N; done; echo $N", "aaa\n", 0},
		{"until true; do echo never; done; echo after", "after\n", 0},
		{"echo kept > /tmp/f; echo more >> /tmp/f; cat /tmp/f; ls /tmp", "kept\nmore\nf\n", 0},
		{"cat /none", "cat: can't open '/none': No such file or directory\n", 1},
		{"echo lost > /dev/null 2>&1; hostname # a comment", "h\n", 0},
		{"sleep 0 & wait; echo waited", "waited\n", 0},
		{"nope", "nope: not found in this simulated container; try help\n", 127},
		{"echo a | cat", "sh: the simulated shell has no pipes, substitutions or input redirections\n", 2},
		{"echo 'a", "sh: a ' has no end\n", 2},
		{"if true; then", "sh: syntax error: \"fi\" expected before \"end\"\n", 2},
		{"done", "sh: syntax error at \"done\"\n", 2},
	} {
		t.Run(test.script, func(t *testing.T) {
			if got, code := output(t, test.script); got != test.want || code != test.code {
				t.Errorf("got %q and %d, want %q and %d", got, code, test.want, test.code)
			}
		})
	}
}

// TestRules: the fake refuses what callers may not do.
func TestRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fake.New(fake.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		if err := r.CreatePod(ctx, runtime.Pod{UID: "u"}); err == nil {
			t.Error("CreatePod before Run returned nil")
		}
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		<-r.Ready()
		defer func() {
			cancel()
			<-ended
			r.Close()
		}()
		c := runtime.Container{ID: runtime.ContainerID{PodUID: "u", Name: "c"}, Image: "fake/stubborn:1"}
		if err := r.RunContainer(ctx, c); !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("RunContainer without its pod returned %v", err)
		}
		if err := r.CreatePod(ctx, runtime.Pod{UID: "u", NetNS: "ns"}); err != nil {
			t.Fatal(err)
		}
		if err := r.CreatePod(ctx, runtime.Pod{UID: "v", NetNS: "ns"}); err == nil {
			t.Error("two pods got one network namespace")
		}
		if err := r.RunContainer(ctx, c); !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("RunContainer without its image returned %v", err)
		}
		if _, err := r.EnsureImage(ctx, c.Image, corev1.PullIfNotPresent, nil); err != nil {
			t.Fatal(err)
		}
		if err := r.RunContainer(ctx, c); err != nil {
			t.Fatal(err)
		}
		second := c
		second.ID.Attempt = 1
		if err := r.RunContainer(ctx, second); err == nil {
			t.Error("a container runs twice")
		}
		go func() { _ = r.StopContainer(ctx, c.ID, time.Minute) }()
		synctest.Wait()
		if err := r.RemovePod(ctx, "u"); err == nil {
			t.Error("RemovePod during StopContainer returned nil")
		}
		if len(r.Faults()) != 1 {
			t.Errorf("faults are %q, want the overlapping call", r.Faults())
		}
		time.Sleep(2 * time.Minute)
	})
}

// TestNetwork: addresses are given out once, and come back.
func TestNetwork(t *testing.T) {
	n := fake.NewNetwork()
	ctx := t.Context()
	if _, err := n.Attach(ctx, "a"); err == nil {
		t.Error("Attach without a CIDR returned nil")
	}
	if err := n.Configure(ctx, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29")}, nil); err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]string{}
	for _, uid := range []string{"a", "b", "c", "d", "e"} {
		at, err := n.Attach(ctx, uid)
		if err != nil {
			t.Fatal(err)
		}
		again, err := n.Attach(ctx, uid)
		if err != nil || again.NetNS != at.NetNS || again.IPs[0] != at.IPs[0] {
			t.Errorf("Attach of %s again gave %v (%v), want %v", uid, again, err, at)
		}
		if other, ok := seen[at.IPs[0]]; ok {
			t.Errorf("%s and %s both have %v", uid, other, at.IPs[0])
		}
		seen[at.IPs[0]] = uid
	}
	if at, err := n.Attach(ctx, "f"); err == nil {
		t.Errorf("a full network gave %v", at)
	}
	if err := n.Detach(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if at, err := n.Attach(ctx, "f"); err != nil || seen[at.IPs[0]] != "c" {
		t.Errorf("after Detach of c its address is not free: %v, %v", at, err)
	}
	if all, err := n.List(ctx); err != nil || len(all) != 5 {
		t.Errorf("List has %v (%v), want 5", all, err)
	}
}
