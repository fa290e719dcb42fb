package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/util/jsonpath"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) waitCommand() *cobra.Command {
	var f changeFlags
	var what string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait KIND NAME --for CONDITION",
		Short: "Wait until objects are in a state",
		Long: `Wait until objects are in a state:

  condition=NAME[=VALUE]      a condition of their status is True, or VALUE
  jsonpath=PATH[=VALUE]       a field has VALUE, or any
  create                      they exist
  delete                      they are gone`,
		Example: `  holdfast wait pod web --for condition=Ready
  holdfast wait deployment/web --for jsonpath='{.status.readyReplicas}=2' --timeout 2m
  holdfast wait pods -l app=web --for delete`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			until, err := parseWait(what)
			if err != nil {
				return err
			}
			return a.runWait(cmd.Context(), f, args, until, timeout)
		},
	}
	flags := cmd.Flags()
	f.manifests.add(flags)
	flags.StringVarP(&f.labels, "selector", "l", "", "all objects of the kind with these labels")
	flags.BoolVar(&f.all, "all", false, "all objects of the kind in the namespace")
	flags.StringVar(&what, "for", "", "what to wait for")
	flags.DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait; 0 means for ever")
	return cmd
}

// waitFor is a state to wait for. is tells whether an object, nil when there is
// none, is in it, and what it is like now.
type waitFor struct {
	met    string // "condition met"
	create bool   // the object need not exist yet
	is     func(obj object.Object) (bool, string)
}

func parseWait(text string) (waitFor, error) {
	form, rest, _ := strings.Cut(text, "=")
	switch strings.ToLower(form) {
	case "delete":
		return waitFor{met: "gone", create: true, is: func(obj object.Object) (bool, string) { return obj == nil, "is still there" }}, nil
	case "create":
		return waitFor{met: "there", create: true, is: func(obj object.Object) (bool, string) { return obj != nil, "is not there" }}, nil
	case "condition":
		name, want, ok := strings.Cut(rest, "=")
		if !ok {
			want = "True"
		}
		if name != "" {
			return waitFor{met: "condition met", is: func(obj object.Object) (bool, string) { return hasCondition(obj, name, want) }}, nil
		}
	case "jsonpath":
		path, want, valued := splitPath(rest)
		p := jsonpath.New("for").AllowMissingKeys(true)
		if err := p.Parse(relaxedPath(path)); err != nil || path == "" {
			return waitFor{}, failf(exitUsage, "--for jsonpath=%s: want PATH=VALUE: %w", rest, err)
		}
		return waitFor{met: "condition met", is: func(obj object.Object) (bool, string) { return hasField(obj, p, path, want, valued) }}, nil
	}
	return waitFor{}, failf(exitUsage, "--for %q: want condition=NAME, jsonpath=PATH=VALUE, create or delete", text)
}

// splitPath takes PATH=VALUE apart; a path in braces may have = in it.
func splitPath(s string) (path, want string, valued bool) {
	if end := strings.LastIndex(s, "}"); end >= 0 {
		want, valued = strings.CutPrefix(s[end+1:], "=")
		return s[:end+1], want, valued
	}
	return strings.Cut(s, "=")
}

func hasCondition(obj object.Object, name, want string) (bool, string) {
	value, err := mapOf(obj)
	if err != nil {
		return false, err.Error()
	}
	status, _ := value["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	for _, c := range conditions {
		cond, _ := c.(map[string]any)
		if typ, _ := cond["type"].(string); !strings.EqualFold(typ, name) {
			continue
		}
		// What it says of an older spec says nothing.
		if seen, ok := status["observedGeneration"].(int64); ok && seen < obj.GetGeneration() {
			return false, "has not been looked at since it changed"
		}
		is, _ := cond["status"].(string)
		why := fmt.Sprintf("has condition %s=%s", name, is)
		if reason, _ := cond["reason"].(string); reason != "" {
			why += " (" + reason + ")"
		}
		return strings.EqualFold(is, want), why
	}
	return false, "has no condition " + name
}

func hasField(obj object.Object, p *jsonpath.JSONPath, path, want string, valued bool) (bool, string) {
	value, err := mapOf(obj)
	if err != nil {
		return false, err.Error()
	}
	results, err := p.FindResults(value)
	if err != nil {
		return false, err.Error()
	}
	if len(results) == 0 || len(results[0]) == 0 {
		return false, "has no " + path
	}
	is := cell(results)
	return !valued || is == want, fmt.Sprintf("has %s=%s", path, is)
}

func (a *app) runWait(ctx context.Context, f changeFlags, args []string, until waitFor, timeout time.Duration) error {
	targets, r, err := a.targets(ctx, f, args)
	if err != nil || len(targets) == 0 {
		return err
	}
	waitCtx, cancel := ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		waitCtx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	var late error
	for _, t := range targets {
		why := "is not there"
		met := false
		req := &holdfastv1.WatchRequest{Kind: wireKind(t.resource), Namespace: t.namespace, FieldSelector: "metadata.name=" + t.name}
		err := a.watch(waitCtx, r, []*holdfastv1.WatchRequest{req}, 0, func(u update) error {
			var obj object.Object
			known := false
			for _, c := range u.changes {
				if obj, known = c.obj, true; c.kind == holdfastv1.ChangeType_CHANGE_TYPE_DELETED {
					obj = nil
				}
			}
			if !known && !u.synced {
				return nil
			}
			if obj == nil && !until.create {
				return failf(exitNotFound, "%s not found", t)
			}
			if met, why = until.is(obj); met {
				return errStopWatching
			}
			return nil
		})
		switch {
		case err == nil && met:
			fmt.Fprintf(a.stdout, "%s %s\n", t, until.met)
		case ctx.Err() != nil:
			return failf(exitInterrupted, "no longer waiting for %s", t)
		case errors.Is(err, context.DeadlineExceeded):
			late = errors.Join(late, fmt.Errorf("%s %s", t, why))
		case err != nil:
			return err
		}
	}
	if late != nil {
		return failf(exitTimeout, "not there after %v:\n%w", timeout, late)
	}
	return nil
}
