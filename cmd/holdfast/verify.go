package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/cmd/holdfast/internal/linear"
	"github.com/holdfast-io/holdfast/object"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type verifyFlags struct {
	duration time.Duration
	clients  int
	evidence string
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that all peers hold the same, and that answers are linearizable",
		Long: `Check two promises on the running cluster.

All peers hold the same: each tells its state hash at one and the same entry of the
log. A peer that differs is damaged; it must be removed, and join anew.

Answers are linearizable: clients read, write and compare-and-swap a few keys of
their own through all peers at once, for a few seconds, and an independent checker
(porcupine) looks for one order of all operations that explains every answer. If
there is none, the history and a page that shows it are kept as evidence, and the
command fails. It does not harm to cut links or kill peers meanwhile.`,
		Example: `  holdfast verify
  holdfast verify --duration 1m --clients 20`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runVerify(cmd.Context(), f) },
	}
	cmd.Flags().DurationVar(&f.duration, "duration", 5*time.Second, "how long clients read and write; 0 checks hashes only")
	cmd.Flags().IntVar(&f.clients, "clients", 8, "how many of them")
	cmd.Flags().StringVar(&f.evidence, "evidence", ".", "directory for the history, if there is something wrong with it")
	return cmd
}

func (a *app) runVerify(ctx context.Context, f verifyFlags) error {
	if f.duration < 0 || f.clients < 1 {
		return failf(exitUsage, "--duration must not be negative, and --clients at least 1")
	}
	s, err := a.survey(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	if len(s.answers) == 0 {
		return failf(exitUnavailable, "no peer answers: is the cluster up?")
	}
	return errors.Join(a.verifyHashes(ctx, s), a.verifyHistory(ctx, s, f))
}

// verifyHashes compares the state hashes of all peers at the entry that the one that
// is furthest along has applied.
func (a *app) verifyHashes(ctx context.Context, s *survey) error {
	ctx, cancel := context.WithTimeout(ctx, verifyPatience)
	defer cancel()
	var index, incarnation uint64
	for _, p := range s.answers {
		incarnation = max(incarnation, p.answer.GetVitals().GetIncarnation())
	}
	for _, p := range s.answers {
		if v := p.answer.GetVitals(); v.GetIncarnation() == incarnation {
			index = max(index, v.GetAppliedIndex())
		}
	}
	errs := make([]error, len(s.answers))
	at := make([]*holdfastv1.SurveyResponse, len(s.answers))
	var asking sync.WaitGroup
	for i, p := range s.answers {
		asking.Go(func() { at[i], errs[i] = p.remote.ops.Survey(ctx, &holdfastv1.SurveyRequest{Index: index}) })
	}
	asking.Wait()

	table := object.Table{Columns: []object.Column{{Name: "PEER"}, {Name: "STATE HASH AT ENTRY " + fmt.Sprint(index)}, {Name: "VERDICT"}}}
	byHash := make(map[string]int)
	for _, answer := range at {
		if hash := answer.GetHashAt(); len(hash) > 0 {
			byHash[string(hash)]++
		}
	}
	var most []byte
	for hash, n := range byHash {
		if n > byHash[string(most)] {
			most = []byte(hash)
		}
	}
	var differ, unknown int
	for i, p := range s.answers {
		hash, verdict := fmt.Sprintf("%x", at[i].GetHashAt()), "the same"
		switch {
		case errs[i] != nil:
			hash, verdict = "-", "no answer: "+errs[i].Error()
			unknown++
		case len(at[i].GetHashAt()) == 0:
			hash, verdict = "-", "not known: the peer was restarted since"
			unknown++
		case len(byHash) > 1 && byHash[string(most)] <= len(s.answers)/2:
			verdict = "differs, and no majority agrees"
			differ++
		case !bytes.Equal(at[i].GetHashAt(), most):
			verdict = "DIFFERS from the majority"
			differ++
		}
		table.Rows = append(table.Rows, []string{p.answer.GetVitals().GetPeer(), hash, verdict})
	}
	(&grid{w: a.stdout, header: true}).write(table)
	for _, address := range s.silent {
		fmt.Fprintf(a.stdout, "no answer from %s\n", address)
	}
	for _, p := range s.answers {
		for _, alarm := range p.answer.GetVitals().GetAlarms() {
			fmt.Fprintf(a.stdout, "alarm of peer %s: %s\n", p.answer.GetVitals().GetPeer(), alarm)
		}
	}
	switch {
	case differ > 0:
		return failf(exitError, "the peers do not hold the same: `holdfast peer remove` the one that differs, and let it join anew with an empty directory")
	case unknown > 0 || len(s.silent) > 0:
		fmt.Fprintf(a.stdout, "%d of %d peers compared\n", len(s.answers)-unknown, len(s.answers)+len(s.silent))
	default:
		fmt.Fprintf(a.stdout, "all %d peers hold the same\n", len(s.answers))
	}
	return nil
}

// verifyPatience bounds the wait for slow peers.
const verifyPatience = 15 * time.Second

// checkPatience bounds the search for an order.
const checkPatience = time.Minute

// verifyHistory plays a workload through all peers and checks what came of it.
func (a *app) verifyHistory(ctx context.Context, s *survey, f verifyFlags) error {
	if f.duration == 0 {
		return nil
	}
	// Keys of this run alone: nobody else writes them, and they begin empty.
	prefix := fmt.Sprintf("verify/%s-%d/", time.Now().UTC().Format("20060102T150405"), os.Getpid())
	cfg := linear.Config{Duration: f.duration, OpTimeout: 10 * time.Second}
	for i := range f.clients {
		cfg.Clients = append(cfg.Clients, register{s.answers[i%len(s.answers)]})
	}
	for i := range max(2, f.clients/2) {
		cfg.Keys = append(cfg.Keys, prefix+fmt.Sprint(i))
	}
	history, failed := linear.Play(ctx, cfg)
	a.forget(ctx, s, prefix)
	if ctx.Err() != nil {
		return exit(exitInterrupted)
	}
	if len(history) == 0 {
		return failf(exitUnavailable, "not one operation was answered: `holdfast cluster status` shows why; nothing is known about linearizability")
	}
	verdict, info := linear.Check(history, checkPatience)
	fmt.Fprintf(a.stdout, "%d reads, writes and swaps by %d clients through %d peers in %v, %d without an answer: %s\n",
		len(history), f.clients, len(s.answers), f.duration, failed, verdict)
	if verdict == linear.Linearizable {
		return nil
	}
	name := filepath.Join(f.evidence, "holdfast-verify-"+time.Now().UTC().Format("20060102T150405"))
	if err := keepEvidence(name, history, func(file *os.File) error { return linear.Picture(file, info) }); err != nil {
		return failf(exitError, "the answers are %s, and the evidence was not written: %w", verdict, err)
	}
	if verdict == linear.Undecided {
		return failf(exitError, "no order was found within %v, nor that there is none: try fewer clients; the history is in %s.jsonl", checkPatience, name)
	}
	return failf(exitError, "no order of the operations explains all answers: the store has broken its promise. The history is in %s.jsonl, and %[1]s.html shows it", name)
}

func keepEvidence(name string, history []linear.Op, picture func(*os.File) error) error {
	write := func(name string, fn func(*os.File) error) error {
		file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(fn(file), file.Close())
	}
	return errors.Join(
		write(name+".jsonl", func(file *os.File) error { return linear.WriteJSON(file, history) }),
		write(name+".html", picture),
	)
}

// forget removes the keys of the workload, from whichever peer answers.
func (a *app) forget(ctx context.Context, s *survey, prefix string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyPatience)
	defer cancel()
	var err error
	for _, p := range s.answers {
		if _, err = p.remote.store.Delete(ctx, &storev1.DeleteRequest{Key: []byte(prefix), RangeEnd: prefixEnd(prefix)}); err == nil {
			return
		}
	}
	fmt.Fprintf(a.stderr, "the keys of this check are still there (%v): remove them with `holdfast store delete --prefix %s`\n", err, prefix)
}

// register is the store as a client of the workload sees it, through one peer.
type register struct{ *surveyed }

// Peer implements linear.Client.
func (r register) Peer() string { return r.answer.GetVitals().GetPeer() }

// Read implements linear.Client.
func (r register) Read(ctx context.Context, key string) (string, error) {
	resp, err := r.remote.store.Range(ctx, &storev1.RangeRequest{Key: []byte(key), Read: &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_LINEARIZABLE}})
	if err != nil || len(resp.GetKvs()) == 0 {
		return "", err
	}
	return string(resp.GetKvs()[0].GetValue()), nil
}

// Write implements linear.Client.
func (r register) Write(ctx context.Context, key, value string) error {
	_, err := r.remote.store.Put(ctx, &storev1.PutRequest{Key: []byte(key), Value: []byte(value)})
	return err
}

// Swap implements linear.Client. A key that does not exist has no value to compare;
// its version is 0.
func (r register) Swap(ctx context.Context, key, expect, value string) (bool, error) {
	is := &storev1.Compare{Key: []byte(key), Result: storev1.Compare_RESULT_EQUAL, Target: &storev1.Compare_Value{Value: []byte(expect)}}
	if expect == "" {
		is.Target = &storev1.Compare_Version{}
	}
	put := &storev1.Op{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: []byte(key), Value: []byte(value)}}}
	resp, err := r.remote.store.Txn(ctx, &storev1.TxnRequest{Compares: []*storev1.Compare{is}, Success: []*storev1.Op{put}})
	return resp.GetSucceeded(), err
}
