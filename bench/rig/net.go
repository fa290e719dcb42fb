package rig

import (
	"context"
	"net"
	"time"
)

// freeAddress returns an address of this machine where nobody listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// FreeAddresses returns n of them.
func FreeAddresses(n int) ([]string, error) {
	out := make([]string, n)
	for i := range out {
		var err error
		if out[i], err = freeAddress(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Pause waits for d, or returns why ctx has ended.
func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// PIDsOf returns the pids of the processes that there are.
func PIDsOf(procs []*Process) []int {
	var out []int
	for _, p := range procs {
		if p != nil {
			out = append(out, p.PID())
		}
	}
	return out
}
