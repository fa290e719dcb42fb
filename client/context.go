package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/pki"
)

// Environment variables that choose the configuration.
const (
	// EnvConfig is the path of the configuration file.
	EnvConfig = "HOLDFAST_CONFIG"
	// EnvContext is the name of the context to use.
	EnvContext = "HOLDFAST_CONTEXT"
)

// Context is a cluster, and who one is there.
type Context struct {
	Name    string   `json:"name"`
	Cluster string   `json:"cluster"` // the cluster's id
	Peers   []string `json:"peers"`   // API addresses, host:port
	CA      string   `json:"ca"`      // PEM
	Cert    string   `json:"cert"`    // PEM, leaf first
	Key     string   `json:"key"`     // PEM, PKCS #8
}

// NewContext makes a context of credentials.
func NewContext(name string, peers []string, creds *pki.Credentials) (Context, error) {
	cert, key, ca, err := creds.PEM()
	if err != nil {
		return Context{}, err
	}
	return Context{Name: name, Cluster: creds.Identity().Cluster, Peers: slices.Clone(peers), CA: string(ca), Cert: string(cert), Key: string(key)}, nil
}

// Credentials reads the context's certificate and key.
func (c Context) Credentials() (*pki.Credentials, error) {
	creds, err := pki.CredentialsFromPEM([]byte(c.Cert), []byte(c.Key), []byte(c.CA))
	if err != nil {
		return nil, fmt.Errorf("context %s: %w; get its credentials from a peer again", c.Name, err)
	}
	if got := creds.Identity().Cluster; got != c.Cluster {
		return nil, fmt.Errorf("context %s: %w: it is for cluster %s and its certificate for %s", c.Name, pki.ErrWrongCluster, c.Cluster, got)
	}
	return creds, nil
}

// ConfigFile is the file with the contexts of a person.
type ConfigFile struct {
	// Current is the name of the context that is used when none is named.
	Current  string    `json:"current-context,omitempty"`
	Contexts []Context `json:"contexts"` // in order of their names

	path string
}

// DefaultConfigPath returns $HOLDFAST_CONFIG or, without it,
// ~/.config/holdfast/config.yaml ($XDG_CONFIG_HOME in place of ~/.config if set).
func DefaultConfigPath() (string, error) {
	if path := os.Getenv(EnvConfig); path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("where is the configuration? %w; set %s to the path of the file", err, EnvConfig)
	}
	return filepath.Join(dir, "holdfast", "config.yaml"), nil
}

// LoadConfig reads the file at path, or at [DefaultConfigPath] if path is empty.
// A file that does not exist is an empty one. It refuses a file that others can
// read, as it holds keys, and one with fields that it does not know.
func LoadConfig(path string) (*ConfigFile, error) {
	path, err := configPath(path)
	if err != nil {
		return nil, err
	}
	f := &ConfigFile{path: path}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("configuration %s: %w: it has mode %04o; run: chmod 600 %s", path, pki.ErrReadable, mode, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if err := yaml.UnmarshalStrict(data, f); err != nil {
		return nil, fmt.Errorf("configuration %s: %w; mend it, or move it away and make it anew", path, err)
	}
	seen := make(map[string]bool)
	for _, c := range f.Contexts {
		switch {
		case c.Name == "":
			return nil, fmt.Errorf("configuration %s: a context has no name", path)
		case seen[c.Name]:
			return nil, fmt.Errorf("configuration %s: there are two contexts %s; rename one", path, c.Name)
		case len(c.Peers) == 0:
			return nil, fmt.Errorf("configuration %s: context %s has no peers; add at least one API address, host:port", path, c.Name)
		}
		seen[c.Name] = true
	}
	return f, nil
}

func configPath(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	return DefaultConfigPath()
}

// Context returns the context with this name. An empty name means
// $HOLDFAST_CONTEXT, then the current one, then the only one there is.
func (f *ConfigFile) Context(name string) (Context, error) {
	from := ""
	if name == "" {
		if name = os.Getenv(EnvContext); name != "" {
			from = " (from " + EnvContext + ")"
		}
	}
	if name == "" {
		name = f.Current
		from = " (the current one)"
	}
	if len(f.Contexts) == 0 {
		return Context{}, fmt.Errorf("no cluster is known yet: %s has no context. Start a cluster with `holdfast dev`, or copy this file from where one is known", f.where())
	}
	if name == "" {
		if len(f.Contexts) == 1 {
			return f.Contexts[0], nil
		}
		return Context{}, fmt.Errorf("no context is current: choose one of %s with `holdfast context use NAME`, --context or %s", strings.Join(f.names(), ", "), EnvContext)
	}
	for _, c := range f.Contexts {
		if c.Name == name {
			return c, nil
		}
	}
	return Context{}, fmt.Errorf("there is no context %s%s in %s; there are %s", name, from, f.where(), strings.Join(f.names(), ", "))
}

func (f *ConfigFile) names() []string {
	var out []string
	for _, c := range f.Contexts {
		out = append(out, c.Name)
	}
	slices.Sort(out)
	return out
}

func (f *ConfigFile) where() string {
	if f.path == "" {
		return "the configuration"
	}
	return f.path
}

// Set adds c, or replaces the context of its name. The first one becomes the
// current one.
func (f *ConfigFile) Set(c Context) {
	f.Contexts = slices.DeleteFunc(f.Contexts, func(old Context) bool { return old.Name == c.Name })
	f.Contexts = append(f.Contexts, c)
	slices.SortFunc(f.Contexts, func(a, b Context) int { return strings.Compare(a.Name, b.Name) })
	if f.Current == "" {
		f.Current = c.Name
	}
}

// Remove takes the context with this name out and reports whether it was there.
// If it was the current one, none is current.
func (f *ConfigFile) Remove(name string) bool {
	before := len(f.Contexts)
	f.Contexts = slices.DeleteFunc(f.Contexts, func(c Context) bool { return c.Name == name })
	if f.Current == name {
		f.Current = ""
	}
	return len(f.Contexts) < before
}

// Save writes the file, whole or not at all, with mode 0600. An empty path means
// where it was loaded from. Programs that change the file use [UpdateConfig],
// lest they undo each other's changes.
func (f *ConfigFile) Save(path string) error {
	if path == "" {
		path = f.path
	}
	path, err := configPath(path)
	if err != nil {
		return err
	}
	data, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if err := writeConfig(path, data); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

func writeConfig(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".config-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// UpdateConfig loads the file at path (or [DefaultConfigPath] if empty), lets
// change do its work and saves it, while no other UpdateConfig does. If change
// fails, nothing is saved.
func UpdateConfig(path string, change func(*ConfigFile) error) error {
	path, err := configPath(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the configuration: %w", err)
	}
	defer lock.Close() // unlocks
	if err := flock(lock); err != nil {
		return err
	}
	f, err := LoadConfig(path)
	if err != nil {
		return err
	}
	if err := change(f); err != nil {
		return err
	}
	return f.Save(path)
}

// lockWait bounds the wait for another UpdateConfig, which reads and writes one
// small file.
const lockWait = 5 * time.Second

func flock(f *os.File) error {
	deadline := time.Now().Add(lockWait)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return fmt.Errorf("lock the configuration: %w", err)
		case time.Now().After(deadline):
			return fmt.Errorf("lock the configuration: another program has held %s for %v; end it and try again", f.Name(), lockWait)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
