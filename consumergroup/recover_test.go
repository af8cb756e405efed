package consumergroup_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// strand reads entries as a consumer that dies at once: they stay pending under its name.
func (f *fixture) strand(name string, count int64) []redis.XMessage {
	f.t.Helper()
	streams, err := f.rdb.XReadGroup(f.t.Context(), &redis.XReadGroupArgs{
		Group: "billing", Consumer: name, Streams: []string{f.topic.StreamKey(0), ">"}, Count: count, Block: -1,
	}).Result()
	require.NoError(f.t, err)
	return streams[0].Messages
}

func (f *fixture) makeGroup() {
	f.t.Helper()
	_, err := pel.Ensure(f.t.Context(), f.rdb, f.keys(0), "0")
	require.NoError(f.t, err)
}

func TestEntriesOfADeadConsumerAreTakenOverAndItsNameDeleted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(300)
	f.makeGroup()
	require.Len(t, f.strand("dead", 250), 250)
	var seen ledger
	obs := &observer{}
	cfg := f.config(consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error { seen.add(e.ID); return nil }))
	cfg.Observer = obs
	f.run(cfg)
	seen.eventually(t, events, 1)
	f.atRest()
	require.Equal(t, 250, obs.count(consumergroup.Reclaimed))
	require.Eventually(t, func() bool {
		consumers, err := f.rdb.XInfoConsumers(t.Context(), f.topic.StreamKey(0), "billing").Result()
		return err == nil && len(consumers) == 1 && consumers[0].Name != "dead"
	}, patience, 20*time.Millisecond, "the dead consumer's name stays")
}

func TestReclaimSparesEntriesStillBeingHandled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(1)
	var seen ledger
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		seen.add(e.ID)
		select { // five times MinIdle
		case <-time.After(3 * time.Second):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}))
	f.run(cfg)
	seen.eventually(t, events, 1)
	f.run(cfg) // a second consumer, which sweeps too
	f.atRest()
	require.Equal(t, 1, seen.count(events[0].ID), "a live handler's entry was handed to another")
	require.Zero(t, f.rdb.XLen(t.Context(), f.keys(0).Dead).Val())
}

func TestEntriesThatWaitForAWorkerStayWithTheirConsumer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(12)
	var seen ledger
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		seen.add(e.ID)
		select { // what waits behind it waits for longer than MinIdle
		case <-ctx.Done():
		case <-time.After(400 * time.Millisecond):
		}
		return nil
	}))
	cfg.Concurrency = 1
	f.run(cfg)
	f.run(cfg)
	seen.eventually(t, events, 1)
	f.atRest()
	for _, e := range events {
		require.Equal(t, 1, seen.count(e.ID), "an entry that waited for its worker was handed to another")
	}
}

func TestDeliveriesWithoutAnEndAreCapped(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(1)
	f.makeGroup()
	f.strand("dead-1", 1) // the first hand-over; the second is to somebody who dies too
	f.upkeep(600*time.Millisecond, 2)
	require.Eventually(t, func() bool { return f.rdb.XLen(t.Context(), f.keys(0).Retry).Val() == 1 }, patience, 10*time.Millisecond)
	require.NoError(t, f.rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{
		Group: "billing", Consumer: "dead-2", Streams: []string{f.keys(0).Retry, ">"}, Count: 1, Block: -1,
	}).Err())
	q, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	require.Eventually(t, func() bool { n, _ := q.Count(t.Context()); return n == 1 }, patience, 10*time.Millisecond)
	page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
	require.NoError(t, err)
	require.Equal(t, dlq.ReasonDeliveries, page.Letters[0].Reason)
	require.Equal(t, 2, page.Letters[0].Deliveries)
	require.Equal(t, "dead-2", page.Letters[0].Consumer)
	require.Equal(t, events[0].ID, page.Letters[0].Entry.Event.ID)
}

func TestSuspectsAreHandledWithNothingElseInHand(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(60)
	f.makeGroup()
	f.strand("dead", 10)
	var inHand, together atomic.Int32
	var seen ledger
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		n := inHand.Add(1)
		defer inHand.Add(-1)
		seen.add(e.ID)
		m, _ := consumergroup.MetadataFrom(ctx)
		if m.Deliveries > 1 {
			pending, err := f.rdb.XPending(ctx, f.topic.StreamKey(0), "billing").Result()
			retries, err2 := f.rdb.XPending(ctx, f.keys(0).Retry, "billing").Result()
			if err != nil || err2 != nil || n > 1 || pending.Count+retries.Count != 1 {
				together.Add(1)
			}
		}
		return nil
	}))
	f.run(cfg)
	seen.eventually(t, events, 1)
	f.atRest()
	require.Zero(t, together.Load(), "an entry that may have killed a process shared it with others")
	for _, e := range events {
		require.Equal(t, 1, seen.count(e.ID))
	}
}

func TestStopReleasesWhatWasNotHandled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(40)
	var seen ledger
	started := make(chan struct{}, 100)
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		started <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}))
	cfg.ShutdownTimeout = 100 * time.Millisecond
	c := f.run(cfg)
	<-started
	require.NoError(t, c.stop())
	k := f.keys(0)
	pending, err := f.rdb.XPending(t.Context(), k.Stream, "billing").Result()
	require.NoError(t, err)
	require.Zero(t, pending.Count, "what was in hand is released, not left for MinIdle")

	cfg.Handler = consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		m, _ := consumergroup.MetadataFrom(ctx)
		if m.Attempt == 1 && m.Deliveries == 1 {
			seen.add(e.ID)
		}
		return nil
	})
	f.run(cfg)
	seen.eventually(t, events, 1)
	f.atRest()
}

func TestGroupAndStreamThatVanishComeBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	var seen ledger
	cfg := f.config(consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error { seen.add(e.ID); return nil }))
	cfg.Start = consumergroup.FromNow
	f.run(cfg)
	require.Eventually(t, func() bool { return f.rdb.Exists(t.Context(), f.keys(1).Retry).Val() == 1 }, patience, 5*time.Millisecond)
	seen.eventually(t, f.publish(50), 1)
	f.atRest()
	hash := f.keys(0).Hash
	require.Eventually(t, func() bool { return f.rdb.HExists(t.Context(), hash, "checkpoint").Val() }, patience, 5*time.Millisecond)

	// The group goes; what is published before it is back must not be skipped, although new
	// groups start from now.
	for p := range 2 {
		require.NoError(t, f.rdb.XGroupDestroy(t.Context(), f.topic.StreamKey(p), "billing").Err())
	}
	seen.eventually(t, f.publish(50), 1)
	f.atRest()

	// The streams go, with everything in them.
	require.NoError(t, f.rdb.Del(t.Context(), f.topic.StreamKeys()...).Err())
	seen.eventually(t, f.publish(50), 1)
	f.atRest()

	// The retry streams go.
	require.NoError(t, f.rdb.Del(t.Context(), f.keys(0).Retry, f.keys(1).Retry).Err())
	seen.eventually(t, f.publish(50), 1)
	f.atRest()
}

// wait lets time pass, which is what is tested, not a condition.
func wait(t testing.TB, d time.Duration) bool {
	t.Helper()
	select {
	case <-t.Context().Done():
		return true
	case <-time.After(d):
		return false
	}
}
