package conformance

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// output runs a script to its end and returns its log.
func (s *suite) output(uid, name, script string, change ...func(*runtime.Container)) string {
	s.Helper()
	id := s.run(uid, name, 0, script, change...)
	s.exited(id)
	return s.logText(id, runtime.LogOptions{TailLines: -1})
}

func (s *suite) users() {
	uid := s.pod()
	number := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		name, want string // numbers of user, group, and all groups
		as         runtime.Security
	}{
		{"image", "0\n0\n0\n", runtime.Security{}},
		{"user", "1000\n0\n0\n", runtime.Security{User: number(1000), NonRoot: true}},
		{"user-and-group", "1000\n2000\n2000\n", runtime.Security{User: number(1000), Group: number(2000)}},
		{"group", "0\n2000\n2000\n", runtime.Security{Group: number(2000), StrictGroups: true}},
		{"more-groups", "1000\n2000\n2000 3000 4000\n", runtime.Security{User: number(1000), Group: number(2000), Groups: []int64{3000, 4000, 2000}}},
	} {
		if got := s.output(uid, c.name, "id -u; id -g; id -G", func(r *runtime.Container) { r.Security = c.as }); got != c.want {
			s.Errorf("%s: id shows %q, want %q", c.name, got, c.want)
		}
	}
	for name, as := range map[string]runtime.Security{
		"root-of-the-image": {NonRoot: true},
		"root-by-number":    {NonRoot: true, User: number(0)},
	} {
		err := s.rt.RunContainer(s.ctx(), s.container(uid, name, 0, "true", func(r *runtime.Container) { r.Security = as }))
		if !errors.Is(err, runtime.ErrConfig) {
			s.Errorf("%s: RunContainer returned %v, want ErrConfig", name, err)
		}
	}
	for _, c := range s.list(uid).Containers {
		if strings.HasPrefix(c.ID.Name, "root-") {
			s.Errorf("a container that was refused is listed: %+v", c)
		}
	}
}

// status is the script that shows what the kernel says of a process's privileges.
const status = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"

func (s *suite) privileges() {
	uid := s.pod()
	user := int64(1000)
	const none = "0000000000000000"
	for _, c := range []struct {
		name, effective, bounding, locked, filter string
		as                                        runtime.Security
	}{
		{"usual", "00000000a80425fb", "00000000a80425fb", "0", "2", runtime.Security{}},
		{"user", none, "00000000a80425fb", "0", "2", runtime.Security{User: &user}},
		{"add", "00000000a80435fb", "00000000a80435fb", "0", "2", runtime.Security{AddCapabilities: []string{"NET_ADMIN"}}},
		{"drop", "00000000a80405fb", "00000000a80405fb", "0", "2", runtime.Security{DropCapabilities: []string{"NET_RAW"}}},
		{"drop-all", none, none, "0", "2", runtime.Security{DropCapabilities: []string{"ALL"}}},
		{"all-but-one", "0000000000000400", "0000000000000400", "0", "2", runtime.Security{AddCapabilities: []string{"NET_BIND_SERVICE"}, DropCapabilities: []string{"ALL"}}},
		{"locked", "00000000a80425fb", "00000000a80425fb", "1", "2", runtime.Security{NoNewPrivileges: true}},
		{"unconfined", "00000000a80425fb", "00000000a80425fb", "0", "0", runtime.Security{Seccomp: runtime.SeccompUnconfined}},
	} {
		want := "CapEff:\t" + c.effective + "\nCapBnd:\t" + c.bounding + "\nNoNewPrivs:\t" + c.locked + "\nSeccomp:\t" + c.filter + "\n"
		got := s.output(uid, c.name, status, func(r *runtime.Container) { r.Security = c.as })
		if got != want {
			s.Errorf("%s: the process has\n%swant\n%s", c.name, got, want)
		}
	}
	// All that the node has, which is not the same everywhere.
	got := s.output(uid, "privileged", status, func(r *runtime.Container) { r.Security.Privileged = true })
	if !strings.Contains(got, "CapEff:\t000001ff") || !strings.HasSuffix(got, "Seccomp:\t0\n") {
		s.Errorf("a privileged process has\n%s", got)
	}
}

func (s *suite) readOnlyRoot() {
	uid := s.pod()
	dir := s.TempDir()
	got := s.output(uid, "main", "echo one > /file || echo refused; echo two > /mnt/file && echo written", func(c *runtime.Container) {
		c.Security.ReadOnlyRoot = true
		c.Mounts = []runtime.Mount{{HostPath: dir, ContainerPath: "/mnt"}}
	})
	// Of two streams it is not said which comes first in the log.
	refusal, said := "", ""
	for line := range strings.Lines(got) {
		if strings.Contains(line, "Read-only file system") {
			refusal += line
		} else {
			said += line
		}
	}
	if said != "refused\nwritten\n" || refusal == "" {
		s.Errorf("a container with a read-only root says %q", got)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(data) != "two\n" {
		s.Errorf("the mounted directory has %q (%v), want what the container wrote", data, err)
	}
}

func (s *suite) seccomp() {
	uid := s.pod()
	profile := filepath.Join(s.TempDir(), "profile.json")
	must(s, "write", os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600))
	got := s.output(uid, "file", status, func(c *runtime.Container) { c.Security.Seccomp = profile })
	if !strings.HasSuffix(got, "Seccomp:\t2\n") {
		s.Errorf("with a profile of the node's the process has\n%s", got)
	}
	err := s.rt.RunContainer(s.ctx(), s.container(uid, "missing", 0, "true", func(c *runtime.Container) { c.Security.Seccomp = profile + ".missing" }))
	if !errors.Is(err, runtime.ErrConfig) {
		s.Errorf("with a profile that is not there RunContainer returned %v, want ErrConfig", err)
	}
}

func (s *suite) sysctls() {
	if s.o.Attach == nil {
		s.Skip("the pod has the node's network")
	}
	uid := s.pod(func(p *runtime.Pod) {
		p.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"}
	})
	got := s.output(uid, "main", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced")
	if got != "77\n1\n" {
		s.Errorf("the pod's parameters are %q, want those asked for", got)
	}
}

// sharedProcesses also restarts the container that was first, which a shared
// namespace must survive.
func (s *suite) sharedProcesses() {
	uid := s.pod(func(p *runtime.Pod) { p.SharePID = true })
	a := s.run(uid, "a", 0, "echo marker-of-a; "+forever)
	b := s.run(uid, "b", 0, forever)
	s.ready(a)
	s.ready(b)
	processes := func() string {
		s.Helper()
		stdout, _, _ := s.result(b, runtime.ExecOptions{Command: []string{"ps"}})
		return stdout
	}
	if got := processes(); !strings.Contains(got, "marker-of-a") {
		s.Errorf("container b sees no process of a:\n%s", got)
	}
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), a, s.o.Timeout))
	if got := processes(); strings.Contains(got, "marker-of-a") {
		s.Errorf("after the end of a its processes are still there:\n%s", got)
	}
	again := s.run(uid, "a", 1, "echo marker-of-a; "+forever)
	s.ready(again)
	if got := processes(); !strings.Contains(got, "marker-of-a") {
		s.Errorf("container b does not see the processes of a restarted a:\n%s", got)
	}
	if c := s.state(b); c.State != runtime.StateRunning {
		s.Errorf("container b is %+v after the restart of a", c)
	}
	alone := s.pod()
	other := s.run(alone, "a", 0, forever)
	if stdout, _, _ := s.result(other, runtime.ExecOptions{Command: []string{"ps"}}); strings.Contains(stdout, "marker-of-a") {
		s.Errorf("a container of another pod sees\n%s", stdout)
	}
}
