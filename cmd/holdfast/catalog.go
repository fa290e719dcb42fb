package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiversion "k8s.io/apimachinery/pkg/version"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// kinds returns the kinds that are known: the built-in ones and, once something
// else was met, those that the cluster's definitions add.
func (a *app) kinds() *object.Catalog {
	a.catalogMu.Lock()
	defer a.catalogMu.Unlock()
	if a.catalog == nil {
		return object.Builtin()
	}
	return a.catalog
}

// addKind makes a kind known that a manifest defines.
func (a *app) addKind(crd *apiextensionsv1.CustomResourceDefinition) {
	with := a.kinds().With(crd)
	a.catalogMu.Lock()
	defer a.catalogMu.Unlock()
	a.catalog = with
}

// learnKinds asks the cluster, once, which custom kinds it has. It tells whether
// any became known. Without a cluster there are none: what was typed is judged by
// the built-in kinds then.
func (a *app) learnKinds(ctx context.Context) bool {
	a.catalogMu.Lock()
	known := a.learned
	a.learned = true
	a.catalogMu.Unlock()
	if known {
		return false
	}
	r, err := a.dial()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, min(max(a.requestTimeout, time.Second), 5*time.Second))
	defer cancel()
	answer, err := r.objects.List(ctx, &holdfastv1.ListRequest{
		Kind: wireKind(mustResource("customresourcedefinitions")),
		Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL},
	})
	if err != nil {
		return false
	}
	learned := false
	for _, o := range answer.GetObjects() {
		obj, err := object.Decode(o.GetData(), o.GetRevision())
		if crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition); err == nil && ok && object.Established(crd) {
			a.addKind(crd)
			learned = true
		}
	}
	return learned
}

// resourceFor returns the kind that a person means by a word.
func (a *app) resourceFor(ctx context.Context, word string) (object.Resource, error) {
	r, err := a.kinds().For(word)
	if err != nil && word != "" && a.learnKinds(ctx) {
		return a.kinds().For(word)
	}
	return r, err
}

// decode returns the object in an envelope.
func (a *app) decode(o *holdfastv1.Object) (object.Object, error) {
	obj, err := a.kinds().Decode(o.GetData(), o.GetRevision())
	if err != nil && a.learnKinds(context.Background()) {
		obj, err = a.kinds().Decode(o.GetData(), o.GetRevision())
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", o.GetKind().GetKind(), o.GetName(), err)
	}
	return obj, nil
}

func (a *app) apiResourcesCommand() *cobra.Command {
	var output, group string
	var noHeaders, namespaced bool
	cmd := &cobra.Command{
		Use:   "api-resources",
		Short: "List the kinds that the cluster serves, with their short names",
		Example: `  holdfast api-resources
  holdfast api-resources --namespaced=false
  holdfast api-resources --api-group apps -o name`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "table", "wide", "name"); err != nil {
				return err
			}
			found, err := a.served(cmd.Context())
			if err != nil {
				return err
			}
			t := object.Table{Columns: []object.Column{{Name: "NAME"}, {Name: "SHORTNAMES"}, {Name: "APIVERSION"}, {Name: "NAMESPACED"}, {Name: "KIND"}, {Name: "SUBRESOURCES", Wide: true}, {Name: "CATEGORIES", Wide: true}}}
			for _, r := range found {
				if cmd.Flags().Changed("namespaced") && r.GetNamespaced() != namespaced || cmd.Flags().Changed("api-group") && r.GetKind().GetGroup() != group {
					continue
				}
				if output == "name" {
					fmt.Fprintln(a.stdout, strings.TrimSuffix(r.GetPlural()+"."+r.GetKind().GetGroup(), "."))
					continue
				}
				t.Rows = append(t.Rows, []string{
					r.GetPlural(), strings.Join(r.GetShortNames(), ","), apiVersion(r.GetKind()), fmt.Sprint(r.GetNamespaced()), r.GetKind().GetKind(),
					strings.Join(r.GetSubresources(), ","), strings.Join(r.GetCategories(), ","),
				})
			}
			if output != "name" {
				(&grid{w: a.stdout, wide: output == "wide", header: !noHeaders}).write(t)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&output, "output", "o", "table", "table, wide or name")
	flags.StringVar(&group, "api-group", "", "only kinds of this group")
	flags.BoolVar(&namespaced, "namespaced", true, "only kinds that live in namespaces, or (=false) only others")
	flags.BoolVar(&noHeaders, "no-headers", false, "leave out the names of columns")
	return cmd
}

func (a *app) apiVersionsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "api-versions", Short: "List the API versions that the cluster serves", Example: "  holdfast api-versions", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := a.served(cmd.Context())
			if err != nil {
				return err
			}
			var versions []string
			for _, r := range found {
				versions = append(versions, apiVersion(r.GetKind()))
			}
			slices.Sort(versions)
			for _, v := range slices.Compact(versions) {
				fmt.Fprintln(a.stdout, v)
			}
			return nil
		},
	}
}

// served asks the cluster which kinds it serves.
func (a *app) served(ctx context.Context) ([]*holdfastv1.Resource, error) {
	r, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	answer, err := r.objects.Kinds(ctx, &holdfastv1.KindsRequest{})
	if err != nil {
		return nil, a.explain(ctx, r, "list the kinds", err)
	}
	found := answer.GetResources()
	slices.SortStableFunc(found, func(a, b *holdfastv1.Resource) int {
		if c := strings.Compare(a.GetKind().GetGroup(), b.GetKind().GetGroup()); c != 0 {
			return c
		}
		if c := strings.Compare(a.GetPlural(), b.GetPlural()); c != 0 {
			return c
		}
		return -apiversion.CompareKubeAwareVersionStrings(a.GetKind().GetVersion(), b.GetKind().GetVersion())
	})
	return found, nil
}

func apiVersion(k *holdfastv1.Kind) string {
	return strings.TrimPrefix(k.GetGroup()+"/"+k.GetVersion(), "/")
}
