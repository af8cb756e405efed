package consumergroup_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

func TestRateLimitHoldsForTheWholeGroupAndBurnsNothing(t *testing.T) {
	t.Parallel()
	for name, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 4)
			const perSecond, burst, n = 200, 20, 300
			events := f.publish(n)
			var seen ledger
			var mu sync.Mutex
			var times []time.Time
			cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
				mu.Lock()
				times = append(times, time.Now())
				mu.Unlock()
				if m, _ := consumergroup.MetadataFrom(ctx); m.Attempt == 1 && m.Deliveries == 1 {
					seen.add(e.ID)
				}
				return nil
			}))
			cfg.Ordered, cfg.Rate = ordered, consumergroup.Rate{PerSecond: perSecond, Burst: burst}
			began := time.Now()
			f.run(cfg)
			f.run(cfg)
			seen.eventually(t, events, 1)
			took := time.Since(began)
			least := time.Duration(float64(n-burst) / perSecond * float64(time.Second))
			// A read may exceed the limit by one of each lane and consumer.
			require.Greater(t, took, least-100*time.Millisecond, "%d events at %d/s", n, perSecond)
			f.atRest()
			require.Len(t, times, n)
		})
	}
}

func TestRateIsValidated(t *testing.T) {
	t.Parallel()
	for fault, rate := range map[string]consumergroup.Rate{
		"Rate.PerSecond -1":    {PerSecond: -1},
		"Rate.PerSecond 2e+06": {PerSecond: 2e6},
		"Rate.Burst -1":        {PerSecond: 1, Burst: -1},
	} {
		_, err := consumergroup.New(nil, consumergroup.Config{Rate: rate})
		require.ErrorContains(t, err, fault)
	}
}
