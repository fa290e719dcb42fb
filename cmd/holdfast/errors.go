package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Exit codes. Scripts rely on them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4 // by validation or authorization, or by the state that things are in
	exitRollout     = 5
	exitTimeout     = 6
	exitUnavailable = 7 // no quorum, or no peer to be reached
	exitInterrupted = 130
)

// failure is an error that knows its exit code. Its message may be empty: then
// everything has been said.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string {
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// failf returns a failure with a message for people.
func failf(code int, format string, args ...any) *failure {
	return &failure{code, fmt.Errorf(format, args...)}
}

// exit returns a failure that says nothing.
func exit(code int) *failure { return &failure{code: code} }

// exitCodeOf is the contract between the API's codes and ours.
func exitCodeOf(code connect.Code) int {
	switch code {
	case connect.CodeNotFound:
		return exitNotFound
	case connect.CodeInvalidArgument, connect.CodePermissionDenied, connect.CodeUnauthenticated,
		connect.CodeFailedPrecondition, connect.CodeAlreadyExists:
		return exitRefused
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded:
		return exitUnavailable
	case connect.CodeCanceled:
		return exitInterrupted
	case connect.CodeUnknown, connect.CodeAborted, connect.CodeOutOfRange, connect.CodeResourceExhausted,
		connect.CodeUnimplemented, connect.CodeInternal, connect.CodeDataLoss:
	}
	return exitError
}

// explain turns an error of a request into what a person should read: the
// server's sentence, what is behind it, and what to do.
func (a *app) explain(ctx context.Context, r *remote, doing string, err error) *failure {
	var known *failure
	if errors.As(err, &known) {
		return known
	}
	var lost noQuorum
	if errors.As(context.Cause(ctx), &lost) {
		return failf(exitUnavailable, "%s: %w", doing, lost)
	}
	code := connect.CodeOf(err)
	if errors.Is(err, context.DeadlineExceeded) {
		code = connect.CodeDeadlineExceeded
	}
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return failf(exitInterrupted, "%s: interrupted", doing)
	}
	message := err.Error()
	var rpc *connect.Error
	if errors.As(err, &rpc) && rpc.Message() != "" {
		message = rpc.Message()
	}
	switch code {
	case connect.CodeUnknown:
		if rpc != nil && rpc.IsRemote() {
			message += ": whether the change was made is unknown; look before you repeat it"
		}
	case connect.CodeDeadlineExceeded:
		message = fmt.Sprintf("no answer within %v (--request-timeout)", a.requestTimeout)
		fallthrough
	case connect.CodeUnavailable:
		if why := r.whyUnavailable(ctx); why != "" {
			message += "\n" + why
		}
	case connect.CodeUnauthenticated:
		message += "; `holdfast context show` shows which certificate is in use"
	case connect.CodeAborted:
		message += ": it was changed meanwhile; try again"
	case connect.CodeCanceled, connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists,
		connect.CodePermissionDenied, connect.CodeResourceExhausted, connect.CodeFailedPrecondition,
		connect.CodeOutOfRange, connect.CodeUnimplemented, connect.CodeInternal, connect.CodeDataLoss:
	}
	if doing != "" {
		message = doing + ": " + message
	}
	return failf(exitCodeOf(code), "%s", message)
}

// faultsIn returns what a refusal says about the objects of the request.
func faultsIn(err error) []*holdfastv1.Fault {
	var rpc *connect.Error
	if !errors.As(err, &rpc) {
		return nil
	}
	var out []*holdfastv1.Fault
	for _, detail := range rpc.Details() {
		message, err := connectproto.UnmarshalErrorDetail(detail)
		if err != nil {
			continue // a detail of a newer version
		}
		if fault, ok := message.(*holdfastv1.Fault); ok {
			out = append(out, fault)
		}
	}
	return out
}

// nearestFlag returns the flag of cmd that is spelled most like word, or "".
func nearestFlag(cmd *cobra.Command, word string) string {
	best, bestDistance := "", 3
	consider := func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if d := distance(word, f.Name); d < bestDistance {
			best, bestDistance = f.Name, d
		}
	}
	cmd.Flags().VisitAll(consider)
	cmd.InheritedFlags().VisitAll(consider)
	return best
}

// distance is Levenshtein's: how many letters to add, drop or replace.
func distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
