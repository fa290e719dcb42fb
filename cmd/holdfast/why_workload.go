package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// makerOf is the kind that an object has its pods made by, if it does not make them
// itself.
var makerOf = map[string]string{"Deployment": "replicasets", "CronJob": "jobs"}

// whyWorkload tells what is wrong with what makes pods: its conditions, and the last
// events of it and of what it makes.
func (a *app) whyWorkload(ctx context.Context, obj object.Object, output string) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	title, about := titleOf(obj), []string{string(obj.GetUID())}
	story, err := complaints(title, obj)
	if err != nil {
		return err
	}
	if kind, ok := makerOf[object.ResourceOf(obj).Kind]; ok {
		resource := mustResource(kind)
		made, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(resource), Namespace: obj.GetNamespace()}, kind)
		if err != nil {
			return err
		}
		for _, m := range made {
			if metav1.IsControlledBy(m, obj) {
				about = append(about, string(m.GetUID()))
			}
		}
	}
	events, err := a.eventsOf(ctx, r, about)
	if err != nil {
		return err
	}
	if output == "json" {
		out := json.NewEncoder(a.stdout)
		out.SetIndent("", "  ")
		out.SetEscapeHTML(false)
		return out.Encode(map[string]any{"object": title, "story": append([]string{}, story...), "events": append([]string{}, events...)})
	}
	if len(story) == 0 {
		story = []string{title + " complains of nothing"}
	}
	for _, line := range story {
		fmt.Fprintln(a.stdout, line)
	}
	for _, line := range events {
		fmt.Fprintln(a.stdout, "- "+line)
	}
	return nil
}

func titleOf(obj object.Object) string {
	return strings.ToLower(object.ResourceOf(obj).Kind) + "/" + obj.GetName()
}

// complaints returns the conditions of obj that say that something is wrong: failures
// that are true, and all else that is not.
func complaints(title string, obj object.Object) (lines []string, err error) {
	data, err := object.EncodeJSON(obj)
	if err != nil {
		return nil, err
	}
	var status struct {
		Status struct {
			Conditions []struct{ Type, Status, Reason, Message string }
		}
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return nil, err
	}
	for _, c := range status.Status.Conditions {
		bad := strings.Contains(c.Type, "Fail")
		if c.Message != "" && (c.Status == "True") == bad {
			lines = append(lines, fmt.Sprintf("%s: %s (%s): %s", title, c.Type, c.Reason, c.Message))
		}
	}
	return lines, nil
}
