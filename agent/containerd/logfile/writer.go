package logfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stream says where a line came from.
type Stream string

// The streams of a container. One with a terminal has only Stdout.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

const (
	// DefaultSegmentBytes is the size at which a segment is closed, DefaultSegments how
	// many are kept, the one that grows included: as in Kubernetes.
	DefaultSegmentBytes = 10 << 20
	DefaultSegments     = 5

	// maxPiece is the longest text of one line of a segment. Longer lines are
	// cut into pieces, so that a container that never ends a line needs no memory.
	maxPiece = 16 << 10

	lockName   = "lock"
	timeLayout = "2006-01-02T15:04:05.000000000Z07:00"
)

// Size bounds a log. What is 0 is as the defaults say.
type Size struct {
	SegmentBytes int64
	Segments     int
}

// Writer writes one log. Its methods may be called concurrently.
type Writer struct {
	dir  string
	max  Size
	now  func() time.Time
	lock *os.File // holds the lock while open

	mu     sync.Mutex // protects all below
	file   *os.File
	number int   // of the segment that file is
	size   int64 // of file
	torn   bool  // file ends within a line, after a write that failed half way
	lost   int   // lines that could not be written since the last that could
	lostBy error // why
}

// Create opens the log in dir for writing, making it if need be, and goes on
// behind what is there. It returns an error when another writer has the log.
func Create(dir string, size Size) (*Writer, error) {
	size.SegmentBytes = cmp.Or(size.SegmentBytes, DefaultSegmentBytes)
	size.Segments = cmp.Or(size.Segments, DefaultSegments)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log's lock: %w", err)
	}
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, wholeFile()); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock log %s, which another process seems to write: %w", dir, err)
	}
	w := &Writer{dir: dir, max: size, now: time.Now, lock: lock}
	if numbers := segments(dir); len(numbers) > 0 {
		w.number = numbers[len(numbers)-1]
	}
	if err := w.nextSegment(); err != nil {
		lock.Close()
		return nil, err
	}
	return w, nil
}

// Copy writes all that r gives, until it ends, as lines of stream. A last line
// without an end gets one. Copy goes on reading when nothing can be written,
// since a container must not be stopped by a full disk; what was lost is counted
// and reported in the log once it can be. It returns r's error, nil for io.EOF.
func (w *Writer) Copy(stream Stream, r io.Reader) error {
	buf := make([]byte, 2*maxPiece)
	held := 0 // bytes at the start of buf that wait for the end of their line
	for {
		n, err := r.Read(buf[held:])
		held += n
		rest := buf[:held]
		for {
			end := bytes.IndexByte(rest, '\n')
			if end > maxPiece || (end < 0 && len(rest) >= maxPiece) {
				w.append(stream, "P", rest[:maxPiece])
				rest = rest[maxPiece:]
				continue
			}
			if end < 0 {
				break
			}
			w.append(stream, "F", rest[:end])
			rest = rest[end+1:]
		}
		held = copy(buf, rest)
		if err != nil {
			if held > 0 {
				w.append(stream, "F", buf[:held])
			}
			if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		}
	}
}

// Close ends the log: a reader that follows it will end too.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.file.Close(), w.lock.Close())
}

// append writes one line in one write, so that a reader rarely sees half of it.
func (w *Writer) append(stream Stream, flag string, text []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var line []byte
	if w.torn {
		line = append(line, '\n')
	}
	if w.lost > 0 {
		line = w.format(line, Stderr, "F", fmt.Appendf(nil, "[holdfast: %d lines were lost here: %v]", w.lost, w.lostBy))
	}
	line = w.format(line, stream, flag, text)
	if w.size > 0 && w.size+int64(len(line)) > w.max.SegmentBytes {
		// On failure the old segment grows on: better too long than lost.
		_ = w.nextSegment()
	}
	n, err := w.file.Write(line)
	w.size += int64(n)
	if err != nil {
		w.torn = w.torn && n == 0 || n > 0
		w.lost++
		w.lostBy = err
		if path, ok := errors.AsType[*fs.PathError](err); ok {
			w.lostBy = path.Err // the name of the file is of no use in it
		}
		return
	}
	w.torn, w.lost, w.lostBy = false, 0, nil
}

func (w *Writer) format(line []byte, stream Stream, flag string, text []byte) []byte {
	line = w.now().UTC().AppendFormat(line, timeLayout)
	line = append(line, ' ')
	line = append(line, stream...)
	line = append(line, ' ')
	line = append(line, flag...)
	line = append(line, ' ')
	line = append(line, text...)
	return append(line, '\n')
}

// nextSegment opens the next segment and removes those that are too old.
func (w *Writer) nextSegment() error {
	name := filepath.Join(w.dir, segmentName(w.number+1))
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("open log segment: %w", err)
	}
	if w.file != nil {
		w.file.Close()
	}
	w.file, w.size, w.torn = file, 0, false
	w.number++
	for _, n := range segments(w.dir) {
		if n <= w.number-w.max.Segments {
			_ = os.Remove(filepath.Join(w.dir, segmentName(n)))
		}
	}
	return nil
}

// segments returns the numbers of the segments in dir, rising.
func segments(dir string) []int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var numbers []int
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".log")
		if n, err := strconv.Atoi(name); ok && err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}

func segmentName(n int) string { return fmt.Sprintf("%08d.log", n) }

func wholeFile() *unix.Flock_t { return &unix.Flock_t{Type: unix.F_WRLCK} }

// Live tells whether a process has the log in dir open for writing.
func Live(dir string) bool {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer lock.Close()
	held := wholeFile()
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_GETLK, held); err != nil {
		return false
	}
	return held.Type != unix.F_UNLCK
}
