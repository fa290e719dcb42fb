// Command writer shows what a client sees of an outage. It writes to the cluster,
// one small ConfigMap after another, until it is interrupted; then it prints how
// many writes were acknowledged and the longest time without one, and looks
// whether every acknowledged write is really there.
//
// It exits with 1 if an acknowledged write is lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

// requestTimeout is a patient client's: longer than any election.
const requestTimeout = 15 * time.Second

var configMaps = &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}

func run() error {
	contextName := flag.String("context", "", "context of the CLI's config to use; empty: the current one")
	prefix := flag.String("prefix", fmt.Sprintf("writer-%d", os.Getpid()), "name of the objects to write, before their number")
	pause := flag.Duration("pause", 5*time.Millisecond, "between two writes")
	quiet := flag.Bool("value-only", false, "print only the longest gap, in milliseconds")
	flag.Parse()

	cluster, err := connectTo(*contextName)
	if err != nil {
		return err
	}
	defer cluster.Close()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	result := write(ctx, cluster, *prefix, *pause)

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lost, err := verify(ctx, cluster, *prefix, result.acknowledged)
	if err != nil {
		return err
	}
	if *quiet {
		fmt.Println(result.gap.Milliseconds())
	} else {
		fmt.Printf("%d writes acknowledged, %d with unknown outcome, %d refused; longest time without a write: %.2f s; acknowledged and lost: %d\n",
			len(result.acknowledged), result.unknown, result.refused, result.gap.Seconds(), len(lost))
	}
	if len(lost) > 0 {
		return fmt.Errorf("acknowledged writes are lost: %v", lost)
	}
	return nil
}

func connectTo(name string) (*client.Client, error) {
	path, err := client.DefaultConfigPath()
	if err != nil {
		return nil, err
	}
	config, err := client.LoadConfig(path)
	if err != nil {
		return nil, err
	}
	context, err := config.Context(name)
	if err != nil {
		return nil, err
	}
	creds, err := context.Credentials()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{Peers: context.Peers, Credentials: creds}), nil
}

// outcome is what came of the writes.
type outcome struct {
	acknowledged     []string
	unknown, refused int
	gap              time.Duration // the longest time between two acknowledgements
}

// write creates objects one after another until ctx ends.
func write(ctx context.Context, cluster *client.Client, prefix string, pause time.Duration) outcome {
	var result outcome
	last := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("%s-%06d", prefix, n)
		err := create(cluster, name)
		switch {
		case err == nil, connect.CodeOf(err) == connect.CodeAlreadyExists:
			now := time.Now()
			result.gap = max(result.gap, now.Sub(last))
			last = now
			result.acknowledged = append(result.acknowledged, name)
		case connect.CodeOf(err) == connect.CodeUnknown:
			result.unknown++
		default:
			result.refused++
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return result
}

func create(cluster *client.Client, name string) error {
	data, err := object.Encode(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault},
		Data:       map[string]string{"written": name},
	})
	if err != nil {
		return err
	}
	// Its own context: an interruption must not make the last write's outcome
	// unknown.
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	_, err = cluster.Objects().Create(ctx, &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Kind: configMaps, Data: data}})
	return err
}

// verify returns the acknowledged objects that the cluster does not have, and
// deletes the others.
func verify(ctx context.Context, cluster *client.Client, prefix string, acknowledged []string) ([]string, error) {
	found := make(map[string]bool)
	next := ""
	for {
		page, err := cluster.Objects().List(ctx, &holdfastv1.ListRequest{Kind: configMaps, Namespace: metav1.NamespaceDefault, Limit: 1000, Continue: next})
		if err != nil {
			return nil, err
		}
		for _, obj := range page.GetObjects() {
			found[obj.GetName()] = true
		}
		if next = page.GetContinue(); next == "" {
			break
		}
	}
	var lost []string
	for _, name := range acknowledged {
		if !found[name] {
			lost = append(lost, name)
		}
	}
	for name := range found {
		if len(name) < len(prefix) || name[:len(prefix)] != prefix {
			continue
		}
		_, err := cluster.Objects().Delete(ctx, &holdfastv1.DeleteRequest{Kind: configMaps, Namespace: metav1.NamespaceDefault, Name: name})
		if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
			return lost, errors.Join(errors.New("delete what was written"), err)
		}
	}
	return lost, nil
}
