package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/client"
)

// kubernetesName is a name that the certificate of every peer has, so that one
// configuration is good for any of them.
const kubernetesName = "kubernetes"

type kubeconfigFlags struct {
	file, proxy string
}

func (a *app) kubeconfigCommand() *cobra.Command {
	var f kubeconfigFlags
	cmd := &cobra.Command{
		Use:   "kubeconfig [CONTEXT]",
		Short: "Write a configuration with which kubectl and Helm reach the cluster",
		Long: `Write a kubeconfig: a configuration with which kubectl, Helm and other programs
for Kubernetes reach the cluster of a context. It has the context's certificate
and key: who can read it can do what the context's owner can.

Kubernetes' clients know one address of a cluster only. It is that of the first
peer of the context, or of --peer; when that peer is down they do not find the
others. With --proxy they talk to "holdfast proxy" on this machine, which does;
then the configuration has no key.`,
		Example: `  holdfast kubeconfig > ~/.kube/holdfast
  holdfast kubeconfig --file ~/.kube/holdfast
  holdfast kubeconfig --proxy 127.0.0.1:8001 --file ~/.kube/holdfast`,
		Args: atMost(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error { return a.runKubeconfig(args, f) },
	}
	cmd.Flags().StringVar(&f.file, "file", "", "file to write to, instead of printing it; replaced if it is there")
	cmd.Flags().StringVar(&f.proxy, "proxy", "", "address at which `holdfast proxy` listens, host:port")
	return cmd
}

// kubeconfig is the file's form: Kubernetes', of which this is all that is needed.
type kubeconfig struct {
	APIVersion     string      `json:"apiVersion"`
	Kind           string      `json:"kind"`
	CurrentContext string      `json:"current-context"`
	Clusters       []kubeNamed `json:"clusters"`
	Users          []kubeNamed `json:"users"`
	Contexts       []kubeNamed `json:"contexts"`
}

// kubeNamed is one of these three under a name.
type kubeNamed struct {
	Name    string       `json:"name"`
	Cluster *kubeCluster `json:"cluster,omitempty"`
	User    *kubeUser    `json:"user,omitempty"`
	Context *kubeContext `json:"context,omitempty"`
}

type kubeCluster struct {
	Server        string `json:"server"`
	TLSServerName string `json:"tls-server-name,omitempty"`
	CA            []byte `json:"certificate-authority-data,omitempty"`
}

type kubeUser struct {
	Certificate []byte `json:"client-certificate-data,omitempty"`
	Key         []byte `json:"client-key-data,omitempty"`
}

type kubeContext struct {
	Cluster   string `json:"cluster"`
	User      string `json:"user"`
	Namespace string `json:"namespace,omitempty"`
}

func (a *app) runKubeconfig(args []string, f kubeconfigFlags) error {
	if len(args) == 1 {
		a.contextName = args[0]
	}
	c, err := a.currentContext()
	if err != nil {
		return err
	}
	if len(a.peers) > 0 {
		c.Peers = a.peers
	}
	config, err := kubeconfigOf(c, a.namespace, f.proxy)
	if err != nil {
		return err
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	if f.file == "" {
		_, err := a.stdout.Write(data)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.file), 0o700); err != nil {
		return err
	}
	// Made anew: what is there may be open to others.
	if err := os.Remove(f.file); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.WriteFile(f.file, data, 0o600); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "context %s is in %s: try `kubectl --kubeconfig %s get nodes`\n", c.Name, f.file, f.file)
	return nil
}

func kubeconfigOf(c client.Context, namespace, proxy string) (kubeconfig, error) {
	cluster, user := kubeCluster{}, kubeUser{}
	if proxy != "" {
		if _, _, err := net.SplitHostPort(proxy); err != nil {
			return kubeconfig{}, failf(exitUsage, "--proxy %s: want host:port, such as %s", proxy, defaultProxyAddress)
		}
		cluster.Server = "http://" + proxy
	} else {
		cluster = kubeCluster{Server: "https://" + c.Peers[0], TLSServerName: kubernetesName, CA: []byte(c.CA)}
		user = kubeUser{Certificate: []byte(c.Cert), Key: []byte(c.Key)}
	}
	name := "holdfast-" + strings.TrimPrefix(c.Name, "holdfast-")
	return kubeconfig{
		APIVersion: "v1", Kind: "Config", CurrentContext: name,
		Clusters: []kubeNamed{{Name: name, Cluster: &cluster}},
		Users:    []kubeNamed{{Name: name, User: &user}},
		Contexts: []kubeNamed{{Name: name, Context: &kubeContext{Cluster: name, User: name, Namespace: namespace}}},
	}, nil
}
