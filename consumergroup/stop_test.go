package consumergroup_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

func TestStopLetsHandlersFinishAndAcksThem(t *testing.T) {
	t.Parallel()
	for kind, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1)
			events := f.publish(4)
			started, release := make(chan struct{}, 4), make(chan struct{})
			var cut atomic.Bool
			cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error {
				started <- struct{}{}
				<-release
				cut.Store(cut.Load() || ctx.Err() != nil)
				return nil
			}))
			cfg.Ordered = ordered
			c := f.run(cfg)
			for range events {
				<-started
			}
			c.cancel()
			require.False(t, wait(t, 100*time.Millisecond)) // in which the handlers could be cut off
			close(release)
			require.NoError(t, c.stop())
			require.False(t, cut.Load(), "the handlers' context ended with Run's")
			f.atRest() // through the caller's client, which is open still
		})
	}
}

func TestIdleConsumerStopsWithinASecond(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	var seen ledger
	c := f.run(f.config(consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error { seen.add(e.ID); return nil })))
	seen.eventually(t, f.publish(1), 1)
	f.atRest()
	began := time.Now()
	require.NoError(t, c.stop())
	require.Less(t, time.Since(began), time.Second, "a blocked read does not heed its context, so it must be short")
}
