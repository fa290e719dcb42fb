package eventlog

import (
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
)

const (
	defaultMaxBytes = 8 << 20
	defaultMaxAge   = 7 * 24 * time.Hour

	// maxMessage is Kubernetes' limit for an event's message, in bytes.
	maxMessage = 1024
	// maxTombstones bounds how many removed events watchers can still be told of.
	maxTombstones = 1024

	// flushInterval is how often Run writes repeated events that are due.
	flushInterval = time.Second
	// expireInterval is how often Run looks for events past their age.
	expireInterval = time.Minute
	// Between two records of one event lies a tenth of its age, within these.
	minRepeat, maxRepeat = time.Second, time.Minute

	// epochBits of a position tell one process's positions from another's.
	epochBits = 20
)

// ErrCompacted is returned by Since for a position whose changes can no longer
// be told, or that another Log gave out. List again.
var ErrCompacted = errors.New("events before this position have been discarded")

// Config says what a Log is made of.
type Config struct {
	// Peer is the id of the peer that the log belongs to. Required.
	Peer string
	// Dir holds the segment files; it is created. Empty: memory only.
	Dir string
	// MaxBytes bounds the records kept, other peers' copies included. Optional; 8 MiB.
	MaxBytes int64
	// MaxAge is how long an event is kept after it was last recorded. Optional; 7 days.
	MaxAge time.Duration
	// Now is the clock. Optional; time.Now.
	Now func() time.Time
	// Logger is optional; nil discards.
	Logger *slog.Logger
	// Registerer is optional; nil: no metrics.
	Registerer prometheus.Registerer
}

// Log is one peer's view of the cluster's events. Safe for concurrent use.
type Log struct {
	cfg     Config
	log     *slog.Logger
	id      string
	epoch   int64
	metrics *metrics

	mu       sync.Mutex
	events   map[string]*event // by namespace/name
	order    *list.List        // of *event, by position
	own      *list.List        // of *record of this log, by sequence
	sequence int64             // the last one of this log
	counter  int64             // the position of the last change, without epoch
	changed  chan struct{}     // closed at the next change
	logs     map[string]int64  // the last sequence that is known of each log
	peers    map[string]string // peer -> its log, as it last said
	dirty    map[*record]struct{}
	gone     []tombstone // by position
	horizon  int64       // removals up to here have been forgotten
	files    *segments
}

// event is the sum of its records. Everything but the records, the position and
// the counts identifies it.
type event struct {
	key              string
	namespace, name  string
	about            corev1.ObjectReference
	kind             string // "Normal" or "Warning"
	reason, message  string
	component, host  string
	records          map[string]*record // by log
	created, changed int64              // positions
	place            *list.Element      // in Log.order
}

// record is what one log knows of an event.
type record struct {
	event       *event
	log, peer   string
	sequence    int64
	count       int32
	first, last time.Time
	written     time.Time // when the last sequence was given; own records only
	segment     int64     // where the last sequence is
	place       *list.Element
}

type tombstone struct {
	position int64
	event    *corev1.Event
}

// New opens the log in cfg.Dir, or makes it. A file that ends in half a record,
// as a crash leaves it, is cut there. It fails when the directory cannot be used.
func New(cfg Config) (*Log, error) {
	if cfg.Peer == "" {
		return nil, errors.New("eventlog: Config.Peer is empty")
	}
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, defaultMaxBytes)
	cfg.MaxAge = cmp.Or(cfg.MaxAge, defaultMaxAge)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{
		cfg:     cfg,
		log:     cfg.Logger,
		epoch:   randomEpoch(),
		events:  make(map[string]*event),
		order:   list.New(),
		own:     list.New(),
		changed: make(chan struct{}),
		logs:    make(map[string]int64),
		peers:   make(map[string]string),
		dirty:   make(map[*record]struct{}),
	}
	l.metrics = newMetrics(cfg.Registerer, l)
	files, err := openSegments(cfg.Dir, cfg.MaxBytes/8, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	l.files, l.id = files, files.id
	oldest := cfg.Now().Add(-cfg.MaxAge)
	err = files.replay(func(rec *peerv1.EventRecord, segment int64) {
		l.logs[rec.GetLog()] = max(l.logs[rec.GetLog()], rec.GetSequence())
		l.peers[rec.GetPeer()] = rec.GetLog() // the newest comes last
		if rec.GetLast().AsTime().Before(oldest) {
			return
		}
		l.take(rec, segment)
	})
	if err != nil {
		files.close()
		return nil, fmt.Errorf("read event log: %w", err)
	}
	// Sequences that were given out before a crash may have reached other peers
	// and not the disk, and must not be given out again: those peers would take
	// the new records for known ones. So each start begins at the time of day,
	// which is ahead of all of them as long as there are less than a thousand
	// records a second.
	l.sequence = max(l.logs[l.id], cfg.Now().UnixMilli())
	return l, nil
}

func randomEpoch() int64 {
	var b [8]byte
	rand.Read(b[:])
	return int64(binary.LittleEndian.Uint64(b[:]) & (1<<epochBits - 1))
}

// Run writes repeated events that are due and lets old ones go, until ctx ends.
// Then it writes what is pending and closes the files; what is recorded later is
// kept in memory only.
func (l *Log) Run(ctx context.Context) error {
	flush := time.NewTicker(flushInterval)
	defer flush.Stop()
	expire := time.NewTicker(expireInterval)
	defer expire.Stop()
	for {
		select {
		case <-ctx.Done():
			l.mu.Lock()
			defer l.mu.Unlock()
			for rec := range l.dirty {
				l.emit(rec)
			}
			l.files.close()
			return nil
		case <-flush.C:
			l.flush()
		case <-expire.C:
			l.expire()
		}
	}
}

// Record records that something happened to about, which must have a name.
// eventType is "Normal" or "Warning", reason one word in camel case, message a
// sentence. It never blocks on anything but the file, and never fails: an event
// that cannot be written is kept in memory.
func (l *Log) Record(about object.Object, eventType, reason, message string) {
	l.Recorder("holdfast", "").Record(about, eventType, reason, message)
}

// Recorder returns a recorder whose events name component ("scheduler") and host
// as their source.
func (l *Log) Recorder(component, host string) Recorder {
	return Recorder{log: l, component: component, host: host}
}

// Recorder records events from one source.
type Recorder struct {
	log             *Log
	component, host string
}

// Record is [Log.Record], with the recorder's source.
func (r Recorder) Record(about object.Object, eventType, reason, message string) {
	res := object.ResourceOf(about)
	ref := corev1.ObjectReference{
		APIVersion: res.APIVersion(), Kind: res.Kind,
		Namespace: about.GetNamespace(), Name: about.GetName(), UID: about.GetUID(),
	}
	r.log.record(ref, eventType, reason, message, r.component, r.host)
}

func (l *Log) record(about corev1.ObjectReference, eventType, reason, message, component, host string) {
	if eventType != corev1.EventTypeWarning {
		eventType = corev1.EventTypeNormal
	}
	now := l.cfg.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.eventFor(about, eventType, text(reason), text(message), text(component), text(host))
	rec := e.records[l.id]
	fresh := rec == nil
	if fresh {
		rec = &record{event: e, log: l.id, peer: l.cfg.Peer, first: now}
		e.records[l.id] = rec
	}
	if rec.count < math.MaxInt32 {
		rec.count++
	}
	rec.last = now
	l.metrics.recorded(eventType)
	if fresh || rec.due(now) {
		l.emit(rec)
		return
	}
	l.dirty[rec] = struct{}{}
}

// due reports whether a repeated record may be written again at now.
func (r *record) due(now time.Time) bool {
	interval := min(max(now.Sub(r.first)/10, minRepeat), maxRepeat)
	return now.Sub(r.written) >= interval
}

// text makes s fit for a protobuf string field and for a terminal.
func text(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage-len("…")], "") + "…"
}

// eventFor returns the event of that identity, new if there is none. The caller
// adds a record and changes its position.
func (l *Log) eventFor(about corev1.ObjectReference, eventType, reason, message, component, host string) *event {
	hash := sha256.New()
	for _, s := range []string{about.APIVersion, about.Kind, about.Namespace, about.Name, string(about.UID), eventType, reason, message, component, host} {
		hash.Write(binary.AppendUvarint(nil, uint64(len(s))))
		hash.Write([]byte(s))
	}
	const longest = 253 - 1 - 16 // of a name, less the hash
	name := about.Name
	if len(name) > longest {
		name = name[:longest]
	}
	name += "." + hex.EncodeToString(hash.Sum(nil)[:8])
	namespace := cmp.Or(about.Namespace, metav1.NamespaceDefault)
	key := namespace + "/" + name
	if e, ok := l.events[key]; ok {
		return e
	}
	e := &event{
		key: key, namespace: namespace, name: name, about: about, kind: eventType, reason: reason, message: message,
		component: component, host: host, records: make(map[string]*record, 1),
	}
	l.events[key] = e
	return e
}

// emit gives rec, one of this log's own, its next sequence: it is written, shown
// to watchers and sent to other peers.
func (l *Log) emit(rec *record) {
	delete(l.dirty, rec)
	l.sequence++
	rec.sequence, rec.written = l.sequence, l.cfg.Now()
	l.logs[l.id], l.peers[l.cfg.Peer] = l.sequence, l.id
	if rec.place == nil {
		rec.place = l.own.PushBack(rec)
	} else {
		l.own.MoveToBack(rec.place)
	}
	l.append(rec)
	l.touch(rec.event)
	l.notify()
}

// append writes rec and lets the oldest segments go if they are too many.
func (l *Log) append(rec *record) {
	rec.segment = l.files.append(rec.message())
	for l.files.bytes > l.cfg.MaxBytes {
		dropped, ok := l.files.dropOldest()
		if !ok {
			break
		}
		for _, e := range l.events {
			for _, r := range e.records {
				if r.segment == dropped {
					l.forget(r)
				}
			}
		}
	}
}

// touch gives e the next position.
func (l *Log) touch(e *event) {
	l.counter++
	e.changed = l.counter
	if e.place == nil {
		e.created = l.counter
		e.place = l.order.PushBack(e)
	} else {
		l.order.MoveToBack(e.place)
	}
}

func (l *Log) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// forget removes a record, and its event with the last one.
func (l *Log) forget(rec *record) {
	e := rec.event
	if len(e.records) == 1 && e.place != nil {
		l.counter++
		last := e.object(l)
		last.ResourceVersion = fmt.Sprint(l.position(l.counter))
		l.gone = append(l.gone, tombstone{position: l.counter, event: last})
		if n := len(l.gone) - maxTombstones; n > 0 {
			l.horizon = l.gone[n-1].position
			l.gone = slices.Delete(l.gone, 0, n)
		}
		l.order.Remove(e.place)
		delete(l.events, e.key)
	}
	delete(e.records, rec.log)
	delete(l.dirty, rec)
	if rec.place != nil {
		l.own.Remove(rec.place)
		rec.place = nil
	}
}

// flush writes repeated events that are due.
func (l *Log) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	for rec := range l.dirty {
		if rec.due(now) {
			l.emit(rec)
		}
	}
}

// expire lets go what is past its age.
func (l *Log) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := l.cfg.Now().Add(-l.cfg.MaxAge)
	before := l.counter
	for _, e := range l.events {
		for _, rec := range e.records {
			if rec.last.Before(oldest) {
				l.forget(rec)
			}
		}
	}
	l.files.dropBefore(oldest)
	if l.counter != before {
		l.notify()
	}
}

// position is what callers see of the counter's value n.
func (l *Log) position(n int64) int64 { return n<<epochBits | l.epoch }

// object returns e as Kubernetes has it.
func (e *event) object(l *Log) *corev1.Event {
	var count int64
	var first, last time.Time
	for _, rec := range e.records {
		count += int64(rec.count)
		if first.IsZero() || rec.first.Before(first) {
			first = rec.first
		}
		if rec.last.After(last) {
			last = rec.last
		}
	}
	sum := sha256.Sum256([]byte(e.key))
	id := hex.EncodeToString(sum[:16])
	return &corev1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: e.namespace, Name: e.name,
			// The same on every peer, as the name is.
			UID:               types.UID(id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]),
			CreationTimestamp: metav1.NewTime(first.Truncate(time.Second)),
			ResourceVersion:   fmt.Sprint(l.position(e.changed)),
		},
		InvolvedObject:      e.about,
		Type:                e.kind,
		Reason:              e.reason,
		Message:             e.message,
		Source:              corev1.EventSource{Component: e.component, Host: e.host},
		ReportingController: e.component,
		ReportingInstance:   e.host,
		Count:               int32(min(count, math.MaxInt32)),
		FirstTimestamp:      metav1.NewTime(first.Truncate(time.Second)),
		LastTimestamp:       metav1.NewTime(last.Truncate(time.Second)),
	}
}

// message returns rec as it is written and sent.
func (r *record) message() *peerv1.EventRecord {
	e := r.event
	return &peerv1.EventRecord{
		Sequence: r.sequence, Log: r.log, Peer: r.peer,
		Type: e.kind, Reason: e.reason, Message: e.message, Component: e.component, Host: e.host,
		About: &peerv1.ObjectReference{
			ApiVersion: e.about.APIVersion, Kind: e.about.Kind, Namespace: e.about.Namespace, Name: e.about.Name, Uid: string(e.about.UID),
		},
		Count: r.count, First: timestamppb.New(r.first), Last: timestamppb.New(r.last),
	}
}
