package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// unhealthyAfter is how long the runtime may not answer before /healthz says so.
const unhealthyAfter = 60 * time.Second

// noSocket is the value of Config.Socket that asks for none.
const noSocket = "none"

// maxSocketPath is what Linux allows for the path of a unix socket.
const maxSocketPath = 107

// serveLocal serves /healthz, /metrics and /debug/pprof on a unix socket that
// only its owner may open. The agent has no TCP port.
func (a *Agent) serveLocal(ctx context.Context) error {
	if a.cfg.Socket == noSocket {
		return nil
	}
	if len(a.cfg.Socket) > maxSocketPath {
		a.log.Warn("no socket for health and metrics: its path is too long; set Socket to a shorter one",
			"path", a.cfg.Socket, "length", len(a.cfg.Socket), "most", maxSocketPath)
		return nil
	}
	// One agent at a time has the data directory, so a socket there is left over.
	if err := os.Remove(a.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("agent: remove old socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", a.cfg.Socket)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if err := os.Chmod(a.cfg.Socket, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("agent: %w", err)
	}
	server := &http.Server{Handler: a.localHandler(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("agent: serve %s: %w", a.cfg.Socket, err)
	}
	return nil
}

func (a *Agent) localHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		listed, err := a.pods.health()
		_, revision, peer, _ := a.session.state()
		if peer == "" {
			peer = "none"
		}
		switch {
		case listed.IsZero():
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "starting: the container runtime was not listed yet\n")
		case time.Since(listed) > unhealthyAfter:
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "the container runtime does not answer since %s: %v\n", listed.Format(time.RFC3339), err)
		default:
			fmt.Fprintf(w, "ok\n")
		}
		// Without a peer a node still does its work, so that is no failure.
		fmt.Fprintf(w, "peer: %s\ndesired revision: %d\n", peer, revision)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.gatherer, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
