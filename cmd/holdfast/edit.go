package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/cmd/holdfast/internal/rollout"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) editCommand() *cobra.Command {
	var f changeFlags
	cmd := &cobra.Command{
		Use:   "edit KIND NAME",
		Short: "Change an object in an editor",
		Long: `Change an object in an editor: HOLDFAST_EDITOR, KUBE_EDITOR or EDITOR, else vi.

What is wrong stands at the top when the editor opens again. Leaving the text as
it was ends it; when it ends without success, the text stays in a file that is
named. Only fields that were changed are sent, so that what others change
meanwhile stays.`,
		Example:           "  holdfast edit deployment web\n  EDITOR=nano holdfast edit cm/app",
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			obj, err := a.one(cmd.Context(), args)
			if err != nil {
				return err
			}
			return a.runEdit(cmd.Context(), f, obj)
		},
	}
	f.wait.add(cmd.Flags())
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "how to show the object afterwards: name, json or yaml (default: a line)")
	return cmd
}

func (a *app) runEdit(ctx context.Context, f changeFlags, obj object.Object) error {
	plain := trimmed([]object.Object{obj}, false)[0]
	original, err := asYAML(plain)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "holdfast-edit-*.yaml")
	if err != nil {
		return err
	}
	path := file.Name()
	if err := file.Close(); err != nil {
		return err
	}
	kept := false // the file holds work that is not in the cluster
	defer func() {
		if !kept {
			os.Remove(path)
		}
	}()
	header := "# Lines that begin with # do not count. Saving the text as it is, or an empty one,\n# changes nothing.\n"
	text, sent := original, original
	for {
		if err := os.WriteFile(path, []byte(header+text), 0o600); err != nil {
			return err
		}
		if err := a.openEditor(ctx, path); err != nil {
			kept = text != original
			return failf(exitError, "%w%s", err, where(kept, path))
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text = uncommented(string(data))
		if strings.TrimSpace(text) == "" || text == original {
			a.note("Nothing was changed.")
			return nil
		}
		kept = true
		if text == sent {
			return failf(exitRefused, "the text is as it was when it was refused; nothing was changed%s", where(kept, path))
		}
		sent = text
		faults, err := a.sendEdit(ctx, f, plain, path, data)
		if err == nil && faults == "" {
			kept = false
			return nil
		}
		if err != nil {
			var known *failure
			if errors.As(err, &known) && (known.code == exitRollout || known.code == exitTimeout || known.code == exitInterrupted) {
				kept = false // the change was made
				return err
			}
			code := exitError
			if known != nil {
				code = known.code
			}
			return failf(code, "%w%s", err, where(kept, path))
		}
		var top strings.Builder
		top.WriteString("# This is not right yet:\n#\n")
		for line := range strings.Lines(faults) {
			top.WriteString("# " + strings.TrimSuffix(line, "\n") + "\n")
		}
		header = top.String() + "#\n"
	}
}

func where(kept bool, path string) string {
	if !kept {
		return ""
	}
	return "\nWhat you wrote is in " + path
}

// sendEdit sends what was changed. faults is what is wrong with the text.
func (a *app) sendEdit(ctx context.Context, f changeFlags, was object.Object, path string, data []byte) (faults string, err error) {
	docs, err := a.kinds().ParseManifests(path, data)
	var bad object.Faults
	switch {
	case errors.As(err, &bad):
		return strings.ReplaceAll(bad.Error(), path+":", "line "), nil
	case err != nil:
		return err.Error(), nil
	case len(docs) != 1:
		return fmt.Sprintf("%d objects: one was to be edited", len(docs)), nil
	case object.KeyOf(docs[0].Object) != object.KeyOf(was):
		return fmt.Sprintf("it is %s now: kind, name and namespace cannot change", object.Title(docs[0].Object)), nil
	}
	old, err := object.EncodeJSON(was)
	if err != nil {
		return "", err
	}
	now, err := object.EncodeJSON(docs[0].Object)
	if err != nil {
		return "", err
	}
	patch, err := jsonpatch.CreateMergePatch(old, now)
	if err != nil {
		return "", err
	}
	r, err := a.dial()
	if err != nil {
		return "", err
	}
	res := object.ResourceOf(was)
	before, err := a.podsBefore(ctx, r, map[string]bool{was.GetNamespace(): makesPods(res) && !f.wait.detach})
	if err != nil {
		return "", err
	}
	obj, began, err := a.patchOne(ctx, r, f, doomed{res, was.GetNamespace(), was.GetName()}, edit{kind: holdfastv1.PatchType_PATCH_TYPE_MERGE, patch: patch, verb: "edited", idle: "not edited: it is so already"})
	if err != nil {
		var known *failure
		if errors.As(err, &known) && known.code == exitRefused {
			return known.Error(), nil
		}
		return "", err
	}
	if !began || f.wait.detach || !holdsWorkload(res) || res.Kind == "Pod" {
		return "", nil
	}
	return "", a.narrate(ctx, r, before, []object.Object{obj}, f.wait.timeout, a.progress(f.output))
}

// openEditor runs the editor on a file, at this terminal.
func (a *app) openEditor(ctx context.Context, path string) error {
	editor := "vi"
	for _, name := range []string{"EDITOR", "KUBE_EDITOR", "HOLDFAST_EDITOR"} {
		if value := a.getenv(name); value != "" {
			editor = value
		}
	}
	// By a shell: people write EDITOR="code --wait".
	cmd := exec.CommandContext(ctx, "sh", "-c", editor+` "$1"`, "sh", path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the editor (%s) failed: %w", editor, err)
	}
	return nil
}

// uncommented returns text without the lines that begin with #.
func uncommented(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			out.WriteString(line)
		}
	}
	return out.String()
}

func fromMap(value map[string]any, out any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return json.NewDecoder(bytes.NewReader(data)).Decode(out)
}

func (a *app) replaceCommand() *cobra.Command {
	var f makeFlags
	var manifests manifestFlags
	var force bool
	cmd := &cobra.Command{
		Use:   "replace -f FILE",
		Short: "Make objects that exist exactly what manifests say",
		Long: `Make objects that exist exactly what manifests say: fields that the manifests leave
out are gone afterwards, whoever set them. apply leaves those alone.

A manifest with a resourceVersion replaces only that version. --force deletes the
object and makes it anew. Like apply, replace waits for what runs something.`,
		Example: "  holdfast replace -f examples/web.yaml\n  holdfast replace --force -f pod.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := a.checkedManifests(manifests)
			if err != nil {
				return err
			}
			return a.runReplace(cmd.Context(), docs, f, force)
		},
	}
	flags := cmd.Flags()
	manifests.add(flags)
	flags.BoolVar(&force, "force", false, "delete the objects and make them anew")
	f.add(flags)
	return cmd
}

func (a *app) runReplace(ctx context.Context, docs []object.Document, f makeFlags, force bool) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	if err := checkOutput(f.output, "name", "json", "yaml"); err != nil {
		return err
	}
	if force {
		if f.dryRun != "" {
			return failf(exitUsage, "--force and --dry-run do not go together")
		}
		var victims []doomed
		for _, doc := range docs {
			victims = append(victims, doomed{object.ResourceOf(doc.Object), doc.Object.GetNamespace(), doc.Object.GetName()})
		}
		began := a.now()
		w, err := a.newVigil(ctx, r, victims, false)
		if err != nil {
			return err
		}
		for _, v := range victims {
			gone, err := a.deleteOne(ctx, r, v, deleteFlags{}, a.progress(f.output))
			if err != nil && !isNotFound(err) {
				return err
			}
			if gone {
				w.told[v.String()+v.namespace] = true
			}
		}
		if err := a.awaitGone(ctx, r, w, f.wait.timeout, began, a.progress(f.output)); err != nil {
			return err
		}
		return a.make(ctx, docs, f)
	}
	waits := f.dryRun == "" && !f.wait.detach
	var before []*corev1.Pod
	if waits {
		if before, err = a.podsBefore(ctx, r, namespacesOf(docs)); err != nil {
			return err
		}
	}
	var objs, follow []object.Object
	for i, doc := range docs {
		obj := doc.Object
		if f.dryRun != "client" {
			if obj, err = a.replaceOne(ctx, r, docs[i:i+1], f.dryRun != ""); err != nil {
				return err
			}
		}
		objs = append(objs, obj)
		if rollout.Follows(obj) {
			follow = append(follow, obj)
		}
		if f.output == "" {
			fmt.Fprintf(a.stdout, "%s replaced%s\n", title(obj), f.dryRun.suffix())
		}
	}
	if f.output != "" {
		if err := writeObjects(a.stdout, f.output, objs, len(objs) == 1); err != nil {
			return err
		}
	}
	if !waits || len(follow) == 0 {
		return nil
	}
	return a.narrate(ctx, r, before, follow, f.wait.timeout, a.progress(f.output))
}

func (a *app) replaceOne(ctx context.Context, r *remote, doc []object.Document, dry bool) (object.Object, error) {
	ctx, cancel := a.request(ctx)
	defer cancel()
	o, err := encode(doc[0].Object)
	if err != nil {
		return nil, err
	}
	answer, err := r.objects.Update(ctx, &holdfastv1.UpdateRequest{Object: o, DryRun: dry, FieldManager: changeManager})
	if err != nil {
		return nil, a.explainAt(ctx, r, doc, "replace "+title(doc[0].Object), err)
	}
	a.warn(answer.GetAnswer())
	return a.decode(answer.GetObject())
}
