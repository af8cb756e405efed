package consumergroup_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

func TestEveryEventIsHandledAndAcked(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 4)
	events := f.publish(500)
	var seen ledger
	mux := consumergroup.NewMux()
	consumergroup.Handle(mux, orderPlaced, func(_ context.Context, e stream.Event, o order) error {
		if events[o.N].ID != e.ID {
			return consumergroup.Permanent(errors.New("payload of another event"))
		}
		seen.add(e.ID)
		return nil
	})
	c := f.run(f.config(mux))
	seen.eventually(t, events, 1)
	f.atRest()
	require.NoError(t, c.stop())
	for _, e := range events {
		require.Equal(t, 1, seen.count(e.ID))
	}
	for p := range f.topic.Count() {
		for _, key := range []string{f.keys(p).Stream, f.keys(p).Retry} {
			consumers, err := f.rdb.XInfoConsumers(t.Context(), key, "billing").Result()
			require.NoError(t, err)
			require.Empty(t, consumers, "a clean stop leaves no name behind")
		}
		require.Zero(t, f.rdb.ZCard(t.Context(), f.keys(p).Members).Val())
	}
}

func TestFailingEventIsRetriedWithoutBlockingOthersAndThenDeadLettered(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(20)
	var seen ledger
	var metas []consumergroup.Metadata
	handler := consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		seen.add(e.ID)
		if e.ID == events[0].ID {
			m, _ := consumergroup.MetadataFrom(ctx)
			metas = append(metas, m)
			return errors.New("no money")
		}
		return nil
	})
	obs := &observer{}
	cfg := f.config(handler)
	cfg.Concurrency, cfg.Observer = 1, obs
	f.run(cfg)
	seen.eventually(t, events, 1)
	q, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	require.Eventually(t, func() bool { n, _ := q.Count(t.Context()); return n == 1 }, patience, 5*time.Millisecond)
	f.atRest()

	page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
	require.NoError(t, err)
	l := page.Letters[0]
	require.Equal(t, dlq.ReasonAttempts, l.Reason)
	require.Equal(t, "no money", l.Error)
	require.Equal(t, 3, l.Attempts)
	require.Equal(t, 3, l.Deliveries)
	require.Equal(t, f.topic.StreamKey(0), l.OriginStream)
	require.Equal(t, events[0].ID, l.Entry.Event.ID)
	require.Equal(t, "billing", l.Group)
	require.WithinDuration(t, time.Now(), l.Died, time.Minute)
	require.WithinDuration(t, time.Now(), l.FirstSeen, time.Minute)
	require.Equal(t, 3, seen.count(events[0].ID))
	for i, m := range metas {
		require.Equal(t, i+1, m.Attempt)
		require.Equal(t, i+1, m.Deliveries)
		require.Equal(t, l.OriginID, m.ID, "a retry keeps the place where it was first read")
		require.Equal(t, f.topic.StreamKey(0), m.Stream)
	}
	require.Equal(t, 2, obs.count(consumergroup.Retried))
	require.Equal(t, 1, obs.count(consumergroup.DeadLettered))
	require.Equal(t, 19, obs.count(consumergroup.Handled))
}

func TestPermanentErrorAndPanicsAndUndecodablePayloads(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	refused := stream.Define("order.refused", stream.DefinitionConfig[order]{Validate: func(o order) error {
		if o.N < 0 {
			return errors.New("N is negative")
		}
		return nil
	}})
	mux := consumergroup.NewMux()
	consumergroup.Handle(mux, orderPlaced, func(_ context.Context, _ stream.Event, o order) error {
		switch o.N {
		case 1:
			return consumergroup.Permanent(errors.New("never"))
		case 2:
			panic("boom")
		}
		return nil
	})
	consumergroup.Handle(mux, refused, func(context.Context, stream.Event, order) error { return nil })
	f.publish(3)
	p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	invalid := stream.Define[order]("order.refused").Event("k", order{N: -1})
	for _, e := range []stream.Event{
		stream.NewEvent("order.placed", "k", stream.ContentTypeMsgpack, []byte{0xdd, 0xff, 0xff, 0xff, 0xff}),
		invalid,
		stream.NewEvent("order.unknown", "k", stream.ContentTypeJSON, []byte("{}")),
	} {
		_, err := p.Publish(t.Context(), f.topic, e)
		require.NoError(t, err)
	}
	require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.topic.StreamKey(0), Values: []string{"foreign", "1", "foreign", "2"}}).Err())
	after := orderPlaced.Event("k", order{N: 9})
	_, err = p.Publish(t.Context(), f.topic, after)
	require.NoError(t, err)

	obs := &observer{}
	cfg := f.config(mux)
	cfg.Observer = obs
	f.run(cfg)
	q, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	require.Eventually(t, func() bool { n, _ := q.Count(t.Context()); return n == 5 }, patience, 5*time.Millisecond)
	f.atRest()
	page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
	require.NoError(t, err)
	reasons := map[dlq.Reason]int{}
	for _, l := range page.Letters {
		reasons[l.Reason]++
		switch l.Reason {
		case dlq.ReasonPermanent, dlq.ReasonUndecodable, dlq.ReasonInvalid:
			require.LessOrEqual(t, l.Attempts, 1, "%s must not be tried again", l.Reason)
		case dlq.ReasonAttempts:
			require.Contains(t, l.Error, "boom")
		}
		if l.Entry.Event.ID == "" {
			require.Equal(t, []string{"foreign", "1", "foreign", "2"}, l.Fields(), "a foreign entry is kept raw")
		}
	}
	require.Equal(t, map[dlq.Reason]int{dlq.ReasonPermanent: 1, dlq.ReasonAttempts: 1, dlq.ReasonUndecodable: 2, dlq.ReasonInvalid: 1}, reasons)
	require.Equal(t, 1, obs.count(consumergroup.Skipped))
}

func TestConsumersTrimWhatEveryGroupHasFinished(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	var seen ledger
	cfg := f.config(consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error { seen.add(e.ID); return nil }))
	cfg.Retention = retention.Policy{Keep: time.Millisecond, Exact: true}
	c := f.run(cfg)
	seen.eventually(t, f.publish(20), 1)
	f.atRest()
	require.NoError(t, c.stop())
	f.run(cfg) // it begins with a trim
	require.Eventually(t, func() bool { return f.rdb.XLen(t.Context(), f.topic.StreamKey(0)).Val() == 0 }, patience, 10*time.Millisecond)
}
