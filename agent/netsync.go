package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

const (
	programTimeout    = 30 * time.Second
	programBackoffMax = 30 * time.Second
	// programPeriod is how often what is programmed is looked at without news, to
	// repair what somebody else may have changed.
	programPeriod = 5 * time.Minute
	ackTimeout    = 5 * time.Second
	// drainPatience is how long a pod's end waits for the nodes, of its grace period.
	drainPatience = 5 * time.Second
)

// netSync keeps what the node knows of the cluster's network: from the stream of a
// peer, and over restarts from a file. Who acts on it follows the holder.
type netSync struct {
	client Client
	log    *slog.Logger
	path   string
	holder *netstate.Holder

	// Of the goroutine of follow, of which there is one at a time, and before of load.
	objects map[object.Key]netObject
	journal journal

	mu          sync.Mutex
	programmed  int64           // the revision that the data plane is at
	done        *netstate.State // the state that it is at
	doneChanged chan struct{}   // closed at the next
	needed      int64           // the revision of the last change of a policy that a peer knows of
	ack         chan struct{}   // of capacity 1: a peer is to be told of it
}

// netObject is an object as it was decoded at a revision.
type netObject struct {
	revision int64
	object   object.Object
}

func newNetSync(node, dir string, client Client, log *slog.Logger) *netSync {
	return &netSync{
		client: client, log: log, path: filepath.Join(dir, networkFile),
		holder: netstate.NewHolder(netstate.Empty(node)), objects: map[object.Key]netObject{},
		ack: make(chan struct{}, 1), doneChanged: make(chan struct{}),
	}
}

func (n *netSync) tell() {
	select {
	case n.ack <- struct{}{}:
	default:
	}
}

// acknowledge tells the peers at which revision the data plane is, until ctx ends.
func (n *netSync) acknowledge(ctx context.Context) error {
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-n.ack:
		}
		n.mu.Lock()
		revision := n.programmed
		n.mu.Unlock()
		if revision == 0 {
			continue
		}
		cctx, cancel := context.WithTimeout(ctx, ackTimeout)
		_, err := n.client.Agent().AckNetwork(cctx, &agentv1.AckNetworkRequest{Revision: revision})
		cancel()
		if err == nil || connect.CodeOf(err) == connect.CodeUnimplemented {
			failures = 0
			continue
		}
		failures++
		n.tell()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff(failures, sessionBackoffFirst, sessionBackoffMax)):
		}
	}
}

// drain returns once no node sends new connections to a pod that is ending, or ctx
// ends: first its endpoints are marked, at some revision, and then every node that
// lives has taken that in. A pod that is no endpoint is not waited for.
func (n *netSync) drain(ctx context.Context, uid types.UID) {
	var revision int64
	for {
		state, changed := n.holder.Get()
		marked, ready := endpointOf(state, uid)
		if ready {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !marked {
			return
		}
		revision = state.Revision
		break
	}
	for failures := 0; ; {
		left := drainPatience
		if deadline, ok := ctx.Deadline(); ok {
			left = time.Until(deadline)
		}
		res, err := n.client.Agent().Drained(ctx, &agentv1.DrainedRequest{Revision: revision, Timeout: durationpb.New(max(left, 0))})
		switch {
		case ctx.Err() != nil, connect.CodeOf(err) == connect.CodeUnimplemented:
			return
		case err == nil:
			if missing := res.GetMissing(); len(missing) > 0 {
				n.log.Warn("a pod ends though not all nodes have taken its endpoints away", "uid", uid, "revision", revision, "missing", missing)
			}
			return
		}
		failures++
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff(failures, sessionBackoffFirst, time.Second)):
		}
	}
}

// endpointOf reports whether a pod is an endpoint of any service, and whether as one
// that is not marked as ending.
func endpointOf(s *netstate.State, uid types.UID) (marked, ready bool) {
	for _, list := range s.Slices {
		for _, slice := range list {
			for _, e := range slice.Endpoints {
				if e.TargetRef == nil || e.TargetRef.UID != uid {
					continue
				}
				if e.Conditions.Terminating != nil && *e.Conditions.Terminating {
					marked = true
				} else if e.Conditions.Ready == nil || *e.Conditions.Ready {
					ready = true
				}
			}
		}
	}
	return marked, ready
}

// load takes up the state that the agent had in its last life.
func (n *netSync) load() {
	messages, err := readJournal(n.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Error("part of the saved state of the network cannot be used; a peer will say what is", "error", err)
	}
	for _, msg := range messages {
		if err := n.take([]*agentv1.NetworkResponse{msg}); err != nil {
			n.log.Error("part of the saved state of the network cannot be used; a peer will say what is", "error", err)
			return
		}
	}
}

// follow takes in what peers say until ctx ends. Calls never overlap.
func (n *netSync) follow(ctx context.Context) {
	for failures := 0; ; {
		taken, err := n.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if failures++; taken {
			failures = 1
		}
		if connect.CodeOf(err) != connect.CodeUnimplemented {
			n.log.Warn("no news of the cluster's network; trying again", "failures", failures, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff(failures, sessionBackoffFirst, sessionBackoffMax)):
		}
	}
}

// stream reports whether anything was taken in. The error is never nil.
func (n *netSync) stream(ctx context.Context) (taken bool, err error) {
	state, _ := n.holder.Get()
	stream, err := n.client.Agent().Network(ctx, &agentv1.NetworkRequest{FromRevision: state.Revision})
	if err != nil {
		return false, err
	}
	defer stream.Close()
	var parts []*agentv1.NetworkResponse
	for {
		msg, err := stream.Receive()
		if err != nil {
			return taken, err
		}
		if parts = append(parts, msg); msg.GetUnfinished() {
			continue
		}
		before, _ := n.holder.Get()
		if err := n.take(parts); err != nil {
			return taken, err
		}
		if now, _ := n.holder.Get(); now != before {
			n.save(parts, now)
		}
		if !taken {
			n.tell() // another peer, perhaps, which has not heard of us
		}
		taken, parts = true, nil
	}
}

// take brings the state forward by the parts of one message.
func (n *netSync) take(parts []*agentv1.NetworkResponse) error {
	last := parts[len(parts)-1]
	state, _ := n.holder.Get()
	if last.GetRevision() < state.Revision {
		return nil // the peer is behind
	}
	objects := maps.Clone(n.objects)
	var changes []netstate.Change
	if last.GetComplete() {
		state, objects = netstate.Empty(state.Node).WithNode(state), map[object.Key]netObject{}
	}
	for _, part := range parts {
		var news agentv1.NetworkChanges
		if err := proto.Unmarshal(part.GetChanges(), &news); err != nil {
			return fmt.Errorf("network's state at revision %d cannot be read: %w", part.GetRevision(), err)
		}
		for _, in := range news.GetObjects() {
			key := object.Key(in.GetKey())
			now := n.objects[key]
			if now.object == nil || now.revision != in.GetRevision() { // else the same value: no news for anybody
				obj, err := object.Decode(in.GetObject(), in.GetRevision())
				if err != nil {
					return fmt.Errorf("network's state at revision %d: %s cannot be read: %w", part.GetRevision(), key, err)
				}
				obj.SetManagedFields(nil)
				now = netObject{in.GetRevision(), obj}
			}
			if before, ok := objects[key].object.(*discoveryv1.EndpointSlice); ok { // it may have been another service's
				changes = append(changes, netstate.Change{Object: before, Removed: true})
			}
			objects[key] = now
			changes = append(changes, netstate.Change{Object: now.object})
		}
		for _, key := range news.GetRemoved() {
			if gone, ok := objects[object.Key(key)]; ok {
				delete(objects, object.Key(key))
				changes = append(changes, netstate.Change{Object: gone.object, Removed: true})
			}
		}
	}
	next := state.With(last.GetRevision(), changes...)
	for _, part := range parts {
		next = withPolicyPods(next, part)
	}
	if own := last.GetNode(); own != nil {
		var err error
		if next, err = withOwn(next, own); err != nil {
			return err
		}
	}
	n.objects = objects
	next.Hash = 0
	for key, o := range objects {
		next.Hash += object.RevisionSum(string(key), o.revision)
	}
	// What the agent says of its own pods may have changed meanwhile.
	n.holder.Update(func(now *netstate.State) *netstate.State { return next.WithLocal(now.Local) })
	return nil
}

// withOwn returns s with what this node alone is told.
func withOwn(s *netstate.State, own *agentv1.NetworkNode) (*netstate.State, error) {
	next := *s
	next.Zone, next.Ingress, next.Secrets = own.GetZone(), own.GetIngress(), nil
	next.Config = netstate.Config{Domain: own.GetClusterDomain(), PodCIDRs: prefixes(own.GetPodCidrs()), ServiceCIDRs: prefixes(own.GetServiceCidrs())}
	var secrets []netstate.Change
	for _, in := range own.GetSecrets() {
		if before, ok := s.Secrets[nameOf(object.Key(in.GetKey()))]; ok && before.ResourceVersion == fmt.Sprint(in.GetRevision()) {
			secrets = append(secrets, netstate.Change{Object: before})
			continue
		}
		obj, err := object.Decode(in.GetObject(), in.GetRevision())
		if err != nil {
			return nil, fmt.Errorf("%s at revision %d cannot be read: %w", in.GetKey(), in.GetRevision(), err)
		}
		secrets = append(secrets, netstate.Change{Object: obj.(*corev1.Secret)})
	}
	return next.With(next.Revision, secrets...), nil
}

func nameOf(key object.Key) netstate.Name {
	_, namespace, name, _ := object.SplitKey(key)
	return netstate.Name{Namespace: namespace, Name: name}
}

func prefixes(texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// save keeps what was taken in, so that an agent which starts while no peer can be
// reached knows as much. It is appended; now and then, all is written anew.
func (n *netSync) save(parts []*agentv1.NetworkResponse, now *netstate.State) {
	err := n.journal.append(parts)
	if parts[len(parts)-1].GetComplete() || err != nil || n.journal.appended > max(n.journal.whole, 1<<20) {
		err = n.journal.rewrite(n.path, n.whole(now))
	}
	if err != nil {
		n.log.Error("the network's state is not saved; a restart of the agent would begin with older state", "revision", now.Revision, "error", err)
	}
}

// whole returns the state as one message.
func (n *netSync) whole(s *netstate.State) *agentv1.NetworkResponse {
	input := func(key object.Key, obj object.Object, revision int64) *agentv1.Input {
		data, err := object.Encode(obj)
		if err != nil {
			panic(fmt.Sprintf("agent: encode %s: %v", key, err)) // it was decoded from bytes
		}
		return &agentv1.Input{Key: string(key), Revision: revision, Object: data}
	}
	var changes agentv1.NetworkChanges
	for _, key := range slices.Sorted(maps.Keys(n.objects)) {
		changes.Objects = append(changes.Objects, input(key, n.objects[key].object, n.objects[key].revision))
	}
	data, err := proto.Marshal(&changes)
	if err != nil {
		panic(fmt.Sprintf("agent: encode the network's state: %v", err))
	}
	own := &agentv1.NetworkNode{Zone: s.Zone, Ingress: s.Ingress, ClusterDomain: s.Config.Domain}
	for _, secret := range s.Secrets {
		var revision int64
		_, _ = fmt.Sscan(secret.ResourceVersion, &revision)
		own.Secrets = append(own.Secrets, input(object.KeyOf(secret), secret, revision))
	}
	for _, p := range s.Config.PodCIDRs {
		own.PodCidrs = append(own.PodCidrs, p.String())
	}
	for _, p := range s.Config.ServiceCIDRs {
		own.ServiceCidrs = append(own.ServiceCidrs, p.String())
	}
	return &agentv1.NetworkResponse{Complete: true, Revision: s.Revision, Changes: data, Node: own, Pods: policyPods(s), AllPods: true}
}

// program keeps the data plane, if there is one, at the newest state until ctx ends,
// and tries again what failed.
func (n *netSync) program(ctx context.Context, plane Services) error {
	failures := 0
	for {
		state, changed := n.holder.Get()
		pause := programPeriod
		if state.Revision > 0 { // else nobody has said anything: what is there stays
			cctx, cancel := context.WithTimeout(ctx, programTimeout)
			var err error
			if plane != nil {
				err = plane.Program(cctx, state)
			}
			cancel()
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				failures++
				pause = backoff(failures, cleanupBackoffFirst, programBackoffMax)
				n.log.Error("services are not programmed; trying again", "revision", state.Revision, "pause", pause, "error", err)
			default:
				if failures > 0 {
					n.log.Info("services are programmed again", "revision", state.Revision)
				}
				failures = 0
				n.setDone(state)
				n.tell()
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// The file of the network's state, which only the agent's user may read, since it
// may hold secrets: this line, which names the format's version, and then records: the
// length of a NetworkResponse and its CRC-32 (IEEE), four bytes each, big-endian, and
// the message. The first is complete. What follows a damaged record is not read.
const (
	networkFile   = "network"
	networkHeader = "holdfast-agent-network 1\n"
)

// journal is that file, open for appending once it was written anew in this life.
type journal struct {
	file            *os.File
	whole, appended int64 // bytes
}

func record(msg *agentv1.NetworkResponse) ([]byte, error) {
	body, err := proto.Marshal(msg)
	if err != nil {
		return nil, err
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	return append(binary.BigEndian.AppendUint32(head, crc32.ChecksumIEEE(body)), body...), nil
}

var errNoJournal = errors.New("not written anew yet")

func (j *journal) append(parts []*agentv1.NetworkResponse) error {
	if j.file == nil {
		return errNoJournal
	}
	// Whole or not at all: parts belong together, so they become one message.
	one := &agentv1.NetworkResponse{Revision: parts[len(parts)-1].GetRevision(), Node: parts[len(parts)-1].GetNode()}
	for _, part := range parts {
		one.Changes = append(one.Changes, part.GetChanges()...) // messages that follow one another are merged
		one.Pods, one.RemovedPods, one.AllPods = append(one.Pods, part.GetPods()...), append(one.RemovedPods, part.GetRemovedPods()...), one.AllPods || part.GetAllPods()
	}
	data, err := record(one)
	if err != nil {
		return err
	}
	j.appended += int64(len(data))
	_, err = j.file.Write(data)
	return err
}

func (j *journal) rewrite(path string, msg *agentv1.NetworkResponse) error {
	data, err := record(msg)
	if err != nil {
		return err
	}
	if err := writeAtomic(path, append([]byte(networkHeader), data...)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	j.close()
	j.file, j.whole, j.appended = f, int64(len(data)), 0
	return nil
}

func (j *journal) close() {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
}

// readJournal returns the records up to the first that is damaged, and then an error
// as well.
func readJournal(path string) ([]*agentv1.NetworkResponse, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	body, ok := bytes.CutPrefix(data, []byte(networkHeader))
	if !ok {
		return nil, fmt.Errorf("%s is not in a format that this version knows", path)
	}
	var all []*agentv1.NetworkResponse
	for r := bufio.NewReader(bytes.NewReader(body)); ; {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return all, fmt.Errorf("%s ends in the middle of a record", path)
		}
		size := binary.BigEndian.Uint32(head[:4])
		if int64(size) > int64(len(body)) {
			return all, fmt.Errorf("%s is damaged", path)
		}
		one := make([]byte, size)
		if _, err := io.ReadFull(r, one); err != nil {
			return all, fmt.Errorf("%s ends in the middle of a record", path)
		}
		msg := new(agentv1.NetworkResponse)
		if crc32.ChecksumIEEE(one) != binary.BigEndian.Uint32(head[4:]) || proto.Unmarshal(one, msg) != nil {
			return all, fmt.Errorf("%s is damaged", path)
		}
		all = append(all, msg)
	}
}
