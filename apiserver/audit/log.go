package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	hashSize = sha256.Size
	magic    = "#holdfast-audit 1"

	defaultMaxBytes = 256 << 20
	files           = 16      // that MaxBytes is divided into
	maxPending      = 1 << 20 // bytes of records that wait for a disk
	syncPeriod      = time.Second
	// Strangers are recorded so often a second; of more, how many there were.
	strangersPerSecond, strangersBurst = 5, 50
)

// ErrFull is returned by Ready while records cannot be written and no more can wait.
var ErrFull = errors.New("the audit cannot be written: its disk is full or broken")

// Config says where a log is.
type Config struct {
	// Dir is made if it is not there. Required.
	Dir string
	// Peer is whose log it is. Required.
	Peer string
	// MaxBytes bounds the files together. Optional; 256 MiB.
	MaxBytes   int64
	Logger     *slog.Logger          // optional; discards
	Registerer prometheus.Registerer // optional
	Now        func() time.Time      // optional; time.Now
}

// Head is a record's number and hash.
type Head struct {
	Sequence uint64
	Hash     [hashSize]byte
}

// Log is one peer's audit. Safe for concurrent use. A nil Log records nothing.
type Log struct {
	cfg     Config
	records *prometheus.CounterVec

	mu      sync.Mutex
	file    *os.File
	size    int64 // of file
	first   []uint64
	head    Head
	news    Head   // the newest that is no witness
	before  Head   // the record before the first that is pending
	pending []byte // lines that were not written; the first may be so in part
	failed  error  // why not
	dirty   bool   // since the last sync
	tokens  float64
	refill  time.Time
	skipped int // strangers
	// witnessed are the newest heads of others that are written down here.
	witnessed map[string]uint64
}

// Open opens the log in a directory, or begins one. What a crash has left of an
// unfinished record is dropped, and that is recorded.
func Open(cfg Config) (*Log, error) {
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, defaultMaxBytes)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, tokens: strangersBurst, refill: cfg.Now(), witnessed: make(map[string]uint64)}
	l.records = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_audit_records_total", Help: "Records of the audit, by what became of them: written, or skipped (of strangers, beyond some a second).",
	}, []string{"fate"})
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(l.records); err != nil {
			return nil, err
		}
	}
	dropped, err := l.resume()
	if err != nil {
		return nil, err
	}
	start := Record{Verb: VerbStart}
	if dropped > 0 {
		start.Reason = fmt.Sprintf("%d bytes of an unfinished record were dropped", dropped)
	}
	l.Append(start)
	return l, nil
}

func fileName(first uint64) string { return fmt.Sprintf("audit-%020d.log", first) }

// list returns the numbers that the files begin with, in order.
func list(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var first []uint64
	for _, e := range entries {
		var n uint64
		if _, err := fmt.Sscanf(e.Name(), "audit-%d.log", &n); err == nil && e.Name() == fileName(n) {
			first = append(first, n)
		}
	}
	slices.Sort(first)
	return first, nil
}

// resume finds the end of what is there, and opens the last file.
func (l *Log) resume() (dropped int64, err error) {
	if l.first, err = list(l.cfg.Dir); err != nil || len(l.first) == 0 {
		return 0, err
	}
	last := l.first[len(l.first)-1]
	path := filepath.Join(l.cfg.Dir, fileName(last))
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	end := bytes.LastIndexByte(data, '\n') + 1
	dropped = int64(len(data) - end)
	lines := bytes.Split(data[:end], []byte("\n"))
	begin, prev, ok := parseHeader(string(lines[0]), l.cfg.Peer)
	if !ok || begin != last {
		// A file of which not even the first line was written: it holds nothing.
		if end == 0 && len(l.first) > 1 {
			if err := os.Remove(path); err != nil {
				return 0, err
			}
			more, err := l.resume()
			return dropped + more, err
		}
		if end == 0 {
			l.first = nil
			return dropped, os.Remove(path)
		}
		return 0, fmt.Errorf("%s is not this peer's audit: its first line is %q", path, cut(string(lines[0]), 100))
	}
	l.head = Head{last - 1, prev}
	l.news = l.head
	for _, line := range lines[1:] {
		if hash, _, r, ok := parseLine(line); ok { // what is damaged, Verify tells
			l.note(r, hash)
		}
	}
	if l.file, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
		return 0, err
	}
	l.size = int64(end)
	if dropped > 0 {
		err = l.file.Truncate(l.size)
	}
	return dropped, err
}

func (l *Log) note(r Record, hash [hashSize]byte) {
	l.head = Head{r.Sequence, hash}
	if r.Verb != VerbWitness {
		l.news = l.head
	} else {
		l.witnessed[r.Peer] = max(l.witnessed[r.Peer], r.Seen)
	}
}

func header(peer string, first uint64, prev [hashSize]byte) string {
	return fmt.Sprintf("%s %s %d %x\n", magic, peer, first, prev)
}

func parseHeader(line, peer string) (first uint64, prev [hashSize]byte, ok bool) {
	var who, text string
	rest, ok := strings.CutPrefix(line, magic+" ")
	if !ok {
		return 0, prev, false
	}
	if n, err := fmt.Sscanf(rest, "%s %d %64s", &who, &first, &text); n != 3 || err != nil || who != peer {
		return 0, prev, false
	}
	n, err := hex.Decode(prev[:], []byte(text))
	return first, prev, err == nil && n == hashSize
}

// Append records r, whose number and time it sets. It returns once the operating system
// has it, or, if it cannot be written, once it waits.
func (l *Log) Append(r Record) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Outcome == "unauthenticated" && !l.stranger() {
		l.skipped++
		l.records.WithLabelValues("skipped").Inc()
		return
	}
	if r.Outcome == "unauthenticated" {
		r.More, l.skipped = r.More+l.skipped, 0
	}
	l.append(r)
}

// stranger reports whether there is room for a record of somebody unknown: he must not
// push out of the files what others did.
func (l *Log) stranger() bool {
	now := l.cfg.Now()
	l.tokens = min(strangersBurst, l.tokens+now.Sub(l.refill).Seconds()*strangersPerSecond)
	l.refill = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// append is Append with l.mu held.
func (l *Log) append(r Record) {
	r.bound()
	r.Sequence, r.Time = l.head.Sequence+1, l.cfg.Now().UTC()
	body, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("audit: encode record %d: %v", r.Sequence, err)) // of texts and numbers
	}
	hash := chain(l.head.Hash, body)
	if len(l.pending) == 0 {
		if l.before = l.head; l.file != nil && l.size > l.cfg.MaxBytes/files {
			if err := l.rotate(); err != nil {
				l.fail(err)
			}
		}
	}
	line := make([]byte, 0, 2*hashSize+len(body)+2)
	line = hex.AppendEncode(line, hash[:])
	line = append(append(append(line, ' '), body...), '\n')
	l.note(r, hash)
	l.pending = append(l.pending, line...)
	l.flush()
	l.records.WithLabelValues("written").Inc()
}

func chain(prev [hashSize]byte, body []byte) (hash [hashSize]byte) {
	h := sha256.New()
	h.Write(prev[:])
	h.Write(body)
	return [hashSize]byte(h.Sum(nil))
}

// flush writes what is pending, as far as that can be done.
func (l *Log) flush() {
	if len(l.pending) == 0 {
		return
	}
	if l.file == nil {
		if err := l.rotate(); err != nil {
			l.fail(err)
			return
		}
	}
	n, err := l.file.Write(l.pending)
	l.size += int64(n)
	l.dirty = l.dirty || n > 0
	l.pending = append(l.pending[:0], l.pending[n:]...)
	if err != nil {
		l.fail(err)
		return
	}
	if l.failed != nil {
		l.cfg.Logger.Info("the audit is written again")
		l.failed = nil
	}
}

func (l *Log) fail(err error) {
	if l.failed == nil {
		l.cfg.Logger.Error("the audit cannot be written; its records wait in memory, and when there are too many, writes are refused", "err", err)
	}
	l.failed = err
}

// rotate begins another file, with the first record that is pending, and lets go of the
// oldest.
func (l *Log) rotate() error {
	first, prev := l.before.Sequence+1, l.before.Hash
	path := filepath.Join(l.cfg.Dir, fileName(first))
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	line := header(l.cfg.Peer, first, prev)
	if _, err := io.WriteString(file, line); err != nil {
		return errors.Join(err, file.Close(), os.Remove(path))
	}
	if l.file != nil {
		err = errors.Join(l.file.Sync(), l.file.Close())
	}
	l.file, l.size, l.dirty = file, int64(len(line)), true
	l.first = append(l.first, first)
	for len(l.first) > files {
		err = errors.Join(err, os.Remove(filepath.Join(l.cfg.Dir, fileName(l.first[0]))))
		l.first = l.first[1:]
	}
	return errors.Join(err, syncDir(l.cfg.Dir))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Ready returns ErrFull, wrapped with the cause, while nothing more can be recorded.
func (l *Log) Ready() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) < maxPending {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrFull, l.failed)
}

// Head returns the newest record that is no witness.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.news
}

// Witness writes down another peer's head, unless a head as new is here.
func (l *Log) Witness(peer string, h Head) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.Sequence <= l.witnessed[peer] {
		return
	}
	l.append(Record{Verb: VerbWitness, Peer: peer, Seen: h.Sequence, Hash: hex.EncodeToString(h.Hash[:])})
}

// Run brings what is written to disk, and tries what waits again, until ctx ends.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(syncPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.sync()
			return nil
		case <-tick.C:
			l.sync()
		}
	}
}

// Close closes the file, for a log that is not used any more: the next record would begin
// another one.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	if l.file == nil {
		return nil
	}
	err := errors.Join(l.file.Sync(), l.file.Close())
	l.file = nil
	return err
}

func (l *Log) sync() {
	l.mu.Lock()
	l.flush()
	file, dirty := l.file, l.dirty
	l.dirty = false
	l.mu.Unlock()
	if !dirty || file == nil {
		return
	}
	// Not under the lock: a record must not wait for the disk.
	if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
		l.mu.Lock()
		l.fail(err)
		l.mu.Unlock()
	}
}

// Query returns the newest records that match, limit at most, oldest first.
func (l *Log) Query(ctx context.Context, f Filter, limit int) ([]Record, error) {
	l.mu.Lock()
	first := slices.Clone(l.first)
	l.mu.Unlock()
	var found []Record
	for _, n := range slices.Backward(first) {
		var here []Record
		err := eachLine(filepath.Join(l.cfg.Dir, fileName(n)), func(line []byte) error {
			if _, _, r, ok := parseLine(line); ok && f.Matches(&r) {
				if here = append(here, r); len(here) > 2*limit {
					here = slices.Clone(here[len(here)-limit:])
				}
			}
			return ctx.Err()
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if found = append(here, found...); len(found) >= limit {
			return found[len(found)-limit:], nil
		}
	}
	return found, nil
}

// maxLine is longer than any record.
const maxLine = 1 << 20

func eachLine(path string, visit func(line []byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		if err := visit(lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}
