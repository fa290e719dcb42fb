package main

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// console is the terminal that a person sits at.
type console struct{ in *os.File }

// console returns the terminal that standard input is, or nil.
func (a *app) console() *console {
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return &console{f}
}

func (c *console) size() *holdfastv1.TerminalSize {
	width, height, err := term.GetSize(int(c.in.Fd()))
	if err != nil || width < 0 || height < 0 {
		return nil
	}
	return &holdfastv1.TerminalSize{Width: uint32(width), Height: uint32(height)}
}

// raw passes every key on as it is, Ctrl-C too. The returned function undoes it.
func (c *console) raw() (restore func(), err error) {
	state, err := term.MakeRaw(int(c.in.Fd()))
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(int(c.in.Fd()), state) }, nil
}

// onResize calls f with each new size until the returned function is called.
func (c *console) onResize(f func(*holdfastv1.TerminalSize)) (stop func()) {
	changed := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		for {
			select {
			case <-changed:
				if size := c.size(); size != nil {
					f(size)
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		close(done)
	}
}
