package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
)

func (a *app) storeCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "store",
		Short: "Use the replicated store itself",
		Long: `Use the replicated store itself, to build on it or to test it. Its keys are any
bytes and apart from the cluster's own: nothing here can change an object. Keys and
values that are not plain text are shown quoted, as Go writes them.`,
		Example: "  holdfast store put greeting hello\n  holdfast store get greeting",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	group.AddCommand(a.storeGetCommand(), a.storePutCommand(), a.storeDeleteCommand(), a.storeTxnCommand(),
		a.storeWatchCommand(), a.storeLeaseCommand(), a.storeStatusCommand(), a.storeCompactCommand())
	return group
}

// keyFlags choose keys.
type keyFlags struct{ prefix, fromKey bool }

func (f *keyFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.prefix, "prefix", false, "all keys that begin with KEY")
	flags.BoolVar(&f.fromKey, "from-key", false, "KEY and all keys after it")
}

// bounds returns the key and range end of a request.
func (f keyFlags) bounds(key string) (start, end []byte, err error) {
	switch {
	case f.prefix && f.fromKey:
		return nil, nil, failf(exitUsage, "--prefix and --from-key do not go together")
	case f.fromKey, f.prefix && key == "":
		return []byte(key), []byte{0}, nil
	case f.prefix:
		return []byte(key), prefixEnd(key), nil
	case key == "":
		return nil, nil, failf(exitUsage, "the key is empty: name one, or say --prefix for all")
	}
	return []byte(key), nil, nil
}

// prefixEnd is the end of the range of all keys that begin with prefix.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

// shown is a key or value as a person can read it.
func shown(b []byte) string {
	text := string(b)
	if quoted := strconv.Quote(text); text == "" || quoted != `"`+text+`"` {
		return quoted
	}
	return text
}

type storeGetFlags struct {
	keyFlags
	output, consistency string
	maxAge              time.Duration
	revision, limit     int64
	keysOnly, countOnly bool
	valueOnly, allKeys  bool
}

func (a *app) storeGetCommand() *cobra.Command {
	var f storeGetFlags
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Show keys and their values",
		Long: `Show keys and their values, one a line with a tab between. Many keys are fetched in
pages of one revision. Exit code 3 means that there is no such key.`,
		Example: `  holdfast store get greeting
  holdfast store get --prefix "" --keys-only
  holdfast store get config --rev 120 -o json
  holdfast store get --prefix pods/ --all-keys --keys-only --consistency local`,
		Args: exactArgs(1, "one KEY"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runStoreGet(cmd.Context(), f, args[0]) },
	}
	flags := cmd.Flags()
	f.add(flags)
	flags.StringVarP(&f.output, "output", "o", "text", "text, json or yaml; keys and values are base64 in the latter")
	flags.StringVar(&f.consistency, "consistency", "linearizable", "linearizable, bounded (see --max-age) or local, what the peer has")
	flags.DurationVar(&f.maxAge, "max-age", 5*time.Second, "how old a bounded read may be")
	flags.Int64Var(&f.revision, "rev", 0, "as it was at this revision")
	flags.Int64Var(&f.limit, "limit", 0, "at most so many keys; 0 means all")
	flags.BoolVar(&f.keysOnly, "keys-only", false, "without the values")
	flags.BoolVar(&f.countOnly, "count-only", false, "only how many keys there are")
	flags.BoolVar(&f.valueOnly, "value-only", false, "only the values, byte for byte, each followed by a newline")
	flags.BoolVar(&f.allKeys, "all-keys", false, "look at the keys of objects and of the system, too")
	return cmd
}

// storeRead turns flags into the options of a read.
func storeRead(consistency string, maxAge time.Duration) (*storev1.ReadOptions, error) {
	switch consistency {
	case "linearizable":
		return nil, nil
	case "bounded":
		if maxAge <= 0 {
			return nil, failf(exitUsage, "--max-age %s: want more than 0", maxAge)
		}
		return &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_BOUNDED, MaxAge: durationpb.New(maxAge)}, nil
	case "local":
		return &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_LOCAL}, nil
	}
	return nil, failf(exitUsage, "--consistency %s: want linearizable, bounded or local", consistency)
}

func (a *app) runStoreGet(ctx context.Context, f storeGetFlags, key string) error {
	if err := checkOutput(f.output, "text", "json", "yaml"); err != nil {
		return err
	}
	start, end, err := f.bounds(key)
	if err != nil {
		return err
	}
	read, err := storeRead(f.consistency, f.maxAge)
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	req := &storev1.RangeRequest{
		Key: start, RangeEnd: end, Revision: f.revision, Limit: f.limit, Read: read,
		KeysOnly: f.keysOnly, CountOnly: f.countOnly, AllKeys: f.allKeys,
	}
	whole := &storev1.RangeResponse{}
	for {
		page, err := a.storeRange(ctx, r, req)
		if err != nil {
			return err
		}
		if whole.Header == nil {
			whole.Header, whole.Count = page.GetHeader(), page.GetCount()
		}
		whole.Kvs = append(whole.Kvs, page.GetKvs()...)
		whole.More = page.GetMore()
		if !page.GetMore() || len(page.GetKvs()) == 0 || f.limit > 0 && int64(len(whole.GetKvs())) >= f.limit {
			break
		}
		last := page.GetKvs()[len(page.GetKvs())-1].GetKey()
		req = proto.CloneOf(req)
		req.Key, req.Limit = append(append([]byte(nil), last...), 0), f.limit-min(f.limit, int64(len(whole.GetKvs())))
		if req.Revision == 0 {
			req.Revision = whole.GetHeader().GetRevision()
		}
	}
	if f.output != "text" {
		return a.writeMessage(f.output, whole)
	}
	switch {
	case f.countOnly:
		fmt.Fprintln(a.stdout, whole.GetCount())
		return nil
	case len(end) == 0 && len(whole.GetKvs()) == 0:
		return failf(exitNotFound, "key %s not found", shown(start))
	}
	for _, kv := range whole.GetKvs() {
		switch {
		case f.valueOnly:
			fmt.Fprintf(a.stdout, "%s\n", kv.GetValue())
		case f.keysOnly:
			fmt.Fprintln(a.stdout, shown(kv.GetKey()))
		default:
			fmt.Fprintf(a.stdout, "%s\t%s\n", shown(kv.GetKey()), shown(kv.GetValue()))
		}
	}
	return nil
}

func (a *app) storeRange(ctx context.Context, r *remote, req *storev1.RangeRequest) (*storev1.RangeResponse, error) {
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := r.store.Range(ctx, req)
	if err != nil {
		return nil, a.explain(ctx, r, "get", err)
	}
	return resp, nil
}

// writeMessage writes a message as JSON or YAML.
func (a *app) writeMessage(output string, m proto.Message) error {
	data, err := protojson.MarshalOptions{UseProtoNames: false}.Marshal(m)
	if err != nil {
		return err
	}
	return writeJSON(a.stdout, output, data)
}

func (a *app) storePutCommand() *cobra.Command {
	var output, lease string
	var prev bool
	cmd := &cobra.Command{
		Use:     "put KEY VALUE",
		Short:   "Set a key",
		Long:    "Set a key and show the revision that this made. Without --lease the key lives by none\nfrom then on.",
		Example: "  holdfast store put greeting hello\n  holdfast store put greeting hi --prev\n  holdfast store put session/alice here --lease 7587881",
		Args:    exactArgs(2, "KEY and VALUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, "text", "json", "yaml"); err != nil {
				return err
			}
			req := &storev1.PutRequest{Key: []byte(args[0]), Value: []byte(args[1]), PrevKv: prev}
			if lease != "" {
				var err error
				if req.Lease, err = parseLease(lease); err != nil {
					return err
				}
			}
			r, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.request(cmd.Context())
			defer cancel()
			resp, err := r.store.Put(ctx, req)
			if err != nil {
				return a.explain(ctx, r, "put "+shown([]byte(args[0])), err)
			}
			if output != "text" {
				return a.writeMessage(output, resp)
			}
			if resp.GetPrevKv() != nil {
				fmt.Fprintf(a.stdout, "was %s\n", shown(resp.GetPrevKv().GetValue()))
			}
			fmt.Fprintf(a.stdout, "revision %d\n", resp.GetHeader().GetRevision())
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	cmd.Flags().BoolVar(&prev, "prev", false, "show the value before, too")
	cmd.Flags().StringVar(&lease, "lease", "", "delete the key when this lease ends, see `holdfast store lease`")
	return cmd
}

func (a *app) storeDeleteCommand() *cobra.Command {
	var f keyFlags
	var output string
	var prev, yes bool
	cmd := &cobra.Command{
		Use:     "delete KEY",
		Short:   "Remove a key, or many",
		Long:    "Remove a key, or with --prefix or --from-key all of a range, at one revision.\nExit code 3 means that there was no such key.",
		Example: "  holdfast store delete greeting\n  holdfast store delete --prefix session/ --yes",
		Args:    exactArgs(1, "one KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, "text", "json", "yaml"); err != nil {
				return err
			}
			start, end, err := f.bounds(args[0])
			if err != nil {
				return err
			}
			if len(end) > 0 {
				if err := a.confirm(yes, "Delete all keys of the range?"); err != nil {
					return err
				}
			}
			r, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.request(cmd.Context())
			defer cancel()
			resp, err := r.store.Delete(ctx, &storev1.DeleteRequest{Key: start, RangeEnd: end, PrevKv: prev})
			if err != nil {
				return a.explain(ctx, r, "delete "+shown(start), err)
			}
			if output != "text" {
				return a.writeMessage(output, resp)
			}
			if len(end) == 0 && resp.GetDeleted() == 0 {
				return failf(exitNotFound, "key %s not found", shown(start))
			}
			for _, kv := range resp.GetPrevKvs() {
				fmt.Fprintf(a.stdout, "was %s\t%s\n", shown(kv.GetKey()), shown(kv.GetValue()))
			}
			fmt.Fprintf(a.stdout, "%d deleted, revision %d\n", resp.GetDeleted(), resp.GetHeader().GetRevision())
			return nil
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	cmd.Flags().BoolVar(&prev, "prev", false, "show what was there")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask before a range is deleted")
	return cmd
}

func (a *app) storeStatusCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show how one peer's store stands",
		Long:    "Show how the store of the peer that answers stands: how far it has come, its state\nhash, its sizes, its alarms. It needs no leader. With --peer it is that peer's.",
		Example: "  holdfast store status\n  holdfast store status --peer 10.0.0.2:7443 -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "text", "json", "yaml"); err != nil {
				return err
			}
			r, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.request(cmd.Context())
			defer cancel()
			s, err := r.store.Status(ctx, &storev1.StatusRequest{})
			if err != nil {
				return a.explain(ctx, r, "store status", err)
			}
			if output != "text" {
				return a.writeMessage(output, s)
			}
			leader := s.GetLeader()
			if leader == "" {
				leader = "none known"
			}
			fmt.Fprintf(a.stdout, "Answer of  %s\nLeader     %s, term %d\nRevision   %d, kept from %d on\nLog        index %d, committed %d, applied %d\nHash       %x\nKeys       %d, %d bytes\nHistory    %d changes, %d bytes\nLeases     %d\n",
				s.GetHeader().GetServedBy(), leader, s.GetHeader().GetTerm(), s.GetHeader().GetRevision(), s.GetHorizon(),
				s.GetLastIndex(), s.GetCommitIndex(), s.GetAppliedIndex(), s.GetHash(), s.GetKeys(), s.GetKeysBytes(),
				s.GetHistoryEvents(), s.GetHistoryBytes(), s.GetLeases())
			for _, alarm := range s.GetAlarms() {
				fmt.Fprintf(a.stdout, "%s\n", a.paint(a.stdout, 31, "ALARM      "+alarm))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	return cmd
}

func (a *app) storeCompactCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "compact REVISION",
		Short: "Forget the history before a revision",
		Long: `Forget the history before a revision, of objects as well: older states can then not
be read, and watches not resumed from there. The store does so by itself, too.`,
		Example: "  holdfast store compact 12000",
		Args:    exactArgs(1, "one REVISION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			revision, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || revision <= 0 {
				return failf(exitUsage, "revision %q: want a number above 0", args[0])
			}
			r, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.request(cmd.Context())
			defer cancel()
			if _, err := r.store.Compact(ctx, &storev1.CompactRequest{Revision: revision}); err != nil {
				return a.explain(ctx, r, "compact", err)
			}
			fmt.Fprintf(a.stdout, "history is kept from revision %d on\n", revision)
			return nil
		},
	}
}
