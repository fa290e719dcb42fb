package main

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// readFlags say how true the answers of reads have to be.
type readFlags struct {
	consistency string
	maxAge      time.Duration
	at          int64
	since       int64
}

func (f *readFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.consistency, "consistency", "", "linearizable (the default), session (at least --min-revision), bounded (at most --max-age old), or local: what the answering peer has")
	flags.DurationVar(&f.maxAge, "max-age", 0, "be content with what is known to be at most so old, such as 10s; the same as --consistency bounded")
	flags.Int64Var(&f.since, "min-revision", 0, "at least as new as this revision: a resourceVersion that was seen before")
	flags.Int64Var(&f.at, "at", 0, "as it was at this revision")
}

// options turns the flags into what requests carry.
func (f readFlags) options() (*holdfastv1.ReadOptions, error) {
	form := f.consistency
	if f.maxAge < 0 || f.at < 0 || f.since < 0 {
		return nil, failf(exitUsage, "--max-age, --min-revision and --at: want more than 0")
	}
	if f.at > 0 {
		if form != "" || f.maxAge > 0 || f.since > 0 {
			return nil, failf(exitUsage, "--at shows a state that never changes: leave --consistency, --max-age and --min-revision out")
		}
		return &holdfastv1.ReadOptions{AtRevision: f.at}, nil
	}
	if form == "" {
		form = "linearizable"
		switch {
		case f.maxAge > 0:
			form = "bounded"
		case f.since > 0:
			form = "session"
		}
	}
	if f.maxAge > 0 && form != "bounded" {
		return nil, failf(exitUsage, "--consistency %s and --max-age do not go together", form)
	}
	read := &holdfastv1.ReadOptions{MinRevision: f.since}
	switch form {
	case "linearizable":
		read.Consistency = holdfastv1.Consistency_CONSISTENCY_LINEARIZABLE
	case "session":
		read.Consistency = holdfastv1.Consistency_CONSISTENCY_SESSION
	case "bounded":
		if f.maxAge == 0 {
			return nil, failf(exitUsage, "--consistency bounded: say how old an answer may be, with --max-age")
		}
		read.Consistency, read.MaxAge = holdfastv1.Consistency_CONSISTENCY_BOUNDED, durationpb.New(f.maxAge)
	case "local":
		read.Consistency = holdfastv1.Consistency_CONSISTENCY_LOCAL
	default:
		return nil, failf(exitUsage, "--consistency %s: want linearizable, session, bounded or local", form)
	}
	return read, nil
}

// tellAge says how true an answer is, unless it is as true as can be.
func (a *app) tellAge(read *holdfastv1.ReadOptions, answer *holdfastv1.Answer) {
	switch {
	case answer == nil:
	case read.GetAtRevision() > 0:
		a.note("As it was at revision %d.", answer.GetRevision())
	case answer.GetCutOff() != nil:
		a.note("Served by %s, cut off from the quorum for %s, as of revision %d.", answer.GetServedBy(), brief(answer.GetCutOff().AsDuration()), answer.GetRevision())
	case read.GetConsistency() == holdfastv1.Consistency_CONSISTENCY_LOCAL, read.GetConsistency() == holdfastv1.Consistency_CONSISTENCY_BOUNDED && answer.GetAge().AsDuration() >= time.Second:
		a.note("As peer %s has it at revision %d%s.", answer.GetServedBy(), answer.GetRevision(), howOld(answer))
	}
}

func howOld(answer *holdfastv1.Answer) string {
	if answer.GetAge() == nil {
		return ", which may be old: it does not know how old"
	}
	if age := answer.GetAge().AsDuration(); age >= time.Second {
		return fmt.Sprintf(", up to %s old", age.Round(100*time.Millisecond))
	}
	return ""
}
