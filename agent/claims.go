package agent

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// claimRetry is the pause after a volume that could not be removed, or a report of
// it that got no answer.
const claimRetry = 5 * time.Second

// claims removes the data of local volumes that a peer has said are to go, and
// tells of it. It acts on nothing that was only saved: data that is gone does not
// come back.
type claims struct {
	node    string
	volumes *volume.Manager
	client  Client
	log     *slog.Logger
	wake    chan struct{} // of capacity 1

	mu   sync.Mutex
	want []*corev1.PersistentVolume // to be removed, by name
	told map[string]bool            // uids of those that were, and that a peer knows of
}

func newClaims(node string, volumes *volume.Manager, client Client, log *slog.Logger) *claims {
	return &claims{node: node, volumes: volumes, client: client, log: log, wake: make(chan struct{}, 1), told: map[string]bool{}}
}

// set takes in what a peer has said.
func (c *claims) set(d desired, complete bool) {
	var want []*corev1.PersistentVolume
	for _, in := range d.inputs {
		if pv, ok := in.object.(*corev1.PersistentVolume); ok && object.LocalVolumeToRemove(pv) && object.LocalVolumeNode(pv) == c.node {
			want = append(want, pv)
		}
	}
	slices.SortFunc(want, func(a, b *corev1.PersistentVolume) int { return cmp.Compare(a.Name, b.Name) })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.want = want
	if complete {
		clear(c.told)
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run removes volumes until ctx ends.
func (c *claims) run(ctx context.Context) error {
	for {
		again := time.NewTimer(time.Hour)
		if !c.pass(ctx) {
			again.Reset(claimRetry)
		}
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-c.wake:
		case <-again.C:
		}
		again.Stop()
	}
}

// pass removes what is to be removed, and returns whether nothing is left to do.
func (c *claims) pass(ctx context.Context) (done bool) {
	c.mu.Lock()
	want := slices.DeleteFunc(slices.Clone(c.want), func(pv *corev1.PersistentVolume) bool { return c.told[string(pv.UID)] })
	c.mu.Unlock()
	done = true
	var report agentv1.ReportStatusRequest
	for _, pv := range want {
		if err := c.volumes.RemoveClaim(pv.Spec.CSI.VolumeHandle); err != nil {
			c.log.Warn("a volume's data is not removed; trying again", "volume", pv.Name, "retry_in", claimRetry, "error", err)
			done = false
			continue
		}
		report.RemovedVolumes = append(report.RemovedVolumes, &agentv1.RemovedVolume{Name: pv.Name, Uid: string(pv.UID)})
	}
	if len(report.GetRemovedVolumes()) == 0 {
		return done
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	if _, err := c.client.Agent().ReportStatus(ctx, &report); err != nil {
		c.log.Warn("the removal of volumes is not reported; trying again", "volumes", len(report.GetRemovedVolumes()), "retry_in", claimRetry, "error", err)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range report.GetRemovedVolumes() {
		c.told[v.GetUid()] = true
		c.log.Info("volume removed", "volume", v.GetName())
	}
	return done
}
