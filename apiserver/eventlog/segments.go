package eventlog

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
)

const (
	// segmentMagic begins each segment file; the number is the format's version.
	// Records follow: length and CRC-32C of the payload, four bytes each, little
	// endian, and the payload, an EventRecord.
	segmentMagic  = "holdfast events 1\n"
	segmentSuffix = ".events"
	idFile        = "id"
	recordHeader  = 8
	// maxRecord is far above what a record can be; a longer one is damage.
	maxRecord = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segments is the log's files, or their bookkeeping alone when it is in memory.
// The owner's lock guards it.
type segments struct {
	dir     string // "" for memory
	id      string
	limit   int64 // bytes of a segment, about
	log     *slog.Logger
	bytes   int64 // of all segments
	list    []*segment
	next    int64
	file    *os.File // of the last segment; nil when it must not be appended to
	closed  bool
	failing bool // a write failed; said once
}

type segment struct {
	number int64
	path   string
	bytes  int64
	newest time.Time // the last time of any record in it
}

// openSegments finds the segments in dir, and the log's id, or makes them.
func openSegments(dir string, limit int64, log *slog.Logger) (*segments, error) {
	s := &segments{dir: dir, id: rand.Text(), limit: limit, log: log, next: 1}
	if dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, idFile)
	switch id, err := os.ReadFile(path); {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(strings.TrimSpace(string(id))) == 0:
		if err := os.WriteFile(path, []byte(s.id+"\n"), 0o600); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	default:
		s.id = strings.TrimSpace(string(id))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		number, err := strconv.ParseInt(strings.TrimSuffix(entry.Name(), segmentSuffix), 10, 64)
		if err != nil || !strings.HasSuffix(entry.Name(), segmentSuffix) {
			continue
		}
		s.list = append(s.list, &segment{number: number, path: filepath.Join(dir, entry.Name())})
		s.next = max(s.next, number+1)
	}
	slices.SortFunc(s.list, func(a, b *segment) int { return int(a.number - b.number) })
	return s, nil
}

// replay calls fn for each record, oldest first. A damaged segment ends at the
// damage; appending goes on in a new one.
func (s *segments) replay(fn func(rec *peerv1.EventRecord, segment int64)) error {
	for _, seg := range s.list {
		if err := s.replaySegment(seg, fn); err != nil {
			return err
		}
		s.bytes += seg.bytes
	}
	return nil
}

func (s *segments) replaySegment(seg *segment, fn func(rec *peerv1.EventRecord, segment int64)) error {
	file, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	defer file.Close()
	r := bufio.NewReader(file)
	magic := make([]byte, len(segmentMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != segmentMagic {
		s.log.Warn("event segment has no header and is left alone", "file", seg.path)
		return nil
	}
	seg.bytes = int64(len(segmentMagic))
	var header [recordHeader]byte
	for {
		if _, err := io.ReadFull(r, header[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			break
		}
		size := binary.LittleEndian.Uint32(header[:4])
		if size > maxRecord {
			break
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(r, payload); err != nil {
			break
		}
		var rec peerv1.EventRecord
		if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(header[4:]) || proto.Unmarshal(payload, &rec) != nil {
			break
		}
		seg.bytes += recordHeader + int64(size)
		seg.newest = later(seg.newest, rec.GetLast().AsTime())
		fn(&rec, seg.number)
	}
	s.log.Warn("event segment ends in a damaged record; what follows it is lost", "file", seg.path, "offset", seg.bytes)
	return nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// append writes rec to the last segment and returns that segment's number. When
// writing fails, the record counts all the same: it is kept in memory until its
// segment goes.
func (s *segments) append(rec *peerv1.EventRecord) int64 {
	payload, err := proto.Marshal(rec)
	if err != nil {
		panic(fmt.Sprintf("eventlog: encode record %d of log %s: %v", rec.GetSequence(), rec.GetLog(), err)) // strings are valid UTF-8: see text
	}
	if len(s.list) == 0 || s.list[len(s.list)-1].bytes >= s.limit || s.file == nil && s.dir != "" && !s.closed && !s.failing {
		s.rotate()
	}
	seg := s.list[len(s.list)-1]
	data := make([]byte, recordHeader, recordHeader+len(payload))
	binary.LittleEndian.PutUint32(data, uint32(len(payload)))
	binary.LittleEndian.PutUint32(data[4:], crc32.Checksum(payload, castagnoli))
	data = append(data, payload...)
	if s.file != nil {
		if _, err := s.file.Write(data); err != nil {
			s.fail(err)
		}
	}
	seg.bytes += int64(len(data))
	s.bytes += int64(len(data))
	seg.newest = later(seg.newest, rec.GetLast().AsTime())
	return seg.number
}

// rotate begins a new segment. After a failure this is also the next attempt to
// write at all.
func (s *segments) rotate() {
	s.closeFile()
	seg := &segment{number: s.next, bytes: int64(len(segmentMagic))}
	s.next++
	s.list = append(s.list, seg)
	s.bytes += seg.bytes
	if s.dir == "" || s.closed {
		return
	}
	seg.path = filepath.Join(s.dir, fmt.Sprintf("%016d%s", seg.number, segmentSuffix))
	file, err := os.OpenFile(seg.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err == nil {
		_, err = file.WriteString(segmentMagic)
		s.file = file
	}
	if err != nil {
		s.fail(err)
		return
	}
	s.failing = false
}

func (s *segments) fail(err error) {
	s.closeFile()
	if !s.failing {
		s.log.Error("events cannot be written and are kept in memory only", "dir", s.dir, "err", err)
	}
	s.failing = true
}

func (s *segments) closeFile() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// dropOldest removes the oldest segment and returns its number, unless it is the
// only one.
func (s *segments) dropOldest() (int64, bool) {
	if len(s.list) < 2 {
		return 0, false
	}
	seg := s.list[0]
	s.list = slices.Delete(s.list, 0, 1)
	s.bytes -= seg.bytes
	if seg.path != "" {
		if err := os.Remove(seg.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("old event segment cannot be removed", "file", seg.path, "err", err)
		}
	}
	return seg.number, true
}

// dropBefore removes the oldest segments as long as nothing in them is newer
// than t. The caller has let go of what is in them.
func (s *segments) dropBefore(t time.Time) {
	for len(s.list) > 1 && s.list[0].newest.Before(t) {
		s.dropOldest()
	}
}

func (s *segments) close() {
	s.closeFile()
	s.closed = true
}
