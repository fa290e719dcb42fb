package faults

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is what goes wrong.
type Kind string

// The kinds of faults, and the fields that each of them uses.
const (
	Cut   Kind = "cut"   // Peer, Direction: bytes stall, packets vanish; nothing is closed
	Delay Kind = "delay" // Peer, Direction, Delay, Jitter, Bandwidth
	Drop  Kind = "drop"  // Peer, Direction, Rate: packets vanish, a stream's bytes are sent again later
	Flap  Kind = "flap"  // Peer, Direction, Period: a cut in the first half of each period

	DiskSlow Kind = "disk-slow" // Part, Delay, Jitter: of each write
	DiskFail Kind = "disk-fail" // Part, Times: writes fail with EIO, and may have happened all the same
	DiskHang Kind = "disk-hang" // Part: writes wait until the fault is cleared
	DiskFull Kind = "disk-full" // Part: writes fail with ENOSPC, FreeSpace is 0

	Pause Kind = "pause" // all network and disk traffic waits until the fault is cleared
	Clock Kind = "clock" // Offset, Drift: of the wall clock
)

// What is done once, by Flip and Diverge, and is in force for nobody: Fired counts it.
const (
	MemoryFlip    Kind = "memory-flip"
	MemoryDiverge Kind = "memory-diverge"
)

// uses has the fields that each kind understands, with the one it must have marked.
var uses = map[Kind][]string{
	Cut:      {"peer", "direction"},
	Delay:    {"peer", "direction", "delay", "jitter", "bandwidth"},
	Drop:     {"peer", "direction", "rate!"},
	Flap:     {"peer", "direction", "period!"},
	DiskSlow: {"part", "delay!", "jitter"},
	DiskFail: {"part", "times"},
	DiskHang: {"part"},
	DiskFull: {"part"},
	Pause:    {},
	Clock:    {"offset", "drift"},
}

// Direction is the way of a message, as the plane's process sees it.
type Direction string

// Directions. In a Fault, Both and the zero value are the same.
const (
	Both Direction = "both"
	Out  Direction = "out"
	In   Direction = "in"
)

// Part is a part of a store's disk.
type Part string

// The parts of a disk. In a Fault, the zero value is all of them.
const (
	Log       Part = "log"
	Votes     Part = "votes"
	Snapshots Part = "snapshots"
)

// Fault is one thing that goes wrong.
type Fault struct {
	Kind Kind
	// Peer limits a network fault to one other end: its id, host, or host:port.
	// Empty is everybody.
	Peer      string
	Direction Direction
	// Delay, and up to Jitter more, pass before each message or write. A stream
	// keeps its order; packets do not.
	Delay, Jitter time.Duration
	// Bandwidth is in bytes per second, for each connection; 0 has no limit.
	Bandwidth int64
	// Rate is the share of messages, 0 to 1.
	Rate float64
	// Period is the time of a flap's cut and the peace after it, together.
	Period time.Duration
	Part   Part
	// Times is how often the fault strikes; 0 is always.
	Times int64
	// Offset is added to the wall clock, and Drift for each second since the fault
	// was set.
	Offset time.Duration
	Drift  float64
}

// String returns the fault as Parse reads it.
func (f Fault) String() string {
	b := []byte(f.Kind)
	field := func(name, value string, set bool) {
		if set {
			b = append(append(append(append(b, ' '), name...), '='), value...)
		}
	}
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	field("peer", f.Peer, f.Peer != "")
	field("direction", string(f.Direction), f.Direction != "" && f.Direction != Both)
	field("delay", f.Delay.String(), f.Delay != 0)
	field("jitter", f.Jitter.String(), f.Jitter != 0)
	field("bandwidth", strconv.FormatInt(f.Bandwidth, 10), f.Bandwidth != 0)
	field("rate", number(f.Rate), f.Rate != 0)
	field("period", f.Period.String(), f.Period != 0)
	field("part", string(f.Part), f.Part != "")
	field("times", strconv.FormatInt(f.Times, 10), f.Times != 0)
	field("offset", f.Offset.String(), f.Offset != 0)
	field("drift", number(f.Drift), f.Drift != 0)
	return string(b)
}

// Parse reads a fault's text form: its kind, then field=value, as Fault names the
// fields, with durations as in "1.5s".
func Parse(text string) (Fault, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return Fault{}, fmt.Errorf("no fault: begin with one of %s", kinds())
	}
	f := Fault{Kind: Kind(words[0])}
	for _, word := range words[1:] {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return Fault{}, fmt.Errorf("fault %s: %q is not field=value", f.Kind, word)
		}
		if err := f.set(name, value); err != nil {
			return Fault{}, fmt.Errorf("fault %s: %s=%s: %w", f.Kind, name, value, err)
		}
	}
	return f, f.check()
}

func (f *Fault) set(name, value string) (err error) {
	switch name {
	case "peer":
		f.Peer = value
	case "direction":
		f.Direction = Direction(value)
	case "delay":
		f.Delay, err = time.ParseDuration(value)
	case "jitter":
		f.Jitter, err = time.ParseDuration(value)
	case "bandwidth":
		f.Bandwidth, err = strconv.ParseInt(value, 10, 64)
	case "rate":
		f.Rate, err = strconv.ParseFloat(value, 64)
	case "period":
		f.Period, err = time.ParseDuration(value)
	case "part":
		f.Part = Part(value)
	case "times":
		f.Times, err = strconv.ParseInt(value, 10, 64)
	case "offset":
		f.Offset, err = time.ParseDuration(value)
	case "drift":
		f.Drift, err = strconv.ParseFloat(value, 64)
	default:
		err = fmt.Errorf("no such field")
	}
	return err
}

// check finds what makes no sense: a fault that is misspelt would be one that
// never strikes, and a test that shows nothing.
func (f Fault) check() error {
	fields, ok := uses[f.Kind]
	if !ok {
		return fmt.Errorf("no fault is called %q: there are %s", f.Kind, kinds())
	}
	set := f.fields()
	for _, name := range set {
		if !slices.Contains(fields, name) && !slices.Contains(fields, name+"!") {
			return fmt.Errorf("fault %s has no %s: it has %s", f.Kind, name, strings.ReplaceAll(strings.Join(fields, ", "), "!", ""))
		}
	}
	for _, name := range fields {
		if need, ok := strings.CutSuffix(name, "!"); ok && !slices.Contains(set, need) {
			return fmt.Errorf("fault %s needs %s", f.Kind, need)
		}
	}
	switch {
	case f.Direction != "" && f.Direction != Both && f.Direction != In && f.Direction != Out:
		return fmt.Errorf("fault %s: direction %q is none of both, in, out", f.Kind, f.Direction)
	case f.Part != "" && f.Part != Log && f.Part != Votes && f.Part != Snapshots:
		return fmt.Errorf("fault %s: part %q is none of log, votes, snapshots", f.Kind, f.Part)
	case f.Rate < 0 || f.Rate > 1:
		return fmt.Errorf("fault %s: rate %v is not between 0 and 1", f.Kind, f.Rate)
	case f.Delay < 0 || f.Jitter < 0 || f.Period < 0 || f.Bandwidth < 0 || f.Times < 0:
		return fmt.Errorf("fault %s: a negative number makes no sense here", f.Kind)
	}
	return nil
}

// fields returns the names of those that are set.
func (f Fault) fields() (names []string) {
	for _, word := range strings.Fields(f.String())[1:] {
		name, _, _ := strings.Cut(word, "=")
		names = append(names, name)
	}
	return names
}

func kinds() string {
	var names []string
	for k := range uses {
		names = append(names, string(k))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// matches reports whether a network fault concerns messages in direction dir to or
// from an end that goes by any of names.
func (f *Fault) matches(dir Direction, names []string) bool {
	if f.Direction != "" && f.Direction != Both && f.Direction != dir {
		return false
	}
	return f.Peer == "" || slices.Contains(names, f.Peer)
}
