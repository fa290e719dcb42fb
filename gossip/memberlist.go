package gossip

import (
	"bytes"
	"fmt"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/hashicorp/memberlist"
)

// memberlist keeps to itself whether a member is suspect and whether a dead one
// has said goodbye: Node.State is not maintained, and events tell only coming
// and going. Its own accessor knows, under its lock, so it is linked to here.
// If a later version loses it, the program no longer links, which is loud
// enough; TestSuspectThenDead and TestLeave fail if it changes its meaning.
//
// It panics for a name that memberlist has forgotten, which happens
// GossipToTheDeadTime after a death at the earliest. So it may be called only
// for members that are alive as far as we know, or died just now.
//
//go:linkname nodeState github.com/hashicorp/memberlist.(*Memberlist).getNodeState
func nodeState(m *memberlist.Memberlist, name string) memberlist.NodeStateType

// delegate answers memberlist's callbacks. memberlist calls them with its lock
// held: they must not call back.
type delegate struct {
	g *Gossip
}

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.AliveDelegate    = delegate{}
	_ memberlist.MergeDelegate    = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
)

func (d delegate) NodeMeta(int) []byte                  { return d.g.meta }
func (d delegate) NotifyMsg([]byte)                     {}
func (d delegate) GetBroadcasts(int, int) [][]byte      { return nil }
func (d delegate) LocalState(bool) []byte               { return nil }
func (d delegate) MergeRemoteState([]byte, bool)        {}
func (d delegate) NotifyJoin(n *memberlist.Node)        { d.g.observe(n, false) }
func (d delegate) NotifyUpdate(n *memberlist.Node)      { d.g.observe(n, false) }
func (d delegate) NotifyLeave(n *memberlist.Node)       { d.g.observe(n, true) }
func (d delegate) NotifyAlive(n *memberlist.Node) error { return d.g.admit(n) }

// NotifyMerge refuses the whole exchange if one of the living does not fit:
// what else comes with it is not to be believed either.
func (d delegate) NotifyMerge(nodes []*memberlist.Node) error {
	for _, n := range nodes {
		if n.State == memberlist.StateAlive || n.State == memberlist.StateSuspect {
			if err := d.g.admit(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// NotifyConflict tells people about a name that two machines claim, or that a
// machine claims from a new address while the old one is not yet dead.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.g.limited("conflict "+existing.Name+other.Address(), func() {
		d.g.log.Warn("gossip: a name is claimed from a second address; if the machine has moved, this ends by itself when its old address is dead",
			"member", existing.Name, "address", existing.Address(), "claimed_from", other.Address())
	})
}

// admit says whether a member fits into this cluster as far as gossip can tell.
// Key and label have been checked before.
func (g *Gossip) admit(n *memberlist.Node) error {
	if _, err := decodeMeta(n.Meta); err != nil {
		return fmt.Errorf("member %q at %s refused: %w", n.Name, n.Address(), err)
	}
	if n.Name == "" || len(n.Name) > maxName {
		return fmt.Errorf("member at %s refused: name of %d characters", n.Address(), len(n.Name))
	}
	return nil
}

// logWriter hands memberlist's lines to slog, at debug level: what matters of
// them is logged by Gossip itself, as a change of state.
type logWriter struct {
	g *Gossip
}

func newMemberlistLogger(g *Gossip) *log.Logger { return log.New(logWriter{g}, "", 0) }

func (w logWriter) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	if level, rest, ok := strings.Cut(text, "] "); ok && strings.HasPrefix(level, "[") {
		text = rest
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	for _, sign := range foreignSigns {
		if strings.Contains(text, sign) {
			w.g.limited("foreign", func() {
				w.g.log.Warn("gossip: somebody speaks with another key or for another cluster; ignored. If it is a machine of this cluster, join it again", "error", text)
			})
			return len(line), nil
		}
	}
	w.g.log.Debug("gossip: "+text, "source", "memberlist")
	return len(line), nil
}

// foreignSigns are parts of what memberlist logs about packets and streams of
// another cluster.
var foreignSigns = []string{"Decrypt packet failed", "No installed keys could decrypt", "unacceptable label", "double packet label", "Remote state is encrypted", "failed to decrypt"}

// limits remembers when something was last said, to say it once in a while.
type limits struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// limited calls say at most once a minute for each key. It keeps few keys: when
// there are too many, it forgets them all.
func (g *Gossip) limited(key string, say func()) {
	g.limits.mu.Lock()
	last, ok := g.limits.last[key]
	now := time.Now()
	due := !ok || now.Sub(last) >= time.Minute
	if due {
		if g.limits.last == nil || len(g.limits.last) > 100 {
			g.limits.last = make(map[string]time.Time)
		}
		g.limits.last[key] = now
	}
	g.limits.mu.Unlock()
	if due {
		say()
	}
}

// discard is the logger of a Config without one.
func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
