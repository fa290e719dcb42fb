package agent

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// desired is the node's desired state, put together from the messages of a
// stream. A value is not changed after it was made: take returns a new one.
type desired struct {
	revision int64
	pods     map[string]*corev1.Pod     // by uid
	raw      map[string][]byte          // the same, as received
	inputs   map[object.Key]namedObject // what the pods name
	routes   []*agentv1.NodeRoute
	podCIDRs []string
	peers    []string
}

var (
	// errStale: the message is older than what the agent has; it is dropped, and
	// later ones of the stream may be of use.
	errStale = errors.New("message is older than what was taken in")
	// errGap: the message does not follow on what the agent has; the stream is
	// of no use.
	errGap = errors.New("message does not follow on the one before")
)

// take returns the state that msg brings d to. It is pure. first says that msg
// is the first of its stream, last is the revision of the message before it in
// the stream.
//
// Each pod in an increment is whole, and an increment holds all that changed
// since the message before it. An increment that spans d's revision therefore
// brings d up to date, even if the stream began before d, with messages that
// were dropped as stale.
func (d desired) take(msg *agentv1.DesiredResponse, first bool, last int64) (desired, error) {
	switch {
	case first && !msg.GetComplete():
		return d, fmt.Errorf("%w: the first message of the stream, at revision %d, is not complete", errGap, msg.GetRevision())
	case !first && msg.GetRevision() < last:
		return d, fmt.Errorf("%w: revision %d after %d", errGap, msg.GetRevision(), last)
	case msg.GetRevision() < d.revision:
		return d, errStale
	}
	next := desired{
		revision: msg.GetRevision(),
		routes:   d.routes, podCIDRs: d.podCIDRs, peers: d.peers,
	}
	if msg.GetComplete() {
		next.pods, next.raw, next.inputs = map[string]*corev1.Pod{}, map[string][]byte{}, map[object.Key]namedObject{}
	} else {
		next.pods, next.raw, next.inputs = maps.Clone(d.pods), maps.Clone(d.raw), maps.Clone(d.inputs)
		if next.pods == nil {
			next.pods, next.raw, next.inputs = map[string]*corev1.Pod{}, map[string][]byte{}, map[object.Key]namedObject{}
		}
	}
	for _, raw := range msg.GetPods() {
		obj, err := object.Decode(raw, 0)
		if err != nil {
			return d, fmt.Errorf("%w: a pod at revision %d cannot be read: %w", errGap, msg.GetRevision(), err)
		}
		pod, ok := obj.(*corev1.Pod)
		if !ok || pod.UID == "" {
			return d, fmt.Errorf("%w: a pod at revision %d is a %T without uid", errGap, msg.GetRevision(), obj)
		}
		uid := string(pod.UID)
		if bytes.Equal(d.raw[uid], raw) {
			pod = d.pods[uid] // the same value: no news for its worker
		}
		next.pods[uid], next.raw[uid] = pod, raw
	}
	for _, uid := range msg.GetRemovedPods() {
		delete(next.pods, uid)
		delete(next.raw, uid)
	}
	for _, in := range msg.GetInputs() {
		key := object.Key(in.GetKey())
		if old, ok := d.inputs[key]; ok && old.message.GetRevision() == in.GetRevision() && bytes.Equal(old.message.GetObject(), in.GetObject()) {
			next.inputs[key] = old // the same value: no news for workers
			continue
		}
		decoded, err := decodeInput(in)
		if err != nil {
			return d, fmt.Errorf("%w: an input at revision %d cannot be read: %w", errGap, msg.GetRevision(), err)
		}
		next.inputs[key] = decoded
	}
	for _, key := range msg.GetRemovedInputs() {
		delete(next.inputs, object.Key(key))
	}
	if msg.GetComplete() || msg.GetHasRoutes() {
		next.routes, next.podCIDRs = msg.GetRoutes(), msg.GetPodCidrs()
	}
	if len(msg.GetChangedRoutes())+len(msg.GetRemovedRoutes()) > 0 {
		next.routes = reroute(next.routes, msg.GetChangedRoutes(), msg.GetRemovedRoutes())
	}
	if len(msg.GetPeers()) > 0 {
		next.peers = msg.GetPeers()
	}
	return next, nil
}

// reroute returns routes with some changed and others, by their nodes, removed. routes
// stay as they are.
func reroute(routes, changed []*agentv1.NodeRoute, removed []string) []*agentv1.NodeRoute {
	byNode := make(map[string]*agentv1.NodeRoute, len(routes)+len(changed))
	for _, r := range slices.Concat(routes, changed) {
		byNode[r.GetNode()] = r
	}
	for _, node := range removed {
		delete(byNode, node)
	}
	next := make([]*agentv1.NodeRoute, 0, len(byNode))
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		next = append(next, byNode[node])
	}
	return next
}

// network converts what concerns the network. Faulty parts are left out and
// named in the error.
func (d desired) network() (cidrs []netip.Prefix, routes []Route, err error) {
	var faults []error
	parse := func(in []string, whose string) (out []netip.Prefix) {
		for _, s := range in {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				faults = append(faults, fmt.Errorf("pod CIDR of %s: %w", whose, err))
				continue
			}
			out = append(out, p)
		}
		return out
	}
	cidrs = parse(d.podCIDRs, "this node")
	for _, r := range d.routes {
		via, err := netip.ParseAddr(r.GetAddress())
		if err != nil {
			faults = append(faults, fmt.Errorf("address of node %s: %w", r.GetNode(), err))
			continue
		}
		routes = append(routes, Route{Node: r.GetNode(), Via: via, PodCIDRs: parse(r.GetPodCidrs(), "node "+r.GetNode()), Announced: r.GetNetwork()})
	}
	return cidrs, routes, errors.Join(faults...)
}

// The file of the desired state, which holds secrets and which only the agent's
// user may read: desiredSealed, then one complete DesiredResponse, sealed. Version 1,
// which is read still, was desiredHeader with the rest's CRC-32 (IEEE) in hexadecimal,
// then the DesiredResponse as it is.
const (
	desiredFile   = "desired"
	desiredHeader = "holdfast-agent-desired 1 "
	desiredSealed = "holdfast-agent-desired 2\n"
)

// save writes d to the directory, so that a crash leaves the old or the new
// state there, never part of one.
func (d desired) save(dir string) error {
	msg := &agentv1.DesiredResponse{
		Complete: true, Revision: d.revision, HasRoutes: true,
		Routes: d.routes, PodCidrs: d.podCIDRs, Peers: d.peers,
	}
	for _, uid := range slices.Sorted(maps.Keys(d.raw)) {
		msg.Pods = append(msg.Pods, d.raw[uid])
	}
	for _, key := range slices.Sorted(maps.Keys(d.inputs)) {
		msg.Inputs = append(msg.Inputs, d.inputs[key].message)
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		return fmt.Errorf("save desired state: %w", err)
	}
	data, err := sealDesired(dir, body)
	if err == nil {
		err = writeAtomic(filepath.Join(dir, desiredFile), data)
	}
	if err != nil {
		return fmt.Errorf("save desired state: %w", err)
	}
	return nil
}

// loadDesired reads what save has written; the zero value if there is nothing.
func loadDesired(dir string) (desired, error) {
	path := filepath.Join(dir, desiredFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return desired{}, nil
	}
	if err != nil {
		return desired{}, fmt.Errorf("load desired state: %w", err)
	}
	head, body, _ := bytes.Cut(data, []byte("\n"))
	sum, ok := strings.CutPrefix(string(head), desiredHeader)
	switch {
	case bytes.HasPrefix(data, []byte(desiredSealed)):
		if body, err = openDesired(dir, data); err != nil {
			return desired{}, fmt.Errorf("load desired state: %w", err)
		}
	case !ok:
		return desired{}, fmt.Errorf("load desired state: %s is not in a format that this version knows", path)
	default:
		if want, err := strconv.ParseUint(sum, 16, 32); err != nil || uint32(want) != crc32.ChecksumIEEE(body) {
			return desired{}, fmt.Errorf("load desired state: %s is damaged", path)
		}
	}
	var msg agentv1.DesiredResponse
	if err := proto.Unmarshal(body, &msg); err != nil {
		return desired{}, fmt.Errorf("load desired state: %s: %w", path, err)
	}
	d, err := desired{}.take(&msg, true, 0)
	if err != nil {
		return desired{}, fmt.Errorf("load desired state: %s: %w", path, err)
	}
	return d, nil
}

func writeAtomic(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(tmp) // half of it: what is short is space
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// lockDir makes sure that no other agent works on the directory.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("agent: lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("agent: another agent runs on %s: stop it, or use another data directory", dir)
	}
	return func() { f.Close() }, nil
}
