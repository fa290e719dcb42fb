package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dial connects to a TCP port in a pod's network namespace: where a program on
// localhost of the pod would find it, or else at the pod's own address. It returns
// runtime.ErrNotFound for an unknown pod.
func (r *Runtime) Dial(ctx context.Context, podUID string, port uint16) (net.Conn, error) {
	if err := checkPodUID(podUID); err != nil {
		return nil, err
	}
	pod, err := r.readPod(podUID)
	if err != nil {
		return nil, err
	}
	if pod.NetNS == "" {
		return dialLocal(ctx, port)
	}
	var conn net.Conn
	// The socket is of the namespace that its thread is in when it is made. A
	// numeric address is dialed on the calling goroutine's thread.
	err = onThrowAwayThread(func() error {
		ns, err := unix.Open(pod.NetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the pod's network namespace %s: %w", pod.NetNS, err)
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the pod's network namespace: %w", err)
		}
		conn, err = dialLocal(ctx, port)
		return err
	})
	return conn, err
}

// dialLocal tries the loopback addresses, then the others of the machine or
// namespace that the calling thread is in. It returns the first one's error.
func dialLocal(ctx context.Context, port uint16) (net.Conn, error) {
	hosts := []string{"127.0.0.1", "::1"}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
				hosts = append(hosts, ip.IP.String())
			}
		}
	}
	var (
		dialer net.Dialer
		first  error
	)
	for _, host := range hosts {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.ENETUNREACH) {
			break
		}
	}
	return nil, first
}
