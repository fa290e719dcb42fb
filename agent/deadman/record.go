package deadman

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"time"
)

// recordBytes is the size of a record's file. It never changes, so that to write it
// anew needs no room on the disk.
const recordBytes = 128

// record is a time of the machine's clock since its start, in a file. It is read by
// one process and written by another, in place.
type record struct{ file *os.File }

func openRecord(path string) (record, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return record{}, fmt.Errorf("dead-man: %w", err)
	}
	return record{f}, nil
}

// write replaces what is recorded. It is not synced: the record need not outlive the
// machine, for no container does.
func (r record) write(bootID string, until time.Duration) error {
	line := fmt.Sprintf("holdfast lease 1 %s %020d", bootID, int64(until))
	line = fmt.Sprintf("%s %08x", line, crc32.ChecksumIEEE([]byte(line)))
	if len(line) >= recordBytes {
		return fmt.Errorf("dead-man: boot id %q is too long", bootID)
	}
	data := make([]byte, recordBytes)
	copy(data, line)
	for i := len(line); i < recordBytes; i++ {
		data[i] = '\n'
	}
	_, err := r.file.WriteAt(data, 0)
	return err
}

// errNoRecord: nothing was recorded since the machine's start, or nothing that can
// be read.
var errNoRecord = errors.New("no record of this start of the machine")

// read returns what is recorded for this start of the machine. What is half written
// is read again.
func (r record) read(bootID string) (until time.Duration, err error) {
	for range 10 {
		data := make([]byte, recordBytes)
		n, err := r.file.ReadAt(data, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		line := strings.TrimRight(string(data[:n]), "\n")
		head, sum, ok := cutLast(line)
		if !ok || sum != fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(head))) {
			continue
		}
		var boot string
		var at int64
		if _, err := fmt.Sscanf(head, "holdfast lease 1 %s %d", &boot, &at); err != nil || boot != bootID {
			return 0, errNoRecord
		}
		return time.Duration(at), nil
	}
	return 0, errNoRecord
}

func cutLast(line string) (before, after string, ok bool) {
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}
