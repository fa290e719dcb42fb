// Package linear plays a small workload against a store and decides whether what the
// clients saw is linearizable: whether there is one order of all operations, each
// between its call and its answer, that explains every answer.
//
// Each key is a register with compare-and-swap. Porcupine searches the order; keys
// are independent, and each is searched by itself.
package linear

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	Read  Kind = "read"
	Write Kind = "write"
	// Swap writes if the key has the expected value.
	Swap Kind = "swap"
)

// Op is an operation of the history.
type Op struct {
	Client int    `json:"client"`
	Peer   string `json:"peer"`
	Kind   Kind   `json:"kind"`
	Key    string `json:"key"`
	// Value is what is written, or what was read; "" for a key that does not exist.
	Value string `json:"value"`
	// Expect is the value that a swap asks for.
	Expect string `json:"expect,omitempty"`
	// Swapped is whether it did.
	Swapped bool `json:"swapped,omitempty"`
	// Unknown: no answer came, and it may happen at any later time, or never.
	Unknown bool `json:"unknown,omitempty"`
	// Call and Return are when, from the history's begin.
	Call   time.Duration `json:"call"`
	Return time.Duration `json:"return"`
}

// Client does operations on one peer.
type Client interface {
	// Peer names it, for the evidence.
	Peer() string
	// Read returns the value of key, "" if it does not exist: a linearizable read.
	Read(ctx context.Context, key string) (string, error)
	// Write sets key.
	Write(ctx context.Context, key, value string) error
	// Swap sets key if its value is expect, "" for none, and reports whether it did.
	Swap(ctx context.Context, key, expect, value string) (bool, error)
}

// Config says how much is played.
type Config struct {
	Clients  []Client
	Keys     []string
	Duration time.Duration
	// OpTimeout bounds one operation.
	OpTimeout time.Duration
}

// pause is how long a client rests after an error, so that a cluster that cannot
// answer does not fill the history with operations of unknown outcome, which are
// what makes the search long.
const pause = 500 * time.Millisecond

// Play runs the workload until it is over, or ctx ends, and returns the history.
// failed counts operations without an answer.
func Play(ctx context.Context, cfg Config) (history []Op, failed int) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Duration)
	defer cancel()
	begin := time.Now()
	var mu sync.Mutex
	var clients sync.WaitGroup
	for n, client := range cfg.Clients {
		clients.Go(func() {
			var seen string
			for i := 0; ctx.Err() == nil; i++ {
				op := Op{Client: n, Peer: client.Peer(), Key: cfg.Keys[rand.IntN(len(cfg.Keys))]}
				// The last operation may end after the time is over.
				one, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.OpTimeout)
				var err error
				op.Call = time.Since(begin)
				switch fresh := fmt.Sprintf("%d.%d", n, i); rand.IntN(4) {
				case 0:
					op.Kind, op.Value = Write, fresh
					err = client.Write(one, op.Key, op.Value)
				case 1:
					op.Kind, op.Value, op.Expect = Swap, fresh, seen
					op.Swapped, err = client.Swap(one, op.Key, op.Expect, op.Value)
				default:
					op.Kind = Read
					op.Value, err = client.Read(one, op.Key)
					seen = op.Value
				}
				op.Return = time.Since(begin)
				cancel()
				mu.Lock()
				if err != nil {
					failed++
				}
				if op.Unknown = err != nil; !op.Unknown || op.Kind != Read {
					history = append(history, op)
				}
				mu.Unlock()
				if err != nil {
					select {
					case <-time.After(pause):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	clients.Wait()
	return history, failed
}

// Verdict is what a search came to.
type Verdict string

// The verdicts.
const (
	Linearizable    Verdict = "linearizable"
	NotLinearizable Verdict = "not linearizable"
	// Undecided: the search took longer than it may.
	Undecided Verdict = "undecided"
)

// Check searches an order for at most limit. All keys must not exist when the
// history begins.
func Check(history []Op, limit time.Duration) (Verdict, porcupine.LinearizationInfo) {
	var end time.Duration
	for _, op := range history {
		end = max(end, op.Return)
	}
	operations := make([]porcupine.Operation, 0, len(history))
	for i, op := range history {
		ret := op.Return
		if op.Unknown {
			ret = end + 1 + time.Duration(i) // after all that is known
		}
		operations = append(operations, porcupine.Operation{ClientId: op.Client, Input: op, Call: int64(op.Call), Output: op, Return: int64(ret)})
	}
	result, info := porcupine.CheckOperationsVerbose(model, operations, limit)
	switch result {
	case porcupine.Ok:
		return Linearizable, info
	case porcupine.Illegal:
		return NotLinearizable, info
	default:
		return Undecided, info
	}
}

// Picture writes a page that shows an order as far as one was found, for a browser.
func Picture(w io.Writer, info porcupine.LinearizationInfo) error {
	return porcupine.Visualize(model, info, w)
}

// WriteJSON writes the history, in the order of calls.
func WriteJSON(w io.Writer, history []Op) error {
	slices.SortFunc(history, func(a, b Op) int { return int(a.Call - b.Call) })
	enc := json.NewEncoder(w)
	for _, op := range history {
		if err := enc.Encode(op); err != nil {
			return err
		}
	}
	return nil
}

// model is a register for each key.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := make(map[string][]porcupine.Operation)
		for _, op := range history {
			key := op.Input.(Op).Key
			byKey[key] = append(byKey[key], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		have, op := state.(string), input.(Op)
		switch op.Kind {
		case Read:
			return op.Value == have, have
		case Write:
			return true, op.Value
		default:
			matches := have == op.Expect
			if matches {
				have = op.Value
			}
			return op.Unknown || op.Swapped == matches, have
		}
	},
	DescribeOperation: func(input, _ any) string {
		op := input.(Op)
		switch {
		case op.Kind == Read:
			return fmt.Sprintf("%s reads %q", op.Key, op.Value)
		case op.Kind == Write:
			return fmt.Sprintf("%s is set to %q", op.Key, op.Value)
		case op.Unknown:
			return fmt.Sprintf("%s from %q to %q, no answer", op.Key, op.Expect, op.Value)
		default:
			return fmt.Sprintf("%s from %q to %q: %t", op.Key, op.Expect, op.Value, op.Swapped)
		}
	},
}
