package consumergroup_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

func TestOutageOfADependencyIsProbedByOneHandlerAtATimeAndBurnsNothing(t *testing.T) {
	t.Parallel()
	for name, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1)
			var away atomic.Bool
			var failed, together, running atomic.Int32
			away.Store(true)
			var seen ledger
			cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
				n := running.Add(1)
				defer running.Add(-1)
				if m, _ := consumergroup.MetadataFrom(ctx); m.Attempt != 1 || m.Deliveries != 1 {
					return consumergroup.Permanent(errors.New("the outage was counted"))
				}
				if away.Load() {
					if failed.Add(1) > 4 && n > 1 { // the first of each worker may fail
						together.Add(1)
					}
					return consumergroup.Unavailable(errors.New("database is away"))
				}
				seen.add(e.ID)
				return nil
			}))
			cfg.Ordered = ordered
			obs := &observer{}
			cfg.Observer = obs
			f.run(cfg)
			events := f.publish(100)
			require.Eventually(t, func() bool { return failed.Load() >= 5 }, 2*patience, 5*time.Millisecond, "nobody probes")
			require.LessOrEqual(t, failed.Load(), int32(7))
			require.Zero(t, together.Load(), "probes run alone")
			away.Store(false)
			seen.eventually(t, events, 1)
			f.atRest()
			require.Zero(t, obs.count(consumergroup.DeadLettered))
			require.Zero(t, obs.count(consumergroup.Retried))
		})
	}
}

func TestStopDoesNotWaitForAnOutageToEnd(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	var failed atomic.Int32
	cfg := f.config(consumergroup.HandlerFunc(func(context.Context, stream.Event) error {
		failed.Add(1)
		return consumergroup.Unavailable(errors.New("database is away"))
	}))
	cfg.ShutdownTimeout = 2 * patience
	c := f.run(cfg)
	f.publish(50)
	require.Eventually(t, func() bool { return failed.Load() > 0 }, patience, time.Millisecond)
	require.NoError(t, c.stop()) // waits for less than ShutdownTimeout
	pending, err := f.rdb.XPending(t.Context(), f.topic.StreamKey(0), "billing").Result()
	require.NoError(t, err)
	require.Zero(t, pending.Count)
}
