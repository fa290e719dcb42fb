package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/client"
)

// defaultProxyAddress is where kubectl's own proxy listens, too.
const defaultProxyAddress = "127.0.0.1:8001"

func (a *app) proxyCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Let programs that know one address reach whichever peer answers",
		Long: `Listen on this machine and pass requests on to whichever peer answers, with the
context's certificate: for kubectl, Helm, curl and other programs that know only
one address of a cluster. When a peer dies, the next one takes over within
seconds; a request that a peer may have carried out is not repeated, and watches
and logs break off, as if that peer had been asked directly.

Who reaches the proxy has the context's rights, without a key. So it listens on
loopback only, or on a Unix socket that only its owner may open.`,
		Example: `  holdfast proxy
  holdfast proxy --listen 127.0.0.1:9001
  holdfast proxy --listen unix:/run/user/1000/holdfast.sock
  kubectl --server http://127.0.0.1:8001 get pods`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runProxy(cmd.Context(), listen) },
	}
	cmd.Flags().StringVar(&listen, "listen", defaultProxyAddress, "loopback address host:port, or unix:PATH")
	return cmd
}

func (a *app) runProxy(ctx context.Context, address string) error {
	c, err := a.currentContext()
	if err != nil {
		return err
	}
	if len(a.peers) > 0 {
		c.Peers = a.peers
	}
	creds, err := c.Credentials()
	if err != nil {
		return err
	}
	listener, err := listenLoopback(ctx, address)
	if err != nil {
		return err
	}
	defer listener.Close()
	conn := client.New(client.Config{Peers: c.Peers, Credentials: creds})
	defer conn.Close()
	at := listener.Addr().String()
	fmt.Fprintf(a.stdout, "Serving cluster %s on %s. Ctrl-C stops it.\n", c.Name, at)
	if !strings.HasPrefix(address, "unix:") {
		fmt.Fprintf(a.stdout, "  kubectl --server http://%s get nodes\n  holdfast kubeconfig --proxy %s --file ~/.kube/holdfast\n", at, at)
	}
	return serveProxy(ctx, listener, conn.HTTP())
}

// listenLoopback listens where only this machine can reach.
func listenLoopback(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		// A socket that a dead proxy left is in the way; a live one answers.
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, failf(exitError, "--listen %s: another program listens there", address)
		}
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		listener, err := config.Listen(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		if err := os.Chmod(path, 0o600); err != nil {
			listener.Close()
			return nil, err
		}
		return listener, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, failf(exitUsage, "--listen %s: want host:port on loopback, such as %s, or unix:PATH", address, defaultProxyAddress)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, failf(exitUsage, "--listen %s is not on loopback: whoever reaches the proxy has your rights; take 127.0.0.1, or unix:PATH", address)
	}
	return config.Listen(ctx, "tcp", address)
}

// serveProxy passes requests on until ctx ends.
func serveProxy(ctx context.Context, listener net.Listener, to http.RoundTripper) error {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", "holdfast" // to chooses a peer
		},
		Transport:     to,
		FlushInterval: -1, // a watch's events go out as they come
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprintf(w, "holdfast proxy: %v\n", err)
		},
	}
	server := &http.Server{
		Handler:           onlyFromHere(proxy),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// onlyFromHere refuses what a web page in a browser on this machine may send to a
// loopback address: requests by another name (DNS rebinding), and from another
// origin.
func onlyFromHere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		_, unix := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
		if !unix && host != "localhost" && (ip == nil || !ip.IsLoopback()) || r.Header.Get("Origin") != "" {
			http.Error(w, "holdfast proxy: only for programs on this machine that ask for it by its loopback address", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
