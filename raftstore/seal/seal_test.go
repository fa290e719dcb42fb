package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew; only ever for a new version of a format")

// counting is a source of bytes that are the same each time.
type counting struct{ n byte }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.n
		c.n++
	}
	return len(p), nil
}

var owner = Owner{"cluster", "peer"}

func testKeys(t testing.TB) Keys {
	t.Helper()
	keys, err := NewKeys(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func testRing(t testing.TB) *Ring {
	t.Helper()
	r, err := MakeRing(filepath.Join(t.TempDir(), "keys"), owner, testKeys(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fixedRing is the ring of the golden files.
func fixedRing(t testing.TB) *Ring {
	t.Helper()
	r := newRing("golden", owner, testKeys(t))
	k, err := newDataKey(5, time.Unix(1e9, 0), bytes.Repeat([]byte{9}, 32))
	if err != nil {
		t.Fatal(err)
	}
	r.keys[5], r.current, r.last, r.random = k, k, 5, new(counting)
	return r
}

func testRecord(body string) *Record {
	return &Record{
		Kind: KindEntry, Index: 12, Prev: Link{11, Tag(bytes.Repeat([]byte{0xaa}, 16))},
		Term: 3, Type: 2, Time: 1234567890, Extra: 1, Body: []byte(body),
	}
}

// golden compares with, or writes, a hex dump under testdata.
func golden(t *testing.T, name string, have []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	if *update {
		if err := os.WriteFile(path, []byte(hex.Dump(have)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != hex.Dump(have) {
		t.Errorf("%s: the format has changed; old files must stay readable. Have:\n%s", name, hex.Dump(have))
	}
	return undump(t, string(text))
}

// undump is the inverse of hex.Dump.
func undump(t *testing.T, text string) (data []byte) {
	t.Helper()
	for line := range strings.Lines(text) {
		if len(line) < 60 {
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(line[10:58]), " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, b...)
	}
	return data
}

// TestGolden holds the formats: what this version writes is what it always wrote,
// and opens.
func TestGolden(t *testing.T) {
	r := fixedRing(t)
	want := testRecord("a body, and then extra")
	sealed, _, err := r.Seal(want)
	if err != nil {
		t.Fatal(err)
	}
	have, info, err := r.Open(golden(t, "record", sealed), KindEntry, 12)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(have) != fmt.Sprint(*want) || info.Key != 5 || info.Link.Index != 12 {
		t.Errorf("opened %+v, %+v", have, info)
	}

	var out bytes.Buffer
	w, err := r.NewStreamWriter(&out, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "the stream's content"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if text, err := readStream(r, golden(t, "stream", out.Bytes())); err != nil || string(text) != "the stream's content" {
		t.Errorf("stream: %q, %v", text, err)
	}

	if *update {
		fixed := newRing("testdata/keys.json", owner, &fixedKey{testKeys(t).(*fixedKey).aead, new(counting)})
		k, _ := newDataKey(1, time.Unix(1e9, 0).UTC(), bytes.Repeat([]byte{9}, 32))
		if err := fixed.write(map[uint32]*dataKey{1: k}, 4); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod("testdata/keys.json", 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ring, err := OpenRing("testdata/keys.json", owner, testKeys(t))
	if err != nil {
		t.Fatal(err)
	}
	if k := ring.keys[1]; k == nil || !bytes.Equal(k.secret, bytes.Repeat([]byte{9}, 32)) || ring.last != 4 {
		t.Errorf("key ring: %+v, last %d", k, ring.last)
	}
}

func readStream(r *Ring, sealed []byte) ([]byte, error) {
	s, err := r.NewStreamReader(bytes.NewReader(sealed), "test")
	if err != nil {
		return nil, err
	}
	return io.ReadAll(s)
}

// TestRecordTamper flips each bit of a record, cuts it at each byte, and puts it
// where it does not belong: nothing opens.
func TestRecordTamper(t *testing.T) {
	r := testRing(t)
	sealed, _, err := r.Seal(testRecord("body"))
	if err != nil {
		t.Fatal(err)
	}
	fails := func(what string, r *Ring, data []byte, kind Kind, index uint64) {
		t.Helper()
		if rec, _, err := r.Open(bytes.Clone(data), kind, index); err == nil {
			t.Errorf("%s: opened %+v", what, rec)
		} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for bit := range len(sealed) * 8 {
		data := bytes.Clone(sealed)
		data[bit/8] ^= 1 << (bit % 8)
		fails(fmt.Sprintf("bit %d flipped", bit), r, data, KindEntry, 12)
	}
	for n := range sealed {
		fails(fmt.Sprintf("cut to %d bytes", n), r, sealed[:n], KindEntry, 12)
	}
	fails("longer", r, append(bytes.Clone(sealed), 0), KindEntry, 12)
	fails("at another index", r, sealed, KindEntry, 13)
	fails("as another kind", r, sealed, KindEnd, 12)
	// The same data key in another peer's ring: its records still do not fit.
	for _, o := range []Owner{{"cluster", "peer2"}, {"cluster2", "peer"}, {"clusterp", "eer"}} {
		other := newRing("", o, r.wrapper)
		other.keys = r.keys
		fails(fmt.Sprintf("in %v", o), other, sealed, KindEntry, 12)
	}
	fails("without its key", newRing("", owner, r.wrapper), sealed, KindEntry, 12)
	if _, _, err := r.Open(sealed, KindEntry, 12); err != nil {
		t.Errorf("untouched: %v", err)
	}
}

// TestStreams covers lengths around the chunks' borders, read and written in pieces
// of random length, and each way to damage a stream.
func TestStreams(t *testing.T) {
	r := testRing(t)
	rnd := mrand.New(mrand.NewPCG(1, 2))
	for _, length := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3 * chunkSize, 3*chunkSize + 17} {
		plain := make([]byte, length)
		rand.Read(plain)
		var out bytes.Buffer
		w, err := r.NewStreamWriter(&out, "test")
		if err != nil {
			t.Fatal(err)
		}
		for rest := plain; len(rest) > 0; {
			n := min(len(rest), 1+rnd.IntN(2*chunkSize))
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("x")); err == nil {
			t.Error("a closed stream takes more")
		}
		sealed := out.Bytes()
		if size := StreamSize(int64(len(sealed))); size != int64(length) {
			t.Errorf("%d bytes: StreamSize says %d", length, size)
		}
		if have, err := readStream(r, sealed); err != nil || !bytes.Equal(have, plain) {
			t.Errorf("%d bytes: read %d, %v", length, len(have), err)
		}
		fails := func(what string, data []byte) {
			t.Helper()
			have, err := readStream(r, data)
			if err == nil {
				t.Errorf("%d bytes, %s: read to its end", length, what)
			} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoKey) {
				t.Errorf("%d bytes, %s: %v", length, what, err)
			}
			if !bytes.HasPrefix(plain, have) {
				t.Errorf("%d bytes, %s: read something else before it was noticed", length, what)
			}
		}
		for range 100 {
			data := bytes.Clone(sealed)
			at := rnd.IntN(len(data))
			data[at] ^= 1 << rnd.IntN(8)
			fails(fmt.Sprintf("byte %d flipped", at), data)
			fails("cut", sealed[:rnd.IntN(len(sealed))])
		}
		for at := range streamHeader {
			data := bytes.Clone(sealed)
			data[at] ^= 0x80
			fails(fmt.Sprintf("byte %d of the header flipped", at), data)
		}
		fails("with more behind it", append(bytes.Clone(sealed), 0))
		fails("twice", append(bytes.Clone(sealed), sealed[streamHeader:]...))
		for n := streamHeader; n < len(sealed); n += chunkSize + tagSize {
			fails("cut between chunks", sealed[:n])
		}
		if length > 2*chunkSize {
			const c = chunkSize + tagSize
			swapped := bytes.Clone(sealed)
			copy(swapped[streamHeader:], sealed[streamHeader+c:streamHeader+2*c])
			copy(swapped[streamHeader+c:], sealed[streamHeader:streamHeader+c])
			fails("chunks swapped", swapped)
		}
	}
	var out bytes.Buffer
	w, _ := r.NewStreamWriter(&out, "other")
	w.Close()
	if _, err := readStream(r, out.Bytes()); err == nil {
		t.Error("a stream for another purpose opens")
	}
}

// failing fails at some point, as a disk does.
type failing struct{ left int }

var errDisk = errors.New("disk")

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errDisk
	}
	return len(p), nil
}

// TestStreamWriteErrors covers a disk that fails: the stream does not become whole.
func TestStreamWriteErrors(t *testing.T) {
	r := testRing(t)
	for _, room := range []int{0, streamHeader, streamHeader + chunkSize + tagSize} {
		w, err := r.NewStreamWriter(&failing{room}, "test")
		if err == nil {
			_, werr := w.Write(make([]byte, 3*chunkSize))
			err = errors.Join(werr, w.Close())
		}
		if !errors.Is(err, errDisk) {
			t.Errorf("room for %d bytes: %v", room, err)
		}
	}
}

// TestRing covers keys over their life: made, current, kept, forgotten, and the file
// in between.
func TestRing(t *testing.T) {
	r := testRing(t)
	reopen := func() *Ring {
		t.Helper()
		again, err := OpenRing(r.path, owner, r.wrapper)
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	var sealed [][]byte
	for i := range 4 {
		data, info, err := r.Seal(testRecord(strings.Repeat("x", i)))
		if err != nil {
			t.Fatal(err)
		}
		if info.Key != uint32(i+1) {
			t.Errorf("sealed by key %d, want %d", info.Key, i+1)
		}
		sealed = append(sealed, data)
		if err := r.Rotate(); err != nil {
			t.Fatal(err)
		}
	}
	r = reopen()
	if r.Current() != 5 {
		t.Errorf("current key %d after opening", r.Current())
	}
	if err := r.Keep(map[uint32]bool{2: true, 4: true}); err != nil {
		t.Fatal(err)
	}
	r = reopen()
	if got := fmt.Sprint(r.Numbers()); got != "[2 4 5]" {
		t.Errorf("kept %s", got)
	}
	for i, data := range sealed {
		_, _, err := r.Open(bytes.Clone(data), KindEntry, 12)
		if i%2 == 1 && err != nil || i%2 == 0 && !errors.Is(err, ErrNoKey) {
			t.Errorf("record of key %d: %v", i+1, err)
		}
	}
	// The newest key's number is not given again, whatever was forgotten.
	if err := r.Rotate(); err != nil || r.Current() != 6 {
		t.Errorf("current key %d, %v", r.Current(), err)
	}
	if info, err := os.Stat(r.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the ring: %v, %v", info.Mode(), err)
	}

	if r.Due(time.Now()) {
		t.Error("a new key is due")
	}
	if !r.Due(time.Now().Add(MaxAge + time.Hour)) {
		t.Error("an old key is not due")
	}
	r.current.records.Store(MaxRecords/2 + 1)
	if !r.Due(time.Now()) {
		t.Error("a key that has sealed much is not due")
	}
	r.current.records.Store(MaxRecords)
	if _, _, err := r.Seal(testRecord("")); err == nil {
		t.Error("a key seals more than it may")
	}
	r.current.records.Store(0)
	r.current.bytes.Store(math.MaxInt64 - 1<<20)
	if _, _, err := r.Seal(testRecord("")); err == nil {
		t.Error("a key seals more bytes than it may")
	}
}

// TestRingTamper changes each byte of a ring's file: it does not open, or has the
// same keys.
func TestRingTamper(t *testing.T) {
	r := testRing(t)
	if err := r.Rotate(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for at := range data {
		damaged := bytes.Clone(data)
		damaged[at] ^= 1
		if err := os.WriteFile(r.path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := OpenRing(r.path, owner, r.wrapper)
		if err != nil {
			continue
		}
		opened++
		for id, k := range again.keys {
			if !bytes.Equal(k.secret, r.keys[id].secret) {
				t.Errorf("byte %d: key %d is another", at, id)
			}
		}
	}
	if opened > len(data)/3 { // spaces, and dates
		t.Errorf("%d of %d changes go unnoticed", opened, len(data))
	}
	if err := os.WriteFile(r.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRing(r.path, Owner{"cluster", "other"}, r.wrapper); !errors.Is(err, ErrDamaged) {
		t.Errorf("another peer's ring: %v", err)
	}
	other, _ := NewKeys(bytes.Repeat([]byte{8}, 32))
	if _, err := OpenRing(r.path, owner, other); !errors.Is(err, ErrDamaged) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := MakeRing(r.path, owner, r.wrapper); err == nil {
		t.Error("a ring was made over another")
	}
}

// brokenKeys cannot wrap, as a KMS that is away.
type brokenKeys struct{ Keys }

func (brokenKeys) Wrap([]byte, []byte) ([]byte, error) { return nil, errDisk }

// TestRotateFails covers a rotation that fails: the ring goes on as it was.
func TestRotateFails(t *testing.T) {
	r := testRing(t)
	r.wrapper = brokenKeys{r.wrapper}
	if err := r.Rotate(); !errors.Is(err, errDisk) || r.Current() != 1 {
		t.Errorf("key %d, %v", r.Current(), err)
	}
	r.path = filepath.Join(r.path, "no", "directory")
	r.wrapper = testKeys(t)
	if err := r.Rotate(); err == nil || r.Current() != 1 {
		t.Errorf("key %d, %v", r.Current(), err)
	}
	if _, _, err := r.Seal(testRecord("x")); err != nil {
		t.Error(err)
	}
}

// TestKeyFile covers the file of the key of keys.
func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	made, err := MakeKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := made.Wrap([]byte("secret"), []byte("for"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := KeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if secret, err := keys.Unwrap(wrapped, []byte("for")); err != nil || string(secret) != "secret" {
		t.Errorf("unwrapped %q, %v", secret, err)
	}
	if _, err := keys.Unwrap(wrapped, []byte("else")); !errors.Is(err, ErrDamaged) {
		t.Errorf("unwrapped for something else: %v", err)
	}
	if _, err := keys.Unwrap(wrapped[:5], nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("unwrapped a piece: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := KeyFile(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
	for _, text := range []string{"", "holdfast-key-1 AAAA", "holdfast-key-2 " + strings.Repeat("A", 43) + "="} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chmod(path, 0o600)
		if _, err := KeyFile(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzOpen feeds the decoders with anything.
func FuzzOpen(f *testing.F) {
	r := fixedRing(f)
	sealed, _, err := r.Seal(testRecord("body"))
	if err != nil {
		f.Fatal(err)
	}
	var out bytes.Buffer
	w, _ := r.NewStreamWriter(&out, "test")
	w.Close()
	f.Add(sealed)
	f.Add(out.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := r.Open(bytes.Clone(data), KindEntry, 12); err == nil && !bytes.Equal(data, sealed) {
			t.Error("a forged record opens")
		}
		if _, err := readStream(r, data); err == nil && !bytes.Equal(data, out.Bytes()) {
			t.Error("a forged stream opens")
		}
		_, _ = StreamKey(bytes.NewReader(data))
	})
}

// BenchmarkSeal is the cost of sealing and opening an entry of the usual size.
func BenchmarkSeal(b *testing.B) {
	r := testRing(b)
	rec := testRecord(strings.Repeat("x", 256<<10))
	b.SetBytes(256 << 10)
	for b.Loop() {
		sealed, _, err := r.Seal(rec)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := r.Open(sealed, KindEntry, 12); err != nil {
			b.Fatal(err)
		}
	}
}
