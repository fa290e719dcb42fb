package devcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrNotUp is returned by a Control when no cluster runs on its directory.
var ErrNotUp = errors.New("no development cluster is up")

// Listen opens the control socket of a cluster, for [Serve]. The socket lies in
// the data directory, for its owner alone.
func Listen(c *Cluster) (net.Listener, error) {
	path, closeDir, err := socketPath(c.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	defer closeDir()
	// The cluster holds the directory's lock, so a socket there is left over.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the control socket: %w", err)
	}
	// Its own path may be of a descriptor that is closed then.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// Serve answers the control socket until ctx ends, and closes it.
func Serve(ctx context.Context, c *Cluster, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /machines", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c.Machines())
	})
	act := func(f func(context.Context, string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			// A caller that goes away does not leave a machine half started.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), bootTimeout+killTimeout)
			defer cancel()
			err := f(ctx, r.PathValue("name"))
			switch {
			case errors.Is(err, ErrNoMachine):
				http.Error(w, err.Error(), http.StatusNotFound)
			case err != nil:
				http.Error(w, err.Error(), http.StatusConflict)
			default:
				w.WriteHeader(http.StatusNoContent)
			}
		}
	}
	mux.HandleFunc("POST /machines/{name}/start", act(c.Start))
	mux.HandleFunc("POST /machines/{name}/kill", act(c.Kill))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		err := server.Close()
		<-ended
		return err
	}
}

// Control talks to the cluster that runs on a data directory. Safe for
// concurrent use.
type Control struct {
	dataDir string
	http    *http.Client
}

// Dial returns a Control. It connects with the first call.
func Dial(dataDir string) *Control {
	return &Control{dataDir: dataDir, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			path, closeDir, err := socketPath(dataDir)
			if err != nil {
				return nil, err
			}
			defer closeDir()
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Machines returns all machines, peers first.
func (c *Control) Machines(ctx context.Context) ([]Machine, error) {
	body, err := c.call(ctx, http.MethodGet, "/machines")
	if err != nil {
		return nil, err
	}
	var machines []Machine
	if err := json.Unmarshal(body, &machines); err != nil {
		return nil, fmt.Errorf("read the answer of the development cluster: %w", err)
	}
	return machines, nil
}

// Start starts a machine and returns once it is ready.
func (c *Control) Start(ctx context.Context, machine string) error {
	_, err := c.call(ctx, http.MethodPost, "/machines/"+machine+"/start")
	return err
}

// Kill ends everything on a machine at once and returns when all of it is gone.
func (c *Control) Kill(ctx context.Context, machine string) error {
	_, err := c.call(ctx, http.MethodPost, "/machines/"+machine+"/kill")
	return err
}

func (c *Control) call(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://dev"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s: `holdfast dev` starts one; say --data-dir if yours is elsewhere", ErrNotUp, c.dataDir)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("no permission to control the development cluster on %s: it belongs to another user (root, if it has containers)", c.dataDir)
	case err != nil:
		return nil, fmt.Errorf("ask the development cluster on %s: %w", c.dataDir, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("ask the development cluster on %s: %w", c.dataDir, err)
	}
	message := string(bytes.TrimSpace(body))
	if res.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%w%s", ErrNoMachine, strings.TrimPrefix(message, ErrNoMachine.Error()))
	}
	if res.StatusCode >= 300 {
		return nil, errors.New(message)
	}
	return body, nil
}

// socketPath returns a path to the control socket that is short enough for a
// socket's address (108 bytes) however long the data directory's name is: by way
// of an open descriptor of the directory, which the caller closes after use.
func socketPath(dataDir string) (string, func(), error) {
	direct := filepath.Join(dataDir, socketFile)
	if len(direct) < 100 {
		return direct, func() {}, nil
	}
	dir, err := os.Open(dataDir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketFile), func() { _ = dir.Close() }, nil
}
