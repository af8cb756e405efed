package dlq_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type fixture struct {
	rdb   *redis.Client
	topic stream.Topic
	queue *dlq.Queue
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{rdb: testenv.Redis(t), topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t), Partitions: 3}}
	var err error
	f.queue, err = dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	return f
}

// letter writes a letter as the settle script does.
func (f *fixture) letter(t testing.TB, partition int, e stream.Event, reason dlq.Reason, text string) dlq.Ref {
	t.Helper()
	args := e.AppendFields([]any{"xadd", stream.KeyDead.Key(f.topic.StreamKey(partition), "billing"), "*"})
	args = append(args, "sk-origin", f.topic.StreamKey(partition)+"/7-1", "sk-group", "billing", "sk-consumer", "c-1", "sk-attempts", 3,
		"sk-deliveries", 4, "sk-reason", string(reason), "sk-error", text, "sk-first", 1_700_000_000_000, "sk-died", time.Now().UnixMilli())
	id, err := f.rdb.Do(t.Context(), args...).Text()
	require.NoError(t, err)
	parsed, err := stream.ParseID(id)
	require.NoError(t, err)
	return dlq.Ref{Partition: partition, ID: parsed}
}

func event(key, eventType string) stream.Event {
	return stream.NewEvent(eventType, key, stream.ContentTypeJSON, []byte(`{"a":1}`))
}

func TestListPagesThroughAllPartitions(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	want := map[string]bool{}
	for i := range 250 {
		want[f.letter(t, i%3, event("k", "order.placed"), dlq.ReasonAttempts, "no").String()] = true
	}
	n, err := f.queue.Count(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 250, n)
	for next, pages := "", 0; ; pages++ {
		page, err := f.queue.List(t.Context(), dlq.Filter{}, next, 60)
		require.NoError(t, err)
		require.LessOrEqual(t, len(page.Letters), 60)
		for _, l := range page.Letters {
			require.True(t, want[l.Ref()], "%s twice or unknown", l.Ref())
			delete(want, l.Ref())
		}
		if next = page.Next; next == "" {
			require.Equal(t, 4, pages)
			break
		}
	}
	require.Empty(t, want)
}

func TestAllTakesWhatWasThereWhenItsTurnCame(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 3*150)
	met := 0
	for l, err := range f.queue.All(t.Context(), dlq.Filter{}) {
		require.NoError(t, err)
		met++
		require.LessOrEqual(t, met, 3*150)
		f.letter(t, l.Partition, event("k", "order.placed"), dlq.ReasonAttempts, "meanwhile")
	}
	require.Equal(t, 3*150, met)
	for range f.queue.All(t.Context(), dlq.Filter{}) {
		break // ends it
	}
}

func TestFiltersSelect(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.letter(t, 0, event("a", "order.placed"), dlq.ReasonAttempts, "card declined")
	f.letter(t, 1, event("b", "order.paid"), dlq.ReasonPermanent, "no such account")
	f.letter(t, 2, event("a", "order.paid"), dlq.ReasonDeliveries, "silent")
	for name, c := range map[string]struct {
		filter dlq.Filter
		want   int
	}{
		"all":     {dlq.Filter{}, 3},
		"reason":  {dlq.Filter{Reasons: []dlq.Reason{dlq.ReasonAttempts, dlq.ReasonDeliveries}}, 2},
		"type":    {dlq.Filter{Types: []string{"order.paid"}}, 2},
		"key":     {dlq.Filter{Key: "a", Types: []string{"order.paid"}}, 1},
		"error":   {dlq.Filter{Error: "declined"}, 1},
		"since":   {dlq.Filter{Since: time.Now().Add(time.Hour)}, 0},
		"until":   {dlq.Filter{Until: time.Now().Add(time.Hour)}, 3},
		"nothing": {dlq.Filter{Until: time.Now().Add(-time.Hour)}, 0},
	} {
		page, err := f.queue.List(t.Context(), c.filter, "", 0)
		require.NoError(t, err)
		require.Len(t, page.Letters, c.want, name)
	}
}

func TestShowHasTheWholeOrigin(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	e := event("a", "order.placed")
	ref := f.letter(t, 2, e, dlq.ReasonAttempts, "no")
	l, err := f.queue.Get(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, e, l.Entry.Event)
	require.Equal(t, f.topic.StreamKey(2), l.OriginStream)
	require.Equal(t, stream.ID{Ms: 7, Seq: 1}, l.OriginID)
	require.Equal(t, "c-1", l.Consumer)
	require.Equal(t, 3, l.Attempts)
	require.Equal(t, 4, l.Deliveries)
	require.Equal(t, time.UnixMilli(1_700_000_000_000).UTC(), l.FirstSeen)
	for _, missing := range []dlq.Ref{{Partition: 2, ID: stream.ID{Ms: 1}}, {Partition: 1, ID: ref.ID}, {Partition: 9}, {Partition: -1}} {
		_, err := f.queue.Get(t.Context(), missing)
		require.ErrorIs(t, err, dlq.ErrNotFound)
	}
}

func TestRedriveGivesBackToTheGroupAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	e := event("a", "order.placed")
	ref := f.letter(t, 0, e, dlq.ReasonAttempts, "no")
	other := f.letter(t, 1, event("b", "order.placed"), dlq.ReasonAttempts, "no")
	bodyless, err := f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: stream.KeyDead.Key(f.topic.StreamKey(0), "billing"), Values: []string{"sk-reason", "trimmed"}}).Result()
	require.NoError(t, err)
	bodylessID, err := stream.ParseID(bodyless)
	require.NoError(t, err)
	missing := dlq.Ref{Partition: 2, ID: stream.ID{Ms: 1}}

	n, err := f.queue.Redrive(t.Context(), other, missing, ref, dlq.Ref{Partition: 0, ID: bodylessID})
	require.Equal(t, 2, n)
	require.ErrorIs(t, err, dlq.ErrNotFound)
	require.ErrorIs(t, err, dlq.ErrNoBody)
	require.Zero(t, f.rdb.Exists(t.Context(), f.topic.StreamKeys()...).Val(), "no other group sees a redriven event")
	entries, err := f.rdb.XRange(t.Context(), stream.KeyRetry.Key(f.topic.StreamKey(0), "billing"), "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, e.ID, entries[0].Values["id"])
	require.Equal(t, "0", entries[0].Values["sk-attempts"])
	require.Equal(t, "1", entries[0].Values["sk-redrives"])
	require.NotContains(t, entries[0].Values, "sk-reason")
	count, err := f.queue.Count(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, count, "the letter without a body stays")

	n, err = f.queue.Purge(t.Context(), dlq.Ref{Partition: 0, ID: bodylessID}, missing)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestRefsAreParsedOrRefused(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "1", "/1-1", "x/1-1", "-1/1-1", "1/x", "1/1-1-1"} {
		_, err := dlq.ParseRef(bad)
		require.ErrorContains(t, err, "names no letter", bad)
	}
	ref, err := dlq.ParseRef("3/17-2")
	require.NoError(t, err)
	require.Equal(t, "3/17-2", ref.String())
	_, err = dlq.Open(nil, stream.Topic{}, "a b")
	require.ErrorContains(t, err, "client is nil")
	require.ErrorContains(t, err, "group name")
	require.ErrorIs(t, err, stream.ErrInvalid)
}

func TestBadPagesAreRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := f.queue.List(t.Context(), dlq.Filter{}, "", 1e9)
	require.ErrorContains(t, err, "limit")
	_, err = f.queue.List(t.Context(), dlq.Filter{}, "../x", 1)
	require.Error(t, err)
}

func TestUnreachableServerIsAnError(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.queue.List(ctx, dlq.Filter{}, "", 0)
	require.ErrorIs(t, err, context.Canceled)
	_, err = f.queue.Redrive(ctx, dlq.Ref{ID: stream.ID{Ms: 1}})
	require.True(t, errors.Is(err, context.Canceled), fmt.Sprint(err))
}
