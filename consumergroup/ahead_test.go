package consumergroup_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

const backlog = 4000 // many full reads

// A consumer whose workers keep up reads ahead; a single worker still gets the events in the stream's
// order, each once, and stopping at any moment leaves what was read ahead to the next consumer.
func TestReadingAheadKeepsTheOrderAndStrandsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.publish(backlog)
	var mu sync.Mutex
	var got []int
	stops := []int{300, 1100, 2400} // handled events after which the consumer stops
	for {
		reached := make(chan struct{})
		cfg := f.config(consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error {
			o, err := orderPlaced.Decode(e)
			mu.Lock()
			defer mu.Unlock()
			if got = append(got, o.N); len(stops) > 0 && len(got) == stops[0] || len(got) == backlog {
				close(reached)
			}
			return err
		}))
		cfg.Concurrency, cfg.Limits = 1, pel.Limits{} // nothing is reclaimed meanwhile
		c := f.run(cfg)
		select {
		case <-reached:
		case <-time.After(patience):
			t.Fatal("the backlog is not handled")
		}
		require.NoError(t, c.stop())
		if len(stops) == 0 {
			break
		}
		stops = stops[1:]
	}
	mu.Lock()
	defer mu.Unlock()
	times := map[int]int{}
	for _, n := range got {
		times[n]++
	}
	for n := range backlog {
		require.Equal(t, 1, times[n], "event %d", n)
	}
	f.atRest()
	for i, n := range got[:300] {
		require.Equal(t, i, n)
	}
}

// Nothing is read while something that handlers need is away, also not what would be read ahead.
func TestReadingAheadStopsAtAnOutageOfSomethingElse(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.publish(backlog)
	var handled atomic.Int64
	var away atomic.Bool
	away.Store(true)
	cfg := f.config(consumergroup.HandlerFunc(func(context.Context, stream.Event) error {
		if handled.Add(1) > 2000 && away.Load() {
			return consumergroup.Unavailable(errors.New("the database is away"))
		}
		return nil
	}))
	cfg.Limits = pel.Limits{}
	f.run(cfg)
	require.Eventually(t, func() bool { return handled.Load() > 2000 }, patience, time.Millisecond)
	const inHand = 4 * 256 // with the workers, waiting for them, and read ahead twice
	lag := func() int64 {
		groups, err := f.rdb.XInfoGroups(t.Context(), f.topic.StreamKey(0)).Result()
		require.NoError(t, err)
		return groups[0].Lag
	}
	before := lag()
	require.Greater(t, before, int64(backlog-2000-4-inHand-256), "it read on")
	require.Never(t, func() bool { return lag() < before-inHand }, 300*time.Millisecond, 20*time.Millisecond)
	away.Store(false)
	f.atRest()
}

// What was read ahead has a heartbeat, however long the workers are busy with what came before.
func TestReadingAheadKeepsWhatItFoundFromOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.publish(backlog)
	var handled atomic.Int64
	busy := make(chan struct{})
	defer close(busy)
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error {
		if handled.Add(1) > 1500 {
			select {
			case <-busy:
			case <-ctx.Done():
			}
		}
		return ctx.Err()
	}))
	cfg.DisableUpkeep = true
	cfg.MinIdle = 1500 * time.Millisecond // for which a busy machine may keep heartbeats waiting
	f.run(cfg)
	require.Eventually(t, func() bool { return handled.Load() > 1500 }, patience, time.Millisecond)

	seen := &observer{}
	upkeep, err := consumergroup.NewUpkeep(f.rdb, consumergroup.UpkeepConfig{
		Targets: func(context.Context) ([]consumergroup.Target, error) {
			group := stream.Group{Name: cfg.Group, Kind: stream.GroupWork, MinIdleMs: cfg.MinIdle.Milliseconds(), MaxDeliveries: 20}
			return []consumergroup.Target{{Topic: f.topic, Group: group}}, nil
		},
		Logger:   cfg.Logger,
		Observer: seen,
	})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 4*cfg.MinIdle) // it sweeps after MinIdle, and then twice in each
	defer cancel()
	upkeep.Run(ctx)
	require.Zero(t, seen.count(consumergroup.Reclaimed), "taken from a living consumer")
}

// Slow handlers have one read ahead, and no more: the rest is left to other consumers.
func TestSlowHandlersHoldNoMoreThanOneReadAhead(t *testing.T) {
	t.Parallel()
	for _, workers := range []int{1, 4} {
		for partitions, bound := range map[int]int{1: 2 * workers, 8: 2*workers + 8} { // a read takes one entry of each partition at the least
			t.Run(fmt.Sprint(workers, " workers, ", partitions, " partitions"), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, partitions)
				f.publish(60)
				var handled atomic.Int64
				cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error {
					select {
					case <-ctx.Done():
					case <-time.After(100 * time.Millisecond):
					}
					handled.Add(1)
					return nil
				}))
				cfg.Concurrency, cfg.Limits = workers, pel.Limits{} // nothing is reclaimed meanwhile
				most := int64(0)
				f.run(cfg)
				for handled.Load() < 20 {
					read := int64(0)
					for p := range partitions {
						groups, err := f.rdb.XInfoGroups(t.Context(), f.topic.StreamKey(p)).Result()
						if err == nil && len(groups) == 1 {
							read += groups[0].EntriesRead
						}
					}
					most = max(most, read-handled.Load()) // those handled may still be pending: their XACK is on its way
				}
				require.LessOrEqual(t, most, int64(bound))
			})
		}
	}
}

// What may have killed a process is handled alone, and does not wait for the end of a backlog that is read ahead.
func TestSuspectsDoNotWaitForTheEndOfABacklog(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	const total = 30_000
	for range total / 5000 {
		f.publish(5000)
	}
	suspect := orderPlaced.Event("k", order{N: -1})
	var handled, others atomic.Int64
	began, met := make(chan struct{}), make(chan int64, 100)
	cfg := f.config(consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error {
		if e.ID == suspect.ID {
			met <- handled.Load()
			others.Store(handled.Load())
			time.Sleep(20 * time.Millisecond)
			others.Add(-handled.Load())
			return nil
		}
		if handled.Add(1) == 5000 {
			close(began)
		}
		return nil
	}))
	cfg.Limits = pel.Limits{}
	f.run(cfg)
	<-began
	args := suspect.AppendFields([]any{"xadd", f.keys(0).Retry, "*"})
	args = append(args, "sk-origin", f.topic.StreamKey(0)+"/1-1", "sk-attempts", 0, "sk-deliveries", 1)
	require.NoError(t, f.rdb.Do(t.Context(), args...).Err())
	select {
	case n := <-met:
		require.Less(t, n, int64(total*2/3))
	case <-time.After(patience):
		t.Fatal("it was not handled")
	}
	f.atRest()
	require.Zero(t, others.Load(), "another handler ran beside it")
}
