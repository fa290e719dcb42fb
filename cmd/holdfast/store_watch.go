package main

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
)

type storeWatchFlags struct {
	keyFlags
	output    string
	revision  int64
	prev      bool
	noPuts    bool
	noDeletes bool
	allKeys   bool
}

func (a *app) storeWatchCommand() *cobra.Command {
	var f storeWatchFlags
	cmd := &cobra.Command{
		Use:   "watch KEY",
		Short: "Show changes of keys as they happen",
		Long: `Show changes of keys as they happen, one a line, until interrupted: each once, none
left out. When its peer dies it goes on with another one, where it was.`,
		Example: `  holdfast store watch greeting
  holdfast store watch --prefix "" --prev
  holdfast store watch --prefix config/ --rev 120`,
		Args: exactArgs(1, "one KEY"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runStoreWatch(cmd.Context(), f, args[0]) },
	}
	flags := cmd.Flags()
	f.add(flags)
	flags.StringVarP(&f.output, "output", "o", "text", "text, or json: one event a line")
	flags.Int64Var(&f.revision, "rev", 0, "begin with the changes after this revision, not with what comes")
	flags.BoolVar(&f.prev, "prev", false, "show what was there before, too")
	flags.BoolVar(&f.noPuts, "no-puts", false, "only deletions")
	flags.BoolVar(&f.noDeletes, "no-deletes", false, "only what is set")
	flags.BoolVar(&f.allKeys, "all-keys", false, "look at the keys of objects and of the system, too")
	return cmd
}

func (a *app) runStoreWatch(ctx context.Context, f storeWatchFlags, key string) error {
	if err := checkOutput(f.output, "text", "json"); err != nil {
		return err
	}
	start, end, err := f.bounds(key)
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	watch := &storev1.WatchStart{
		Id: 1, Key: start, RangeEnd: end, After: f.revision, PrevKv: f.prev, NoPuts: f.noPuts, NoDeletes: f.noDeletes, AllKeys: f.allKeys,
	}
	for lost := false; ; lost = true {
		began, err := a.storeWatch(ctx, r, watch, f, lost)
		switch {
		case ctx.Err() != nil:
			return exit(exitInterrupted)
		case connect.CodeOf(err) != connect.CodeUnavailable || !began && !lost:
			return a.explain(ctx, r, "watch", err)
		case began:
			a.note("The watch was lost at revision %d, going on with another peer: %v", watch.GetAfter(), err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry):
		}
	}
}

// storeWatch shows changes until the stream breaks, and moves watch to where it was.
// began is true when the peer has answered.
func (a *app) storeWatch(ctx context.Context, r *remote, watch *storev1.WatchStart, f storeWatchFlags, lost bool) (began bool, err error) {
	stream, err := r.store.Watch(ctx)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })()
	if err := stream.Send(&storev1.WatchRequest{Start: []*storev1.WatchStart{watch}}); err != nil {
		_, err := stream.Receive() // says why
		return false, err
	}
	var held []*storev1.Event // of a revision that has not come as a whole
	for {
		msg, err := stream.Receive()
		if err != nil {
			return began, err
		}
		if !began && lost {
			a.note("The watch goes on with peer %s.", msg.GetHeader().GetServedBy())
		}
		began = true
		for _, update := range msg.GetUpdates() {
			if ended := update.GetEnded(); ended != nil {
				if update.GetHorizon() > 0 {
					return true, failf(exitError, "watch: the history after revision %d is discarded; it is kept from %d on (--rev)", watch.GetAfter(), update.GetHorizon())
				}
				return true, failf(exitRefused, "watch: %s", ended.GetMessage())
			}
			if held = append(held, update.GetEvents()...); update.GetMore() {
				continue
			}
			for _, e := range held {
				if err := a.printEvent(f.output, e); err != nil {
					return true, err
				}
			}
			held, watch.After = nil, update.GetUpTo()
		}
	}
}

func (a *app) printEvent(output string, e *storev1.Event) error {
	if output == "json" {
		data, err := protojson.Marshal(e)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "%s\n", data)
		return nil
	}
	line := fmt.Sprintf("%d\tDELETE\t%s", e.GetKv().GetModRevision(), shown(e.GetKv().GetKey()))
	if e.GetType() == storev1.Event_TYPE_PUT {
		line = fmt.Sprintf("%d\tPUT\t%s\t%s", e.GetKv().GetModRevision(), shown(e.GetKv().GetKey()), shown(e.GetKv().GetValue()))
	}
	if e.GetPrevKv() != nil {
		line += "\twas " + shown(e.GetPrevKv().GetValue())
	}
	fmt.Fprintln(a.stdout, line)
	return nil
}
