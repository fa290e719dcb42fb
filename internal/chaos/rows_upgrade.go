//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// olderCommit is the version that row 19 begins with, unless it is given one.
const olderCommit = "095318f7daf1e85030c864d64df670d8145e8c14"

// buildOlder builds that version's binary in dir, from this tree's history. It
// returns why not where there is no such history.
func buildOlder(ctx context.Context, dir string) (binary, why string, err error) {
	git := func(args ...string) error {
		out, err := exec.CommandContext(ctx, "git", args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
		return err
	}
	if err := git("rev-parse", "--verify", "--quiet", olderCommit+"^{commit}"); err != nil {
		return "", fmt.Sprintf("no OLD= is given, and history does not reach back to %.7s", olderCommit), nil
	}
	tree := filepath.Join(dir, "tree")
	if err := git("worktree", "add", "--detach", tree, olderCommit); err != nil {
		return "", "", err
	}
	defer func() {
		err = errors.Join(err, git("worktree", "remove", "--force", tree))
	}()
	binary = filepath.Join(dir, "holdfast-older")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+olderCommit[:7], "-o", binary, "./cmd/holdfast")
	build.Dir = tree
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("build %.7s: %w\n%s", olderCommit, err, out)
	}
	return binary, "", nil
}

// playUpgrade replaces the peers' binary by this version's under load, one by one,
// and back again. The first to go each time misses so much meanwhile that it takes a
// snapshot of the other version's leader.
func playUpgrade(ctx context.Context, e *experiment) error {
	older, err := e.version(ctx, e.all()[0])
	if err != nil {
		return err
	}
	if err := e.roll(ctx, e.opts.binary, "newer"); err != nil {
		return err
	}
	newer, err := e.version(ctx, e.all()[0])
	if err != nil {
		return err
	}
	if older == newer {
		e.fail("P11: both binaries are version %s", newer)
	}
	e.note("from %s to %s", older, newer)
	sleep(ctx, e.opts.seconds/4)
	if err := e.roll(ctx, e.opts.old, "older"); err != nil {
		return err
	}
	sleep(ctx, e.opts.seconds/4)
	return nil
}

// version returns the version that a peer runs.
func (e *experiment) version(ctx context.Context, m *machine) (version string, err error) {
	err = eventually(ctx, 20*time.Second, "version of "+m.name(), func(ctx context.Context) error {
		st, err := m.client.Cluster().Status(ctx, &holdfastv1.StatusRequest{})
		version = st.GetVersion()
		return err
	})
	return version, err
}

// roll restarts all peers as binary: followers first, the leader last.
func (e *experiment) roll(ctx context.Context, binary, what string) error {
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	for i, m := range append(e.others(leader), leader) {
		mark := e.load.mark()
		if err := m.stop(ctx); err != nil {
			return err
		}
		m.binary = binary
		if i == 0 {
			if err := e.bulk(ctx, missedBytes); err != nil {
				return err
			}
		}
		begin := time.Now()
		if err := m.restart(ctx); err != nil {
			return err
		}
		if err := e.writes(ctx, mark, progressWithin, "gap_replaced"); err != nil {
			return err
		}
		target := e.load.floorAt(time.Now())
		err := eventually(ctx, caughtUpWithin, "catching up of "+m.name(), func(ctx context.Context) error {
			st, err := m.status(ctx)
			if err == nil && st.GetHeader().GetRevision() < target {
				err = fmt.Errorf("it is at revision %d of %d", st.GetHeader().GetRevision(), target)
			}
			return err
		})
		if err != nil {
			return err
		}
		e.measure("until_caught_up", time.Since(begin))
		e.strike(1, fmt.Sprintf("%s runs the %s version", m.name(), what))
		if i > 0 || binary != e.opts.binary {
			continue
		}
		// The older version does not count them.
		if all, err := m.metrics(ctx); err != nil || all["holdfast_store_snapshots_installed_total"] == 0 {
			e.fail("P11: %s, the first of the newer version, was sent no snapshot by the older (%v)", m.name(), err)
		}
	}
	return nil
}
