package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/holdfast-io/holdfast/"

// rule is one line of the import table in docs/architecture.md.
type rule struct {
	pkg string   // the package and all below it, unless a longer rule exists
	may []string // of ours, with all below each; "*" is everything
	ban map[string]string
}

// rules is the import law. A package that no rule names fails the test, so that
// a new room gets its line here and in docs/architecture.md.
var rules = []rule{
	{pkg: "proto", may: []string{"proto"}},
	{pkg: "object", may: []string{"proto", "object"}, ban: map[string]string{
		"net":       "objects are data; reading and writing them elsewhere keeps this package testable as text",
		"os":        "no I/O: manifests come in as bytes",
		"net/http":  "no I/O",
		"log/slog":  "pure functions report through what they return",
		"math/rand": "identity and chance are stamped by the peer that proposes",
	}},
	{pkg: "object/openapi", may: []string{"object"}, ban: map[string]string{
		"net": "documents are made of what is embedded",
		"os":  "no I/O: the schemas are embedded",
	}},
	{pkg: "object/patch", may: []string{"object", "object/openapi"}, ban: map[string]string{
		"net":       "a patch is bytes, and so is what comes out",
		"os":        "no I/O",
		"log/slog":  "pure functions report through what they return",
		"math/rand": "identity and chance are stamped by the peer that proposes",
	}},
	{pkg: "raftstore/mvcc", may: []string{"proto", "raftstore/mvcc"}, ban: map[string]string{
		"github.com/hashicorp/raft": "the state machine must be replayable without a cluster",
		"net":                       "applying an entry does no I/O",
		"os":                        "applying an entry does no I/O",
		"time":                      "applying an entry reads no clock: replicas would differ",
		"math/rand":                 "applying an entry draws no random number: replicas would differ",
		"math/rand/v2":              "applying an entry draws no random number: replicas would differ",
		"log/slog":                  "the caller reports; the state machine is silent",
		"sync":                      "one goroutine applies; readers have immutable snapshots",
	}},
	{pkg: "raftstore/seal", may: []string{"raftstore/seal"}, ban: map[string]string{
		"github.com/hashicorp/raft": "sealing knows bytes, indexes and keys; what they mean is the store's",
		"net":                       "keys that lie elsewhere come in through an interface",
	}},
	{pkg: "raftstore", may: []string{"proto", "object", "raftstore", "pki", "internal/faults"}},
	{pkg: "gossip", may: []string{"gossip", "internal/faults"}},
	{pkg: "pki", may: []string{"proto"}},
	{pkg: "client", may: []string{"proto", "object", "pki", "client", "internal/wire"}},
	{pkg: "apiserver", may: []string{"proto", "object", "raftstore", "pki", "apiserver"}, ban: map[string]string{
		module + "apiserver/kube": "the REST dialect stands on the handlers; peer puts the two together",
	}},
	{pkg: "apiserver/etcd", may: []string{"proto", "raftstore", "pki"}},
	{pkg: "apiserver/nodeauth", may: []string{"object"}, ban: map[string]string{
		"net":  "what is a node's is decided from a state alone",
		"time": "a right follows from what stands in the state, at no time in particular",
	}},
	{pkg: "apiserver/rbac", may: []string{"object"}},
	{pkg: "apiserver/keyring", may: []string{"object", "raftstore/seal"}, ban: map[string]string{
		"net": "keys and Secrets come in as they are stored",
		"os":  "no I/O: the ring is a value of the store",
	}},
	{pkg: "apiserver/audit", may: []string{"proto"}, ban: map[string]string{
		"github.com/hashicorp/raft": "each peer keeps its own records: nothing steady is replicated",
		"net":                       "it is files; asking other peers is the API's",
	}},
	{pkg: "apiserver/kube", may: []string{"proto", "object", "apiserver"}},
	{pkg: "scheduler", may: []string{"proto", "object", "raftstore", "scheduler"}},
	{pkg: "controllers", may: []string{"proto", "object", "raftstore", "controllers"}},
	{pkg: "agent", may: []string{"proto", "object", "client", "pki", "agent"}},
	{pkg: "peer", may: []string{"proto", "object", "raftstore", "gossip", "pki", "client", "apiserver", "scheduler", "controllers", "peer", "internal/datadir", "internal/faults", "internal/wire"}},
	{pkg: "node", may: []string{"proto", "client", "gossip", "pki", "agent", "internal/datadir"}},
	{pkg: "cmd", may: []string{"*"}},
	{pkg: "examples", may: []string{"proto", "object", "client", "internal/ociimage"}},
	{pkg: "internal/datadir", may: nil},
	{pkg: "internal/devcluster", may: []string{"client", "internal/devcluster"}},
	{pkg: "internal/archtest", may: nil},
	{pkg: "internal/chaos", may: []string{"proto", "client", "pki", "raftstore", "internal/chaos", "internal/devcluster", "internal/faults"}},
	{pkg: "internal/chaos/volatile", may: nil},
	{pkg: "internal/faults", may: nil},
	{pkg: "internal/golden", may: nil},
	{pkg: "internal/mutants", may: nil},
	{pkg: "internal/leftovers", may: nil},
	{pkg: "internal/ociimage", may: nil},
	{pkg: "internal/podbench", may: []string{"proto", "object", "agent", "internal/ociimage"}},
	{pkg: "internal/openapigen", may: nil},
	{pkg: "internal/systemtest", may: nil},
	{pkg: "internal/testcluster", may: []string{"*"}},
	{pkg: "internal/wire", may: nil},
}

// thirdParty bans libraries outside the one package that wraps them.
var thirdParty = map[string]struct {
	only   []string
	why    string
	except string // a package below it that anybody may import
}{
	"github.com/containerd/containerd":     {[]string{"agent/containerd"}, "one importer of containerd's client, so that another runtime is one package", ""},
	"github.com/hashicorp/memberlist":      {[]string{"gossip"}, "gossip is a hint; nobody else may take it for more", ""},
	"github.com/hashicorp/raft":            {[]string{"raftstore"}, "raft stands behind the store's contract", ""},
	"github.com/miekg/dns":                 {[]string{"agent/dns"}, "its successor is another module: one package to change", ""},
	"github.com/vishvananda/netlink":       {[]string{"agent/network", "cmd/holdfast", "internal/chaos", "internal/devcluster"}, "links and routes are made in one place, and in the dev cluster's switch", ""},
	"golang.zx2c4.com/wireguard":           {[]string{"agent/network"}, "as netlink: what goes between nodes is decided in one place", ""},
	"github.com/hanwen/go-fuse":            {[]string{"internal/chaos/volatile"}, "file systems in user space are for breaking things", ""},
	"github.com/spf13/cobra":               {[]string{"cmd"}, "only the binary has a command line", ""},
	"go.etcd.io/etcd":                      {[]string{"apiserver/etcd"}, "etcd's messages are for etcd's clients; nothing else speaks them", ""},
	"k8s.io/client-go":                     {nil, "clients speak Connect; client-go is a thousand packages", "k8s.io/client-go/util/jsonpath"},
	"k8s.io/apiserver":                     {nil, "our API server is ours; theirs is a thousand packages", ""},
	"github.com/containerd/containerd/api": {[]string{"agent/containerd"}, "as containerd's client", ""},
}

type goPackage struct {
	ImportPath   string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports", "../../...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list found %d packages, want the whole module", len(pkgs))
	}
	return pkgs
}

func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// ruleFor returns the longest rule that covers pkg.
func ruleFor(pkg string) (rule, bool) {
	var best rule
	for _, r := range rules {
		if within(pkg, r.pkg) && len(r.pkg) > len(best.pkg) {
			best = r
		}
	}
	return best, best.pkg != ""
}

// TestImportLaw holds the import table of docs/architecture.md. Imports of tests
// are free: a test may bring parts together that must not know each other.
func TestImportLaw(t *testing.T) {
	for _, p := range packages(t) {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		r, ok := ruleFor(pkg)
		if !ok {
			t.Errorf("%s: no rule covers it; add one here and in docs/architecture.md", pkg)
			continue
		}
		testHelper := strings.HasSuffix(pkg, "test") || strings.HasSuffix(pkg, "/conformance")
		for _, imp := range p.Imports {
			if why, banned := r.ban[imp]; banned {
				t.Errorf("%s imports %s: %s", pkg, imp, why)
			}
			for prefix, law := range thirdParty {
				if !within(imp, prefix) || imp == law.except {
					continue
				}
				if !slices.ContainsFunc(law.only, func(only string) bool { return within(pkg, only) }) {
					t.Errorf("%s imports %s: %s", pkg, imp, law.why)
				}
			}
			ours, isOurs := strings.CutPrefix(imp, module)
			if !isOurs || slices.Contains(r.may, "*") || testHelper {
				continue
			}
			if !slices.ContainsFunc(r.may, func(may string) bool { return within(ours, may) }) {
				t.Errorf("%s imports %s: the import table of docs/architecture.md does not allow it", pkg, ours)
			}
		}
	}
}

// TestRulesAreAlive fails for a rule whose package is gone: a law about nothing
// hides that the thing it guarded has moved.
func TestRulesAreAlive(t *testing.T) {
	pkgs := packages(t)
	for _, r := range rules {
		if !slices.ContainsFunc(pkgs, func(p goPackage) bool {
			return within(strings.TrimPrefix(p.ImportPath, module), r.pkg)
		}) {
			t.Errorf("rule for %s: no such package", r.pkg)
		}
	}
}
