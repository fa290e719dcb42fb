package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// pollInterval is how often a reader at the end looks for more.
const pollInterval = 100 * time.Millisecond

// Options selects part of a log.
type Options struct {
	Tail       int64     // the last so many lines; negative: all
	Since      time.Time // only lines as new as this; zero: all
	Timestamps bool      // each line begins with its time
	// Ended makes Read follow the log. It is asked, at the end of what is there
	// and while nobody writes, whether nobody will; Read returns once it says so.
	// Nil: Read returns at the end of what is there.
	Ended func(ctx context.Context) bool
}

// Read writes the log in dir to w, oldest line first, without the form that the
// segments have. It returns nil at the end, ctx's error when that ends first,
// fs.ErrNotExist when there is no log (unless it follows), and w's error as it
// is. Lines that a rotation has taken away while w was slow are left out.
func Read(ctx context.Context, dir string, options Options, w io.Writer) error {
	if options.Ended == nil && len(segments(dir)) == 0 {
		return fmt.Errorf("log %s: %w", dir, fs.ErrNotExist)
	}
	start := position{}
	if options.Tail >= 0 {
		var err error
		if start, err = tailStart(ctx, dir, options); err != nil {
			return err
		}
	}
	p := &printer{w: w, options: options, open: map[Stream]bool{}}
	return walk(ctx, dir, start, options.Ended, func(l line, _ position) error { return p.print(l) })
}

// position is where a line begins. The zero position is before all lines.
type position struct {
	segment int
	offset  int64
}

// line is one line of a segment. Its text is valid until the next is read.
type line struct {
	time    time.Time
	stamp   []byte // time as it is written
	stream  Stream
	partial bool // the line goes on in the stream's next one
	text    []byte
}

// tailStart finds where the last options.Tail lines begin. What is written
// after it has looked comes on top.
func tailStart(ctx context.Context, dir string, options Options) (position, error) {
	var (
		ring   []position
		count  int64
		last   position
		within = map[Stream]bool{} // streams within a line of several pieces
	)
	err := walk(ctx, dir, position{}, nil, func(l line, at position) error {
		last = position{at.segment, at.offset + 1}
		begins := !within[l.stream]
		within[l.stream] = l.partial
		if !begins || l.time.Before(options.Since) || options.Tail == 0 {
			return nil
		}
		if count < options.Tail {
			ring = append(ring, at)
		} else {
			ring[count%options.Tail] = at
		}
		count++
		return nil
	})
	switch {
	case err != nil:
		return position{}, err
	case options.Tail == 0 || count == 0:
		return last, nil
	case count <= options.Tail:
		return ring[0], nil
	}
	return ring[count%options.Tail], nil
}

// walk calls visit for each line that begins at start or later. It returns at
// the end of what is there if ended is nil; else it waits for more until
// nobody writes and ended says so.
func walk(ctx context.Context, dir string, start position, ended func(context.Context) bool, visit func(line, position) error) error {
	at := start
	var seg *segment
	defer func() {
		if seg != nil {
			seg.file.Close()
		}
	}()
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		// The order matters: who sees that nobody writes any more, and reads to
		// the end after that, has read all.
		over := ended == nil || (!Live(dir) && ended(ctx))
		next, hasNext := nextSegment(dir, at.segment, seg != nil)
		if seg == nil && hasNext {
			file, err := os.Open(filepath.Join(dir, segmentName(next)))
			if errors.Is(err, fs.ErrNotExist) {
				continue // rotated away just now
			}
			if err != nil {
				return fmt.Errorf("open log segment: %w", err)
			}
			offset := int64(0)
			if next == at.segment {
				offset = at.offset
			}
			seg = &segment{file: file, number: next}
			at.segment = next
			if err := seg.seek(offset); err != nil {
				return err
			}
			continue // look again whether it is the last one
		}
		if seg != nil {
			// hasNext was true before this reading: then the segment is complete.
			if err := seg.read(ctx, visit); err != nil {
				return err
			}
			if hasNext {
				seg.file.Close()
				seg = nil
				at = position{segment: next}
				continue
			}
		}
		if over {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollInterval):
		}
	}
}

// nextSegment returns the segment to read at or, if past is set, after number.
func nextSegment(dir string, number int, past bool) (int, bool) {
	for _, n := range segments(dir) {
		if n > number || (n == number && !past) {
			return n, true
		}
	}
	return 0, false
}

// segment is one file of a log being read.
type segment struct {
	file   *os.File
	number int
	offset int64  // of the first byte of carry
	carry  []byte // read, but not yet a whole line
}

// seek goes to the first line that begins at offset or later.
func (s *segment) seek(offset int64) error {
	if offset == 0 {
		return nil
	}
	// One byte back: if that ends a line, one begins at offset.
	if _, err := s.file.Seek(offset-1, io.SeekStart); err != nil {
		return fmt.Errorf("seek in log segment: %w", err)
	}
	s.offset = offset - 1
	buf := make([]byte, 2*maxPiece)
	for {
		n, err := s.file.Read(buf)
		if end := bytes.IndexByte(buf[:n], '\n'); end >= 0 {
			s.offset += int64(end) + 1
			s.carry = append(s.carry[:0], buf[end+1:n]...)
			return nil
		}
		s.offset += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log segment: %w", err)
		}
	}
}

// read visits all whole lines up to the end of the file as it is now.
func (s *segment) read(ctx context.Context, visit func(line, position) error) error {
	buf := make([]byte, 64<<10)
	for {
		rest := s.carry
		for {
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				break
			}
			if l, ok := parseLine(rest[:end]); ok {
				if err := visit(l, position{s.number, s.offset}); err != nil {
					return err
				}
			}
			s.offset += int64(end) + 1
			rest = rest[end+1:]
		}
		s.carry = append(s.carry[:0], rest...)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := s.file.Read(buf)
		s.carry = append(s.carry, buf[:n]...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log segment: %w", err)
		}
	}
}

// parseLine takes a line apart. What is no line of ours (half a line, after a
// full disk) is not ok and skipped.
func parseLine(data []byte) (line, bool) {
	stamp, rest, ok1 := bytes.Cut(data, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	flag, text, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || !ok3 || len(flag) != 1 {
		return line{}, false
	}
	when, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return line{}, false
	}
	return line{time: when, stamp: stamp, stream: Stream(stream), partial: flag[0] == 'P', text: text}, true
}

// printer writes lines as a reader wants them.
type printer struct {
	w       io.Writer
	options Options
	open    map[Stream]bool // streams whose last piece had no end
	buf     []byte
}

func (p *printer) print(l line) error {
	begins := !p.open[l.stream]
	if l.time.Before(p.options.Since) {
		return nil
	}
	p.open[l.stream] = l.partial
	p.buf = p.buf[:0]
	if begins && p.options.Timestamps {
		p.buf = append(append(p.buf, l.stamp...), ' ')
	}
	p.buf = append(p.buf, l.text...)
	if !l.partial {
		p.buf = append(p.buf, '\n')
	}
	_, err := p.w.Write(p.buf)
	return err
}
