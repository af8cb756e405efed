package consumergroup_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func TestPausedGroupStartsNoHandlerUntilItIsResumed(t *testing.T) {
	t.Parallel()
	for name, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 2)
			keys := []pel.Keys{f.keys(0), f.keys(1)}
			var seen ledger
			var late sync.Map // handlers that began long after the pause
			var pausedAt time.Time
			var mu sync.Mutex
			cfg := f.config(consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error {
				mu.Lock()
				if !pausedAt.IsZero() {
					late.Store(e.ID, time.Since(pausedAt))
				}
				mu.Unlock()
				wait(t, 5*time.Millisecond)
				seen.add(e.ID)
				return nil
			}))
			cfg.Ordered, cfg.MinIdle = ordered, 2*time.Second // for which a busy machine may keep heartbeats waiting
			f.run(cfg)
			f.run(cfg)
			events := f.publish(2000)
			require.Eventually(t, func() bool { return seen.count(events[0].ID) > 0 }, patience, time.Millisecond)
			require.NoError(t, pel.Pause(t.Context(), f.rdb, keys...))
			require.False(t, wait(t, 1500*time.Millisecond))
			mu.Lock()
			pausedAt = time.Now()
			mu.Unlock()
			require.False(t, wait(t, time.Second))
			late.Range(func(_, after any) bool {
				t.Errorf("a handler began %s after the group had been paused for long", after)
				return true
			})
			handled := 0
			for _, e := range events {
				handled += seen.count(e.ID)
			}
			require.Less(t, handled, len(events), "nothing was left to pause")
			mu.Lock()
			pausedAt = time.Time{}
			mu.Unlock()
			require.NoError(t, pel.Resume(t.Context(), f.rdb, keys...))
			seen.eventually(t, events, 1)
			f.atRest()
			for _, e := range events {
				require.Equal(t, 1, seen.count(e.ID))
			}
		})
	}
}

func TestKeyOrderHandlesTheEventsOfAKeyInOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	keys := make([]string, backlog) // which is read ahead
	for i := range keys {
		keys[i] = "k" + strconv.Itoa(i%7)
	}
	keys[3] = ""
	f.publishKeys(keys...)
	var o orderly
	var runs ledger
	cfg := f.config(o.handler(func(_ context.Context, e stream.Event, n int) error {
		if n == len(keys)-1 && runs.add(e.ID) == 1 {
			return errors.New("again")
		}
		return nil
	}))
	cfg.KeyOrder, cfg.Concurrency, cfg.MinIdle = true, 8, 2*time.Second
	c := f.run(cfg)
	o.eventually(t, len(keys))
	f.atRest()
	require.NoError(t, c.stop())
	f.leftClean()
}
