package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-io/holdfast/cmd/holdfast/internal/rollout"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// makeFlags are what commands have in common that make objects.
type makeFlags struct {
	dryRun dryRun
	output string
	wait   waitFlags
}

func (f *makeFlags) add(flags *pflag.FlagSet) {
	flags.Var(&f.dryRun, "dry-run", "server: check all and make nothing; client: only show what would be sent")
	flags.Lookup("dry-run").NoOptDefVal = "client"
	flags.StringVarP(&f.output, "output", "o", "", "write the objects: name, json or yaml; the progress goes to standard error then")
	f.wait.add(flags)
}

// make creates objects and waits for those that run something.
func (a *app) make(ctx context.Context, docs []object.Document, f makeFlags) error {
	if err := checkOutput(f.output, "name", "json", "yaml"); err != nil {
		return err
	}
	if err := a.inPlace(docs); err != nil {
		return err
	}
	var made []object.Object
	if f.dryRun == "client" {
		for _, doc := range docs {
			made = append(made, doc.Object)
		}
		return a.printMade(f, made)
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	waits := f.dryRun == "" && !f.wait.detach
	before, err := a.podsBefore(ctx, r, map[string]bool{})
	if waits {
		before, err = a.podsBefore(ctx, r, namespacesOf(docs))
	}
	if err != nil {
		return err
	}
	var failed error
	code := 0
	for i := range docs {
		obj, err := a.makeOne(ctx, r, docs[i:i+1], f.dryRun != "")
		if err != nil {
			var known *failure
			if errors.As(err, &known) && code == 0 {
				code = known.code
			}
			failed = errors.Join(failed, err)
			continue
		}
		made = append(made, obj)
	}
	if err := a.printMade(f, made); err != nil {
		return err
	}
	if failed != nil {
		return &failure{max(code, exitError), failed}
	}
	var follow []object.Object
	for _, obj := range made {
		if rollout.Follows(obj) {
			follow = append(follow, obj)
		}
	}
	if !waits || len(follow) == 0 {
		return nil
	}
	return a.narrate(ctx, r, before, follow, f.wait.timeout, a.progress(f.output))
}

func (a *app) makeOne(ctx context.Context, r *remote, doc []object.Document, dry bool) (object.Object, error) {
	ctx, cancel := a.request(ctx)
	defer cancel()
	o, err := encode(doc[0].Object)
	if err != nil {
		return nil, err
	}
	answer, err := r.objects.Create(ctx, &holdfastv1.CreateRequest{Object: o, DryRun: dry, FieldManager: createManager})
	if err != nil {
		return nil, a.explainAt(ctx, r, doc, "create "+title(doc[0].Object), err)
	}
	a.warn(answer.GetAnswer())
	return a.decode(answer.GetObject())
}

func (a *app) printMade(f makeFlags, made []object.Object) error {
	if f.output != "" {
		return writeObjects(a.stdout, f.output, made, len(made) == 1)
	}
	for _, obj := range made {
		fmt.Fprintf(a.stdout, "%s created%s\n", title(obj), f.dryRun.suffix())
	}
	return nil
}

// documentsOf wraps objects that come from no file.
func documentsOf(objs ...object.Object) []object.Document {
	var docs []object.Document
	for _, obj := range objs {
		docs = append(docs, object.Document{Object: obj, File: "(made by flags)"})
	}
	return docs
}

func (a *app) createCommand() *cobra.Command {
	var f makeFlags
	var manifests manifestFlags
	cmd := &cobra.Command{
		Use:   "create -f FILE | KIND NAME",
		Short: "Make new objects, from manifests or from flags",
		Long: `Make new objects, from manifests or from flags. What exists already is refused;
apply takes both. Like apply, create waits for what runs something.

--dry-run=client -o yaml writes the manifest and makes nothing.`,
		Example: `  holdfast create deployment web --image nginx:1.29 --replicas 2
  holdfast create configmap app --from-file settings.ini --from-literal mode=fast
  holdfast create job once --image busybox:1.37 --dry-run=client -o yaml -- echo hello
  holdfast create -f examples/web.yaml`,
		Args: groupArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !manifests.given() {
				return failf(exitUsage, "say what: with -f FILE, or a KIND and a NAME, as in holdfast create deployment web --image nginx:1.29")
			}
			docs, err := a.checkedManifests(manifests)
			if err != nil {
				return err
			}
			return a.make(cmd.Context(), docs, f)
		},
	}
	flags := cmd.Flags()
	manifests.add(flags)
	f.add(flags)
	for _, g := range generators() {
		cmd.AddCommand(a.generatorCommand(g))
	}
	service := &cobra.Command{
		Use: "service", Aliases: []string{"svc"}, Short: "Make a service", Example: "  holdfast create service clusterip web --tcp 80:8080",
		Args: groupArgs, RunE: showHelp,
	}
	for _, g := range serviceGenerators() {
		service.AddCommand(a.generatorCommand(g))
	}
	secret := &cobra.Command{
		Use: "secret", Short: "Make a secret", Example: "  holdfast create secret generic db --from-literal password=hunter2",
		Args: groupArgs, RunE: showHelp,
	}
	for _, g := range secretGenerators() {
		secret.AddCommand(a.generatorCommand(g))
	}
	cmd.AddCommand(service, secret, a.createTokenCommand())
	return cmd
}

// generator makes an object of flags, with those that kubectl has.
type generator struct {
	use, short, example string
	aliases             []string
	flags               func(*pflag.FlagSet)
	// make returns the object. command is what stands behind --.
	make func(name string, command []string) (object.Object, error)
	// makeWith is make for those that have to read something first.
	makeWith func(ctx context.Context, a *app, name string, command []string) (object.Object, error)
}

func (a *app) generatorCommand(g generator) *cobra.Command {
	var f makeFlags
	cmd := &cobra.Command{
		Use: g.use, Aliases: g.aliases, Short: g.short, Example: g.example,
		RunE: func(cmd *cobra.Command, args []string) error {
			command := []string{}
			if at := cmd.ArgsLenAtDash(); at >= 0 {
				args, command = args[:at], args[at:]
			}
			if len(args) != 1 {
				return failf(exitUsage, "want one NAME, got %d words", len(args))
			}
			var obj object.Object
			var err error
			if g.makeWith != nil {
				obj, err = g.makeWith(cmd.Context(), a, args[0], command)
			} else {
				obj, err = g.make(args[0], command)
			}
			if err != nil {
				var known *failure
				if errors.As(err, &known) {
					return err
				}
				return failf(exitUsage, "%w", err)
			}
			obj.SetName(args[0])
			return a.make(cmd.Context(), documentsOf(obj), f)
		},
	}
	g.flags(cmd.Flags())
	f.add(cmd.Flags())
	return cmd
}
