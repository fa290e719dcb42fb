package fake

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// shell runs the commands that a fake container knows. `sh -c` takes simple
// commands joined by ; && || & and newlines, if, while, until and for, quotes,
// $NAME and ${NAME}, assignments, and redirections of output to files and to
// >&2. There are no pipes, no substitutions and no patterns; it says so.
type shell struct {
	ctx      context.Context // ends: SIGKILL. The shell is the session of one process
	c        *container
	term     <-chan struct{} // closed: SIGTERM. Nil: none comes
	in       *input          // nil: no stdin
	out, err io.Writer
	terminal *terminal // nil: stdin and stdout are none

	env     map[string]string
	status  int    // $?
	trap    string // of TERM
	trapped bool   // trap was set
	termed  bool   // TERM was taken
	jobs    *sync.WaitGroup
}

// leave is how a shell ends early: by exit, or by a signal.
type leave struct{ code int }

func newShell(ctx context.Context, c *container, term <-chan struct{}, in *input, out, err io.Writer) *shell {
	s := &shell{ctx: ctx, c: c, term: term, in: in, out: out, err: err, env: map[string]string{}, jobs: &sync.WaitGroup{}}
	s.env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	s.env["HOSTNAME"] = c.pod.Hostname
	for _, e := range c.spec.Env {
		name, value, _ := strings.Cut(e, "=")
		s.env[name] = value
	}
	return s
}

// exec runs a command as a process does, and returns its exit code. It returns
// soon after ctx ends.
func (s *shell) exec(argv []string) (code int) {
	defer s.jobs.Wait()
	defer func() {
		switch r := recover().(type) {
		case nil:
		case leave:
			code = r.code
		default:
			panic(r)
		}
	}()
	return s.command(argv)
}

// check takes in signals.
func (s *shell) check() {
	if s.ctx.Err() != nil {
		panic(leave{killed})
	}
	if s.term == nil || s.termed {
		return
	}
	select {
	case <-s.term:
	default:
		return
	}
	s.termed = true
	switch {
	case !s.trapped:
		panic(leave{128 + 15})
	case s.trap != "":
		s.script(s.trap)
	}
}

// pause waits for d, a signal or an interrupt.
func (s *shell) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	term := s.term
	if s.termed || s.trapped && s.trap == "" {
		term = nil
	}
	var interrupt <-chan struct{}
	if s.terminal != nil {
		interrupt = s.terminal.interrupted()
	}
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	case <-term:
	case <-interrupt:
		s.status = 130
	}
	s.check()
}

// script parses and runs a text.
func (s *shell) script(text string) int {
	list, err := parse(text)
	if err != nil {
		fmt.Fprintf(s.err, "sh: %v\n", err)
		return 2
	}
	s.run(list)
	return s.status
}

func (s *shell) run(list []node) {
	for _, n := range list {
		s.check()
		switch n.join {
		case "&&":
			if s.status != 0 {
				continue
			}
		case "||":
			if s.status == 0 {
				continue
			}
		}
		if n.background {
			sub := *s
			sub.env = maps.Clone(s.env)
			sub.trap, sub.trapped = "", false // the signal is for the shell alone
			s.jobs.Add(1)
			go func() {
				defer s.jobs.Done()
				defer func() {
					if r := recover(); r != nil {
						if _, ok := r.(leave); !ok {
							panic(r)
						}
					}
				}()
				sub.jobs = &sync.WaitGroup{}
				defer sub.jobs.Wait()
				sub.node(n)
			}()
			s.status = 0
			continue
		}
		s.node(n)
	}
}

func (s *shell) node(n node) {
	switch n.kind {
	case "if":
		s.run(n.cond)
		if s.status == 0 {
			s.run(n.body)
		} else {
			s.status = 0
			s.run(n.other)
		}
	case "while", "until":
		for {
			s.run(n.cond)
			if (s.status == 0) != (n.kind == "while") {
				s.status = 0
				return
			}
			s.run(n.body)
			s.yield()
			if s.status == 130 {
				return
			}
		}
	case "for":
		for _, w := range n.words {
			s.env[n.name] = s.expand(w)
			s.run(n.body)
		}
	default:
		s.simple(n)
	}
}

// yield keeps a loop without a pause from using up a processor.
func (s *shell) yield() { s.pause(time.Millisecond) }

func (s *shell) simple(n node) {
	var argv []string
	for _, w := range n.words {
		if name, value, ok := w.assignment(); ok && len(argv) == 0 {
			s.env[name] = s.expand(value)
			continue
		}
		argv = append(argv, s.expand(w))
	}
	if len(argv) == 0 {
		s.status = 0
		return
	}
	out, err := s.out, s.err
	defer func() { s.out, s.err = out, err }()
	for _, r := range n.redirects {
		to := s.expand(r.to)
		var w io.Writer
		switch {
		case to == "&2":
			w = s.err
		case to == "&1":
			w = s.out
		default:
			f, ferr := s.c.files.create(to, r.add)
			if ferr != nil {
				fmt.Fprintf(s.err, "sh: %v\n", ferr)
				s.status = 1
				return
			}
			defer f.Close()
			w = f
		}
		if r.fd == 2 {
			s.err = w
		} else {
			s.out = w
		}
	}
	s.status = s.command(argv)
}

// commandNames are what the shell knows; see lookup.
var commandNames = strings.Fields(": [ ash bash cat date echo env exit export false grep help hostname id ls " +
	"printenv printf ps pwd sh sleep stty test trap true wait whoami")

// lookup returns what runs a command, or nil.
func lookup(name string) func(s *shell, args []string) int {
	say := func(format string, args ...any) func(*shell, []string) int {
		return func(s *shell, _ []string) int {
			fmt.Fprintf(s.out, format+"\n", args...)
			return 0
		}
	}
	switch baseName(name) {
	case "sh", "ash", "bash":
		return (*shell).sh
	case "echo":
		return (*shell).echo
	case "printf":
		return (*shell).printf
	case "cat":
		return (*shell).cat
	case "sleep":
		return (*shell).sleep
	case "exit":
		return (*shell).exit
	case "trap":
		return (*shell).setTrap
	case "test", "[":
		return (*shell).test
	case "env", "printenv":
		return (*shell).printenv
	case "export":
		return (*shell).export
	case "wait":
		return (*shell).wait
	case "stty":
		return (*shell).stty
	case "ls":
		return (*shell).ls
	case "ps":
		return (*shell).ps
	case "grep":
		return (*shell).grep
	case "true", ":":
		return func(*shell, []string) int { return 0 }
	case "false":
		return func(*shell, []string) int { return 1 }
	case "hostname":
		return func(s *shell, _ []string) int { return s.echo([]string{s.c.pod.Hostname}) }
	case "pwd":
		return func(s *shell, _ []string) int { return s.echo([]string{s.directory()}) }
	case "date":
		return func(s *shell, _ []string) int { return s.echo([]string{time.Now().Format(time.UnixDate)}) }
	case "whoami":
		return say("root")
	case "id":
		return (*shell).id
	case "help":
		return say("this is a simulated container; it knows: %s", strings.Join(commandNames, " "))
	}
	return nil
}

func baseName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// knownCommand says whether a container that runs the command is given to the
// shell.
func knownCommand(name string) bool { return lookup(name) != nil }

func (s *shell) command(argv []string) int {
	s.check()
	f := lookup(argv[0])
	if f == nil {
		fmt.Fprintf(s.err, "%s: not found in this simulated container; try help\n", argv[0])
		return 127
	}
	return f(s, argv[1:])
}

// id shows user and groups as numbers.
func (s *shell) id(args []string) int {
	user, group, groups := identity(s.c.spec.Security)
	all := strings.Trim(fmt.Sprint(groups), "[]")
	switch strings.Join(args, " ") {
	case "-u":
		fmt.Fprintln(s.out, user)
	case "-g":
		fmt.Fprintln(s.out, group)
	case "-G":
		fmt.Fprintln(s.out, all)
	default:
		fmt.Fprintf(s.out, "uid=%d gid=%d groups=%s\n", user, group, strings.ReplaceAll(all, " ", ","))
	}
	return 0
}

func (s *shell) directory() string {
	if s.c.spec.WorkingDir != "" {
		return s.c.spec.WorkingDir
	}
	return "/"
}

// sh runs a script, or what it reads.
func (s *shell) sh(args []string) int {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		if strings.Contains(args[0], "c") {
			if len(args) < 2 {
				fmt.Fprintln(s.err, "sh: -c requires an argument")
				return 2
			}
			return s.inner(func() int { return s.script(args[1]) })
		}
		args = args[1:]
	}
	return s.inner(func() int {
		for {
			if s.terminal != nil {
				fmt.Fprintf(s.out, "%s:%s# ", s.c.pod.Hostname, s.directory())
			}
			text, ok := s.readLine()
			if !ok {
				return s.status
			}
			if strings.TrimSpace(text) == "" {
				continue
			}
			s.status = s.script(text)
		}
	})
}

// inner runs what exit leaves.
func (s *shell) inner(f func() int) (code int) {
	defer func() {
		if r := recover(); r != nil {
			l, ok := r.(leave)
			if !ok || s.ctx.Err() != nil {
				panic(r)
			}
			code = l.code
		}
	}()
	return f()
}

// readLine reads a line of stdin; false at its end.
func (s *shell) readLine() (string, bool) {
	if s.in == nil {
		return "", false
	}
	var b []byte
	for {
		p, ok := s.in.read(s.ctx, 1)
		s.check()
		switch {
		case !ok:
			return string(b), len(b) > 0
		case p[0] == '\n':
			return string(b), true
		}
		b = append(b, p[0])
	}
}

func (s *shell) echo(args []string) int {
	end := "\n"
	if len(args) > 0 && args[0] == "-n" {
		args, end = args[1:], ""
	}
	fmt.Fprint(s.out, strings.Join(args, " ")+end)
	return 0
}

func (s *shell) printf(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(s.err, "usage: printf FORMAT [ARGUMENT...]")
		return 2
	}
	text := strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\\`, `\`).Replace(args[0])
	for _, a := range args[1:] {
		at := strings.IndexByte(text, '%')
		if at < 0 || at == len(text)-1 {
			break
		}
		text = text[:at] + a + text[at+2:]
	}
	fmt.Fprint(s.out, text)
	return 0
}

func (s *shell) cat(args []string) int {
	if len(args) == 0 {
		args = []string{"-"}
	}
	code := 0
	for _, a := range args {
		if a != "-" {
			data, err := s.c.files.read(a)
			if err != nil {
				fmt.Fprintf(s.err, "cat: %v\n", err)
				code = 1
				continue
			}
			_, _ = s.out.Write(data)
			continue
		}
		for s.in != nil {
			p, ok := s.in.read(s.ctx, 32<<10)
			s.check()
			if !ok {
				break
			}
			if _, err := s.out.Write(p); err != nil {
				return 1
			}
		}
	}
	return code
}

func (s *shell) sleep(args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(s.err, "usage: sleep SECONDS")
		return 1
	}
	d, err := time.ParseDuration(args[0])
	if err != nil {
		var seconds float64
		if seconds, err = strconv.ParseFloat(args[0], 64); err != nil {
			if args[0] != "infinity" {
				fmt.Fprintf(s.err, "sleep: invalid number %q\n", args[0])
				return 1
			}
			seconds = 1e9
		}
		d = time.Duration(seconds * float64(time.Second))
	}
	s.status = 0
	s.pause(d)
	return s.status
}

func (s *shell) exit(args []string) int {
	code := s.status
	if len(args) > 0 {
		var err error
		if code, err = strconv.Atoi(args[0]); err != nil {
			fmt.Fprintf(s.err, "exit: invalid number %q\n", args[0])
			code = 2
		}
	}
	panic(leave{code & 0xff})
}

func (s *shell) setTrap(args []string) int {
	if len(args) < 2 {
		fmt.Fprintln(s.err, "usage: trap COMMAND SIGNAL...")
		return 2
	}
	for _, signal := range args[1:] {
		if signal == "15" {
			signal = "TERM"
		}
		// The only signal that ever comes.
		if strings.TrimPrefix(signal, "SIG") == strings.TrimPrefix(cmp.Or(s.c.spec.StopSignal, "TERM"), "SIG") {
			s.trap, s.trapped = args[0], true
		}
	}
	return 0
}

func (s *shell) test(args []string) int {
	if len(args) > 0 && args[len(args)-1] == "]" {
		args = args[:len(args)-1]
	}
	truth := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	switch {
	case len(args) == 1:
		return truth(args[0] != "")
	case len(args) == 2 && args[0] == "-t":
		return truth(s.terminal != nil)
	case len(args) == 2 && args[0] == "-n":
		return truth(args[1] != "")
	case len(args) == 2 && args[0] == "-z":
		return truth(args[1] == "")
	case len(args) == 2 && (args[0] == "-f" || args[0] == "-e"):
		_, err := s.c.files.read(args[1])
		return truth(err == nil)
	case len(args) == 3 && (args[1] == "=" || args[1] == "==" || args[1] == "-eq"):
		return truth(args[0] == args[2])
	case len(args) == 3 && (args[1] == "!=" || args[1] == "-ne"):
		return truth(args[0] != args[2])
	case len(args) > 1 && args[0] == "!":
		return 1 - s.test(args[1:])
	}
	return 1
}

func (s *shell) printenv(args []string) int {
	if len(args) > 0 {
		v, ok := s.env[args[0]]
		if !ok {
			return 1
		}
		fmt.Fprintln(s.out, v)
		return 0
	}
	for _, name := range slices.Sorted(maps.Keys(s.env)) {
		fmt.Fprintf(s.out, "%s=%s\n", name, s.env[name])
	}
	return 0
}

func (s *shell) export(args []string) int {
	for _, a := range args {
		if name, value, ok := strings.Cut(a, "="); ok {
			s.env[name] = value
		}
	}
	return 0
}

// wait waits for background commands; a trap interrupts it.
func (s *shell) wait([]string) int {
	done := make(chan struct{})
	go func() {
		s.jobs.Wait()
		close(done)
	}()
	term := s.term
	if s.termed || s.trapped && s.trap == "" {
		term = nil
	}
	select {
	case <-done:
	case <-s.ctx.Done():
	case <-term:
	}
	s.check()
	return 0
}

func (s *shell) stty(args []string) int {
	if s.terminal == nil {
		fmt.Fprintln(s.err, "stty: standard input is not a terminal")
		return 1
	}
	if len(args) == 1 && args[0] == "size" {
		width, height := s.terminal.size()
		fmt.Fprintf(s.out, "%d %d\n", height, width)
	}
	return 0
}

func (s *shell) ls(args []string) int {
	dir := s.directory()
	if len(args) > 0 {
		dir = args[len(args)-1]
	}
	for _, name := range s.c.files.list(dir) {
		fmt.Fprintln(s.out, name)
	}
	return 0
}

func (s *shell) ps([]string) int {
	fmt.Fprintln(s.out, "PID   USER     COMMAND")
	pid := 1
	if s.c.pod.SharePID {
		fmt.Fprintln(s.out, "    1 root     holder")
		pid++
	}
	for _, c := range s.c.visible() {
		fmt.Fprintf(s.out, "%5d root     %s\n", pid, strings.Join(slices.Concat([]string{c.spec.Image}, c.spec.Command, c.spec.Args), " "))
		pid++
	}
	return 0
}

// grep prints the lines of a file that match: grep [-E] PATTERN FILE.
func (s *shell) grep(args []string) int {
	if len(args) > 0 && args[0] == "-E" {
		args = args[1:]
	}
	if len(args) != 2 {
		fmt.Fprintln(s.err, "usage: grep [-E] PATTERN FILE")
		return 2
	}
	pattern, err := regexp.Compile(args[0])
	if err != nil {
		fmt.Fprintf(s.err, "grep: %v\n", err)
		return 2
	}
	data, err := s.c.files.read(args[1])
	if err != nil {
		fmt.Fprintf(s.err, "grep: %v\n", err)
		return 2
	}
	code := 1
	for line := range strings.Lines(string(data)) {
		if pattern.MatchString(strings.TrimSuffix(line, "\n")) {
			fmt.Fprint(s.out, line)
			code = 0
		}
	}
	return code
}
