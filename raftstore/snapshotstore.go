package raftstore

import (
	"cmp"
	"encoding/binary"
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

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore/seal"
)

const (
	snapshotDir    = "snapshots"
	snapshotSuffix = ".snap"
	// damagedSuffix ends the name of a snapshot that did not open. It is kept for
	// whoever wants to know why, until the next one is taken.
	damagedSuffix = ".damaged"
	keepSnapshots = 2

	streamSnapshot = "snapshot" // what the stream is for
	maxMeta        = 1 << 20
)

// sealedSnapshots is raft's SnapshotStore: one sealed stream a snapshot, which begins
// with its length and its metadata, as JSON, and goes on with what the state machine
// wrote. It becomes visible once it is on disk and was read back, and only then raft
// cuts its log.
//
// List shows the newest alone. The one before is kept in case that one is damaged,
// and whether it may take its place depends on the log: see openStorage.
type sealedSnapshots struct {
	dir     string
	ring    *seal.Ring
	log     *slog.Logger
	space   func() (Space, error)
	visible func(index uint64) error // called when a snapshot has become durable
	damage  func(error)              // called when one turns out to be damaged

	mu      sync.Mutex
	files   []snapshotFile // newest first; the first was read to its end
	writing map[*snapshotSink]bool
}

type snapshotFile struct {
	meta raft.SnapshotMeta
	key  uint32
}

// snapshotMeta is what a snapshot file says of itself.
type snapshotMeta struct {
	Version            int                `json:"version"`
	Index              uint64             `json:"index"`
	Term               uint64             `json:"term"`
	Configuration      raft.Configuration `json:"configuration"`
	ConfigurationIndex uint64             `json:"configurationIndex"`
}

const snapshotFormat = 1

func (s *sealedSnapshots) path(id string) string {
	return filepath.Join(s.dir, id+snapshotSuffix)
}

// ids returns the snapshots in the directory, newest first.
func (s *sealedSnapshots) ids() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	type found struct {
		id                string
		term, index, time uint64
	}
	var list []found
	for _, e := range entries {
		var f found
		var ok bool
		if f.id, ok = strings.CutSuffix(e.Name(), snapshotSuffix); !ok {
			continue
		}
		if _, err := fmt.Sscanf(f.id, "%d-%d-%d", &f.term, &f.index, &f.time); err == nil {
			list = append(list, f)
		}
	}
	slices.SortFunc(list, func(a, b found) int {
		return cmp.Or(cmp.Compare(b.term, a.term), cmp.Compare(b.index, a.index), cmp.Compare(b.time, a.time))
	})
	ids := make([]string, len(list))
	for i, f := range list {
		ids[i] = f.id
	}
	return ids, nil
}

// open opens a snapshot, of which the id is what its name says, and reads its
// metadata.
func (s *sealedSnapshots) open(path, id string) (snapshotFile, *seal.StreamReader, *os.File, error) {
	fail := func(f *os.File, err error) (snapshotFile, *seal.StreamReader, *os.File, error) {
		if f != nil {
			f.Close()
		}
		return snapshotFile{}, nil, nil, damaged("snapshot "+path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(nil, err)
	}
	info, err := f.Stat()
	if err != nil {
		return fail(f, err)
	}
	r, err := s.ring.NewStreamReader(f, streamSnapshot)
	if err != nil {
		return fail(f, err)
	}
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return fail(f, err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > maxMeta {
		return fail(f, fmt.Errorf("metadata of %d bytes", n))
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return fail(f, err)
	}
	var meta snapshotMeta
	if err := json.Unmarshal(data, &meta); err != nil {
		return fail(f, err)
	}
	if meta.Version != snapshotFormat {
		return fail(f, fmt.Errorf("format %d; this program knows format %d", meta.Version, snapshotFormat))
	}
	if !strings.HasPrefix(id, fmt.Sprintf("%d-%d-", meta.Term, meta.Index)) {
		return fail(f, fmt.Errorf("it is the snapshot of term %d, index %d, under another's name", meta.Term, meta.Index))
	}
	return snapshotFile{key: r.Key(), meta: raft.SnapshotMeta{
		Version: 1, ID: id, Index: meta.Index, Term: meta.Term,
		Configuration: meta.Configuration, ConfigurationIndex: meta.ConfigurationIndex,
		Size: seal.StreamSize(info.Size()) - int64(n) - 4,
	}}, r, f, nil
}

// verify reads a snapshot to its end.
func (s *sealedSnapshots) verify(path, id string) (snapshotFile, error) {
	file, r, f, err := s.open(path, id)
	if err != nil {
		return snapshotFile{}, err
	}
	defer f.Close()
	dropCache(f)
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return snapshotFile{}, damaged("snapshot "+path, err)
	}
	if n != file.meta.Size {
		return snapshotFile{}, damaged("snapshot "+path, fmt.Errorf("it holds %d bytes, not %d", n, file.meta.Size))
	}
	return file, nil
}

// List implements raft.SnapshotStore.
func (s *sealedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) == 0 {
		return nil, nil
	}
	meta := s.files[0].meta
	meta.Configuration = meta.Configuration.Clone()
	return []*raft.SnapshotMeta{&meta}, nil
}

// newest returns the newest snapshot's metadata, with index 0 if there is none.
func (s *sealedSnapshots) newest() raft.SnapshotMeta {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) == 0 {
		return raft.SnapshotMeta{}
	}
	return s.files[0].meta
}

// Open implements raft.SnapshotStore. What it returns gives nothing that is damaged:
// the read fails there.
func (s *sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	file, r, f, err := s.open(s.path(id), id)
	if err != nil {
		s.damage(err)
		return nil, nil, err
	}
	return &file.meta, &snapshotReader{r, f, s.damage}, nil
}

type snapshotReader struct {
	r      io.Reader
	f      *os.File
	damage func(error)
}

// Read implements io.Reader.
func (r *snapshotReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged("snapshot "+r.f.Name(), err)
		r.damage(err)
	}
	return n, err
}

// Close implements io.Closer.
func (r *snapshotReader) Close() error { return r.f.Close() }

// Create implements raft.SnapshotStore. It refuses to begin what the disk has no room
// to end: twice the size of the last one.
func (s *sealedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("raft's snapshot version %d is not known", version)
	}
	if space, err := s.space(); err == nil {
		if need := 2 * s.newest().Size; space.Free < need {
			return nil, fmt.Errorf("%w for a snapshot: %s free, %s needed; make room on the disk of %s", ErrNoSpace, bytesText(space.Free), bytesText(need), s.dir)
		}
	}
	meta, err := json.Marshal(snapshotMeta{snapshotFormat, index, term, conf, confIndex})
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixMilli())
	sink := &snapshotSink{s: s, id: id}
	if sink.f, err = os.OpenFile(s.path(id)+seal.TempSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	if err = s.begin(sink); err == nil {
		_, err = sink.w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(meta))), meta...))
	}
	if err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	return sink, nil
}

// begin starts the stream of a snapshot. Its key is needed from here on.
func (s *sealedSnapshots) begin(sink *snapshotSink) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing == nil {
		s.writing = make(map[*snapshotSink]bool)
	}
	if sink.w, err = s.ring.NewStreamWriter(sink.f, streamSnapshot); err == nil {
		s.writing[sink] = true
	}
	return err
}

// end forgets a snapshot that was being written.
func (s *sealedSnapshots) end(sink *snapshotSink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.writing, sink)
}

type snapshotSink struct {
	s      *sealedSnapshots
	id     string
	f      *os.File
	w      *seal.StreamWriter
	closed bool
	err    error // of Close
}

// Write implements io.Writer.
func (k *snapshotSink) Write(p []byte) (int, error) { return k.w.Write(p) }

// ID implements raft.SnapshotSink.
func (k *snapshotSink) ID() string { return k.id }

// Cancel implements raft.SnapshotSink.
func (k *snapshotSink) Cancel() error {
	if k.closed {
		return nil
	}
	k.closed = true
	defer k.s.end(k)
	return errors.Join(k.f.Close(), os.Remove(k.f.Name()))
}

// Close implements raft.SnapshotSink. Raft calls it twice.
func (k *snapshotSink) Close() error {
	if k.closed {
		return k.err
	}
	k.closed = true
	defer k.s.end(k)
	if k.err = k.publish(); k.err != nil {
		os.Remove(k.f.Name())
	}
	return k.err
}

func (k *snapshotSink) publish() error {
	if err := errors.Join(k.w.Close(), k.f.Sync(), k.f.Close()); err != nil {
		return err
	}
	file, err := k.s.verify(k.f.Name(), k.id)
	if err != nil {
		return fmt.Errorf("the snapshot is not on disk as it was written: %w", err)
	}
	if err := os.Rename(k.f.Name(), k.s.path(k.id)); err != nil {
		return err
	}
	if err := seal.SyncDir(k.s.dir); err != nil {
		return err
	}
	k.s.add(file)
	return k.s.visible(file.meta.Index)
}

// add puts a snapshot that was read back in front of the others, and removes those
// that are too old to be kept. What cannot be removed now is at the next start.
func (s *sealedSnapshots) add(file snapshotFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = slices.Insert(s.files, 0, file)
	if ids, err := s.ids(); err == nil {
		for _, id := range ids[min(keepSnapshots, len(ids)):] {
			_ = os.Remove(s.path(id))
		}
	}
	old, _ := filepath.Glob(filepath.Join(s.dir, "*"+damagedSuffix))
	for _, path := range old {
		_ = os.Remove(path)
	}
	s.files = s.files[:min(keepSnapshots, len(s.files))]
}

// load finds the snapshots. If the newest one is damaged, mayStandIn decides whether
// what is left (0: nothing) may take its place.
func (s *sealedSnapshots) load(mayStandIn func(older, newest uint64) bool) error {
	if temps, err := filepath.Glob(filepath.Join(s.dir, "*"+seal.TempSuffix)); err == nil {
		for _, path := range temps { // of a crash
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	ids, err := s.ids()
	if err != nil {
		return err
	}
	var bad []error
	for i, id := range ids {
		path := s.path(id)
		if len(s.files) > 0 {
			// Only its key is of interest, unless it is wanted one day.
			if file, _, f, err := s.open(path, id); err == nil {
				s.files = append(s.files, file)
				f.Close()
			}
			continue
		}
		file, err := s.verify(path, id)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		s.files = append(s.files, file)
		if i > 0 && !mayStandIn(file.meta.Index, indexOf(ids[0])) {
			return fmt.Errorf("%w; the log does not reach back to the one before", bad[0])
		}
	}
	if len(bad) > 0 && len(s.files) == 0 && !mayStandIn(0, indexOf(ids[0])) {
		return fmt.Errorf("%w; there is no other, and the log does not begin at its beginning", bad[0])
	}
	for i, err := range bad {
		s.log.Error("a snapshot is damaged; an older one and the log stand in for it", "err", err)
		if err := os.Rename(s.path(ids[i]), s.path(ids[i])+damagedSuffix); err != nil {
			return err
		}
	}
	return nil
}

// indexOf returns the index in a snapshot's name.
func indexOf(id string) (index uint64) {
	var term uint64
	_, _ = fmt.Sscanf(id, "%d-%d-", &term, &index)
	return index
}

// adopt turns the newest snapshot of the format before, a directory, into a sealed
// one, and removes the directories.
func (s *sealedSnapshots) adopt() error {
	old, err := filepath.Glob(filepath.Join(s.dir, "*", "meta.json"))
	if err != nil || len(old) == 0 {
		return err
	}
	store, err := raft.NewFileSnapshotStoreWithLogger(filepath.Dir(s.dir), keepSnapshots, newRaftLogger(s.log))
	if err != nil {
		return err
	}
	list, err := store.List()
	if err != nil {
		return err
	}
	if len(list) > 0 && list[0].Index > s.newest().Index {
		if err := s.copy(store, list[0]); err != nil {
			return damaged("snapshot "+list[0].ID, err)
		}
	}
	for _, path := range old {
		if err := os.RemoveAll(filepath.Dir(path)); err != nil {
			return err
		}
	}
	return nil
}

func (s *sealedSnapshots) copy(from raft.SnapshotStore, meta *raft.SnapshotMeta) error {
	_, r, err := from.Open(meta.ID)
	if err != nil {
		return err
	}
	defer r.Close()
	sink, err := s.Create(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sink, r); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *sealedSnapshots) addKeys(needed map[uint32]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		needed[f.key] = true
	}
	for sink := range s.writing {
		needed[sink.w.Key()] = true
	}
}
