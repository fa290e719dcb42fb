package peer

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestPartsStopInOppositeOrder: what is started last acts on what was started
// before it, so it ends first, and each ends before the next is told to.
func TestPartsStopInOppositeOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newParts()
		ended := make(chan string, 3)
		for _, name := range []string{"first", "second", "third"} {
			ps.start(name, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(time.Second) // takes its time; those before it must wait
				ended <- name
				return nil
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := ps.wait(ctx); err != nil {
			t.Errorf("a stop that was asked for returned %v", err)
		}
		close(ended)
		var got []string
		for name := range ended {
			got = append(got, name)
		}
		if want := []string{"third", "second", "first"}; !slices.Equal(got, want) {
			t.Errorf("ended in order %q, want %q", got, want)
		}
	})
}

// TestPartThatFailsEndsTheOthers: half a process is worse than none.
func TestPartThatFailsEndsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newParts()
		stopped := false
		ps.start("steady", func(ctx context.Context) error { <-ctx.Done(); stopped = true; return nil })
		broken := errors.New("broken")
		ps.start("frail", func(context.Context) error { return broken })
		if err := ps.wait(t.Context()); !errors.Is(err, broken) || err.Error() != "frail: broken" {
			t.Errorf("error is %v, want the one that broke, with its part's name", err)
		}
		if !stopped {
			t.Error("the other part goes on")
		}
	})
}

// TestHungPartIsLeftBehind: where patience ends, a part that does not is no reason for
// the process to go on.
func TestHungPartIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ps := newParts()
		hung, disk := errors.New("hangs"), make(chan struct{})
		defer close(disk)
		ps.patience = func(err error) time.Duration {
			if errors.Is(err, hung) {
				return time.Second
			}
			return 0
		}
		told := false
		ps.start("below", func(ctx context.Context) error { <-ctx.Done(); told = true; return nil })
		ps.start("stuck", func(context.Context) error { <-disk; return errors.New("too late") })
		ps.start("store", func(context.Context) error { return hung })
		begin := time.Now()
		if err := ps.wait(t.Context()); !errors.Is(err, hung) {
			t.Errorf("error is %v, want the first one", err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("waited for %v, want the second that it has patience for", took)
		}
		synctest.Wait()
		if !told {
			t.Error("the part behind the stuck one was not told to end")
		}
	})
}

// TestLeaderWorkSurvivesErrors: a failure in the leader's work, while it leads, is
// no reason for the peer to end; the work begins anew.
func TestLeaderWorkSurvivesErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		runs := 0
		err := persist(ctx, slog.New(slog.DiscardHandler), "work", func(ctx context.Context) error {
			runs++
			if runs < 4 {
				return errors.New("outcome unknown")
			}
			cancel() // leadership ends
			<-ctx.Done()
			return ctx.Err()
		})
		if err != nil || runs != 4 {
			t.Errorf("%d runs, error %v; want 4 and none", runs, err)
		}
	})
}
