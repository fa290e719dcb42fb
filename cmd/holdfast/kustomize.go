package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func (a *app) kustomizeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kustomize [DIRECTORY]",
		Short: "Write the manifests that a folder of kustomize makes",
		Long: `Write the manifests that a folder of kustomize makes: one with a kustomization.yaml.
Without DIRECTORY it is the present one. The same manifests are what -k takes, of
apply, diff, create, get, delete and others.

Bases may be folders outside of it, or git URLs, which git fetches. Files must lie
within their own folder. Plugins and Helm charts are not run.`,
		Example: `  holdfast kustomize shop/overlays/production
  holdfast diff -k shop/overlays/production
  holdfast apply -k shop/overlays/production`,
		Args: atMost(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			text, err := buildKustomization(dir)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
}

// buildKustomization returns the manifests that a folder of kustomize makes, as
// one YAML text.
func buildKustomization(dir string) ([]byte, error) {
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return nil, failf(exitUsage, "%s is a file: name the folder that it lies in", dir)
	} else if errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(dir, ":?") { // no git URL
		return nil, failf(exitNotFound, "there is no folder %s", dir)
	}
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, failf(exitRefused, "build %s: %w", dir, err)
	}
	return made.AsYaml()
}
