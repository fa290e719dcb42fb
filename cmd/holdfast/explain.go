package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/object/openapi"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) explainCommand() *cobra.Command {
	var recursive bool
	var version string
	cmd := &cobra.Command{
		Use:   "explain KIND[.FIELD...]",
		Short: "Tell what a kind or a field of it is for",
		Example: `  holdfast explain pods
  holdfast explain deployment.spec.strategy
  holdfast explain service.spec --recursive`,
		Args:              exactArgs(1, "a KIND or KIND.FIELD"),
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runExplain(cmd.Context(), args[0], version, recursive)
		},
	}
	cmd.Flags().BoolVar(&recursive, "recursive", false, "all fields below, by name and type only")
	cmd.Flags().StringVar(&version, "api-version", "", "of this version of the kind, such as autoscaling/v1")
	return cmd
}

func (a *app) runExplain(ctx context.Context, what, version string, recursive bool) error {
	kind, path, _ := strings.Cut(what, ".")
	r, err := a.resourceFor(ctx, kind)
	if err != nil {
		return failf(exitUsage, "%w", err)
	}
	if version != "" {
		group, v, ok := strings.Cut(version, "/")
		if !ok {
			group, v = "", version
		}
		if r, err = a.kinds().ForKind(group, v, r.Kind); err != nil {
			return failf(exitUsage, "%w", err)
		}
	}
	var fields []string
	if path != "" {
		fields = strings.Split(path, ".")
	}
	doc, err := a.schemaOf(ctx, r)
	if err != nil {
		return err
	}
	text, err := openapi.Explain(doc, r, fields, recursive)
	if err != nil {
		return failf(exitUsage, "%w", err)
	}
	fmt.Fprint(a.stdout, text)
	return nil
}

// schemaOf returns the OpenAPI document of a kind's group and version. That of
// built-in kinds needs no cluster.
func (a *app) schemaOf(ctx context.Context, r object.Resource) ([]byte, error) {
	if !r.Custom {
		if doc, _, ok := openapi.Document(r.Group, r.Version); ok {
			return doc, nil
		}
	}
	conn, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	answer, err := conn.objects.Schema(ctx, &holdfastv1.SchemaRequest{Group: r.Group, Version: r.Version})
	if err != nil {
		return nil, a.explain(ctx, conn, "read the schema of "+r.APIVersion(), err)
	}
	return answer.GetDocument(), nil
}
