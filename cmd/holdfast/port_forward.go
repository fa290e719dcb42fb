package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// forwardPatience is how long a new connection waits for a peer, and for a pod of
// the workload to be ready.
const forwardPatience = 10 * time.Second

type forwardFlags struct {
	addresses []string
}

func (a *app) portForwardCommand() *cobra.Command {
	var f forwardFlags
	cmd := &cobra.Command{
		Use:   "port-forward POD | KIND/NAME [LOCAL:]REMOTE...",
		Short: "Reach ports of a pod from this machine",
		Long: `Listen on ports of this machine and carry each connection to a port of a pod, until
interrupted. A port is a number, or the name that a container of the pod gives it;
":80" takes any free port of this machine. Only this machine can connect, unless
--address says otherwise.

Of a workload such as deploy/web, each connection goes to a pod that is ready then. A
peer that dies breaks the connections that went through it; new ones go through
another. Only TCP is carried.`,
		Example: `  holdfast port-forward web-7f2ab 8080:80
  holdfast port-forward deploy/web 8080:http :9090
  holdfast port-forward --address 0.0.0.0 web-7f2ab 80`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return failf(exitUsage, "want a pod and a port, such as: holdfast port-forward web-7f2ab 8080:80")
			}
			return nil
		},
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runPortForward(cmd.Context(), f, args[0], args[1:])
		},
	}
	cmd.Flags().StringSliceVar(&f.addresses, "address", []string{"localhost"}, "addresses of this machine to listen on; 0.0.0.0 means all")
	return cmd
}

// forwardedPort is one port to listen on.
type forwardedPort struct {
	local  uint16 // 0: any
	remote string // number or name
}

// parsePorts reads [LOCAL:]REMOTE.
func parsePorts(args []string) ([]forwardedPort, error) {
	var ports []forwardedPort
	for _, arg := range args {
		local, remote, both := strings.Cut(arg, ":")
		if !both {
			remote = local
		}
		number := func(text string, least uint64) (uint16, error) {
			n, err := strconv.ParseUint(text, 10, 16)
			if err != nil || n < least {
				return 0, failf(exitUsage, "port %q: %q is no port: want [LOCAL:]REMOTE, such as 8080:80", arg, text)
			}
			return uint16(n), nil
		}
		p := forwardedPort{remote: remote}
		_, err := strconv.Atoi(remote)
		named := err != nil && remote != ""
		if !named {
			n, err := number(remote, 1)
			if err != nil {
				return nil, err
			}
			p.local = n
		}
		switch {
		case both && local == "":
			p.local = 0
		case both:
			if p.local, err = number(local, 0); err != nil {
				return nil, err
			}
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func (a *app) runPortForward(ctx context.Context, f forwardFlags, arg string, args []string) error {
	ports, err := parsePorts(args)
	if err != nil {
		return err
	}
	res, name, err := parseTarget(arg)
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	fw := &forwarder{app: a, r: r, res: res, name: name}
	// What is wrong shows now, not with the first connection.
	pod, target, err := fw.choose(ctx)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if _, err := target.port(pod, p.remote); err != nil {
			return failf(exitNotFound, "%w", err)
		}
	}
	listeners, err := a.listen(ctx, f.addresses, ports)
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	defer group.Wait()
	for _, l := range listeners {
		fmt.Fprintf(a.stdout, "Forwarding from %s -> %s\n", l.Addr(), l.remote)
		defer context.AfterFunc(ctx, func() { l.Close() })()
		group.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					cancel(err)
					return
				}
				group.Go(func() {
					defer conn.Close()
					if err := fw.carry(ctx, conn, l.remote); err != nil {
						a.note("Connection from %s to %s: %v", conn.RemoteAddr(), l.remote, err)
						if isNotFound(err) && res.Kind == "Pod" {
							cancel(failf(exitNotFound, "pod/%s is gone", name))
						}
					}
				})
			}
		})
	}
	<-ctx.Done()
	var gone *failure
	if errors.As(context.Cause(ctx), &gone) {
		return gone
	}
	return exit(exitInterrupted)
}

// listener is a port of this machine and what it leads to.
type listener struct {
	net.Listener
	remote string
}

// listen opens all ports. Of localhost one address is enough, since a machine may
// lack the other; any free port is the same on all addresses.
func (a *app) listen(ctx context.Context, addresses []string, ports []forwardedPort) ([]listener, error) {
	var (
		out []listener
		lc  net.ListenConfig
	)
	for _, p := range ports {
		for _, address := range addresses {
			hosts := []string{address}
			if address == "localhost" {
				hosts = []string{"127.0.0.1", "::1"}
			}
			var failed error
			opened := 0
			for _, host := range hosts {
				l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(p.local))))
				if err != nil {
					failed = errors.Join(failed, err)
					continue
				}
				if p.local == 0 {
					p.local = uint16(l.Addr().(*net.TCPAddr).Port)
				}
				opened++
				out = append(out, listener{l, p.remote})
			}
			if opened == 0 {
				return out, failf(exitError, "%w: choose another port of this machine, as in 18080:%s", failed, p.remote)
			}
		}
	}
	return out, nil
}

// parseTarget reads POD or KIND/NAME of what connections can go to.
func parseTarget(arg string) (object.Resource, string, error) {
	if kind, name, ok := strings.Cut(arg, "/"); ok && name != "" {
		if res, err := object.ResourceFor(kind); err == nil && res.Kind == "Service" {
			return res, name, nil
		}
	}
	return parseWorkload(arg)
}

// forwarder carries connections to one target.
type forwarder struct {
	app  *app
	r    *remote
	res  object.Resource
	name string
}

// target translates ports.
type target struct{ service *corev1.Service }

// port returns the number of a port of the pod.
func (t target) port(pod *corev1.Pod, remote string) (uint32, error) {
	if t.service != nil {
		for _, p := range t.service.Spec.Ports {
			if p.Name != remote && strconv.Itoa(int(p.Port)) != remote {
				continue
			}
			remote = p.TargetPort.String()
			if p.TargetPort.IntValue() == 0 && p.TargetPort.StrVal == "" {
				remote = strconv.Itoa(int(p.Port))
			}
			return target{}.port(pod, remote)
		}
		return 0, fmt.Errorf("service/%s has no port %s", t.service.Name, remote)
	}
	if n, err := strconv.ParseUint(remote, 10, 16); err == nil {
		return uint32(n), nil
	}
	var names []string
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == remote {
				return uint32(p.ContainerPort), nil
			}
			if p.Name != "" {
				names = append(names, p.Name)
			}
		}
	}
	slices.Sort(names)
	return 0, fmt.Errorf("pod/%s has no port named %q; it has %s", pod.Name, remote, orNone(names))
}

// choose returns the pod that a connection goes to now.
func (f *forwarder) choose(ctx context.Context) (*corev1.Pod, target, error) {
	a, name, t := f.app, f.name, target{}
	if f.res.Kind == "Service" {
		obj, _, err := a.get(ctx, f.r, f.res, a.inNamespace(), name, nil)
		if err != nil {
			return nil, t, err
		}
		t.service = obj.(*corev1.Service)
	}
	if f.res.Kind != "Pod" {
		var err error
		if name, err = a.readyPod(ctx, f.r, f.res, name); err != nil {
			return nil, t, err
		}
	}
	obj, _, err := a.get(ctx, f.r, mustResource("pods"), a.inNamespace(), name, nil)
	if err != nil {
		return nil, t, err
	}
	return obj.(*corev1.Pod), t, nil
}

// carry carries one connection until it ends. Until the pod has it, another peer is
// tried when one fails.
func (f *forwarder) carry(ctx context.Context, conn net.Conn, remote string) error {
	a := f.app
	began := a.now()
	for pause := watchRetry; ; pause = min(2*pause, watchRetryMax) {
		pod, target, err := f.choose(ctx)
		var port uint32
		if err == nil {
			port, err = target.port(pod, remote)
		}
		if err != nil {
			return err
		}
		carried, cancel := context.WithCancel(ctx)
		stream, err := f.open(carried, pod.Name, port)
		if err == nil {
			a.note("Connection from %s to %s of pod/%s", conn.RemoteAddr(), remote, pod.Name)
			err = splice(carried, cancel, conn, stream)
			cancel()
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("it broke: %w", a.explain(ctx, f.r, "", err))
			}
			return nil
		}
		cancel()
		if code := connect.CodeOf(err); code != connect.CodeUnavailable || a.now().Sub(began) > forwardPatience {
			return a.explain(ctx, f.r, "", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// open returns a connection to a port of a pod.
func (f *forwarder) open(ctx context.Context, pod string, port uint32) (holdfastv1connect.PodServicePortForwardClientStream, error) {
	stream, err := f.r.pods.PortForward(ctx)
	if err != nil {
		return stream, err
	}
	closeWith(ctx, stream)
	err = stream.Send(&holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_Start{Start: &holdfastv1.PortForwardStart{
		Namespace: f.app.inNamespace(), Pod: pod, Port: port,
	}}})
	if err == nil || errors.Is(err, io.EOF) {
		_, err = stream.Receive()
	}
	if err != nil {
		stream.Close()
	}
	return stream, err
}

// splice joins a connection of this machine with one of a pod until both directions
// have ended, or one has broken.
func splice(ctx context.Context, cancel func(), conn net.Conn, stream holdfastv1connect.PodServicePortForwardClientStream) error {
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.Copy(sendData(func(p []byte) error {
			return stream.Send(&holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_Data{Data: append([]byte(nil), p...)}})
		}), conn)
		if err != nil {
			cancel() // this machine's end is gone: the pod's should be, too
			return
		}
		_ = stream.Send(&holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_CloseWrite{CloseWrite: true}})
	}()
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(m.GetData()) > 0 {
			if _, err := conn.Write(m.GetData()); err != nil {
				cancel()
				<-sent
				return nil // whoever connected has gone
			}
		}
		if m.GetCloseWrite() {
			if c, ok := conn.(interface{ CloseWrite() error }); ok {
				_ = c.CloseWrite()
			}
		}
	}
}

// sendData is a writer.
type sendData func([]byte) error

func (f sendData) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}
