package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func (a *app) contextExportCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "export [NAME]",
		Short: "Write a context's CA, certificate and key to PEM files",
		Long: `Write a context's CA, certificate and key to ca.pem, cert.pem and key.pem, for
programs that know nothing of contexts, such as curl and etcdctl. Who can read
key.pem can do what the context's owner can.`,
		Example: `  holdfast context export --dir ~/holdfast-pem
  etcdctl --endpoints https://192.0.2.10:2379 --cacert ~/holdfast-pem/ca.pem --cert ~/holdfast-pem/cert.pem --key ~/holdfast-pem/key.pem get --prefix ''`,
		Args: atMost(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error { return a.runContextExport(args, dir) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to write to; made if it does not exist")
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}

func (a *app) runContextExport(args []string, dir string) error {
	if len(args) == 1 {
		a.contextName = args[0]
	}
	c, err := a.currentContext()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, file := range [...]struct{ name, pem string }{{"ca.pem", c.CA}, {"cert.pem", c.Cert}, {"key.pem", c.Key}} {
		path := filepath.Join(dir, file.name)
		// Made anew: what is there may be open to others.
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.WriteFile(path, []byte(file.pem), 0o600); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.stdout, "context %s is in %s: ca.pem, cert.pem, key.pem\n", c.Name, dir)
	return nil
}
