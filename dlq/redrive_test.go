package dlq_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func (f *fixture) retryKey(p int) string {
	return stream.KeyRetry.Key(f.topic.StreamKey(p), "billing")
}

// fill makes n letters over the partitions, and returns the ids of their events.
func (f *fixture) fill(t testing.TB, n int) map[string]bool {
	t.Helper()
	events := map[string]bool{}
	for i := range n {
		e := event("k", "order.placed")
		f.letter(t, i%3, e, dlq.ReasonAttempts, "no")
		events[e.ID] = true
	}
	return events
}

// requireEachOnce checks that the retry streams hold exactly these events, each once.
func (f *fixture) requireEachOnce(t testing.TB, events map[string]bool) {
	t.Helper()
	back := map[string]bool{}
	for p := range 3 {
		entries, err := f.rdb.XRange(t.Context(), f.retryKey(p), "-", "+").Result()
		require.NoError(t, err)
		for _, en := range entries {
			id := en.Values["id"].(string)
			require.False(t, back[id], "%s went back twice", id)
			back[id] = true
		}
	}
	require.Equal(t, events, back)
	n, err := f.queue.Count(t.Context())
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestConcurrentRedrivesGiveEachLetterBackOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	events := f.fill(t, 700)
	sums := make([]dlq.Redriven, 4)
	var runs sync.WaitGroup
	for i := range sums {
		runs.Go(func() {
			var err error
			if sums[i], err = f.queue.RedriveAll(t.Context(), dlq.Redrive{}); err != nil {
				t.Error(err)
			}
		})
	}
	runs.Wait()
	done := 0
	for _, s := range sums {
		done += s.Done
	}
	require.Equal(t, 700, done)
	f.requireEachOnce(t, events)
}

func TestRedriveAllCanBeEndedAnywhereAndBegunAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	events := f.fill(t, 700)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	steps := 0
	first, err := f.queue.RedriveAll(ctx, dlq.Redrive{Progress: func(dlq.Redriven) {
		if steps++; steps == 2 {
			cancel()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 200, first.Done)
	limited, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{Limit: 150})
	require.NoError(t, err)
	require.Equal(t, 150, limited.Done)
	dry, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, 350, dry.Done)
	rest, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.NoError(t, err)
	require.Equal(t, dlq.Redriven{Done: 350}, rest)
	f.requireEachOnce(t, events)
}

// lossy loses the reply of one script call: it was carried out, and the caller gets an error.
type lossy struct{ once sync.Once }

func (*lossy) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*lossy) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (l *lossy) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if strings.HasPrefix(cmd.Name(), "eval") && err == nil {
			l.once.Do(func() {
				err = context.DeadlineExceeded
				cmd.SetErr(err)
			})
		}
		return err
	}
}

func TestRedriveWhoseReplyWasLostGoesOnWithTheRest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	events := f.fill(t, 350)
	rdb := redis.NewClient(f.rdb.Options())
	defer func() { require.NoError(t, rdb.Close()) }()
	rdb.AddHook(&lossy{})
	queue, err := dlq.Open(rdb, f.topic, "billing")
	require.NoError(t, err)
	first, err := queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Zero(t, first.Done)
	rest, err := queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.NoError(t, err)
	require.Equal(t, 250, rest.Done)
	f.requireEachOnce(t, events)
}

func TestLettersStayWhereTheRetryKeyHasAnotherType(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	events := f.fill(t, 30)
	require.NoError(t, f.rdb.Set(t.Context(), f.retryKey(1), "no stream", 0).Err())
	sum, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.True(t, redisx.IsWrongType(err), err)
	require.Equal(t, 10, sum.Done)
	var refs []dlq.Ref
	for l, err := range f.queue.All(t.Context(), dlq.Filter{}) {
		require.NoError(t, err)
		refs = append(refs, dlq.Ref{Partition: l.Partition, ID: l.ID})
	}
	require.Len(t, refs, 20)
	n, err := f.queue.Redrive(t.Context(), refs...)
	require.ErrorContains(t, err, "WRONGTYPE")
	require.Equal(t, 10, n, "those of other partitions go back")
	require.NoError(t, f.rdb.Del(t.Context(), f.retryKey(1)).Err())
	sum, err = f.queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.NoError(t, err)
	require.Equal(t, 10, sum.Done)
	f.requireEachOnce(t, events)
}

// die takes an event from the retry stream as a consumer, and makes it a letter again.
func (f *fixture) die(t testing.TB, p int, reason dlq.Reason, text string) {
	t.Helper()
	keys := pel.KeysOf(f.topic.StreamKey(p), "billing")
	_, err := pel.Ensure(t.Context(), f.rdb, keys, "0")
	require.NoError(t, err)
	reply, err := redisx.Raw(t.Context(), f.rdb, "xreadgroup", "group", "billing", "c2", "streams", keys.Retry, ">")
	require.NoError(t, err)
	require.NoError(t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
		carried := pel.CarriedBy(&en, true)
		carried.Attempts++
		carried.Deliveries++
		_, err := pel.NewSettler(f.rdb, keys, "c2").Settle(t.Context(), false,
			pel.Settlement{Entry: en, Outcome: pel.DeadLetter, Carried: carried, Reason: reason, Error: text})
		return err
	}))
}

func (f *fixture) only(t testing.TB) dlq.Letter {
	t.Helper()
	page, err := f.queue.List(t.Context(), dlq.Filter{}, "", 0)
	require.NoError(t, err)
	require.Len(t, page.Letters, 1)
	return page.Letters[0]
}

func refOf(l dlq.Letter) dlq.Ref { return dlq.Ref{Partition: l.Partition, ID: l.ID} }

func TestFirstDeathIsKeptAndTheLastOneUpdated(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.letter(t, 1, event("k", "order.placed"), dlq.ReasonAttempts, "card declined")
	first := f.only(t)
	require.Equal(t, dlq.Death{At: first.Died, Reason: dlq.ReasonAttempts, Error: "card declined"}, first.First)
	for round := 1; round <= 3; round++ {
		_, err := f.queue.Redrive(t.Context(), refOf(f.only(t)))
		require.NoError(t, err)
		f.die(t, 1, dlq.ReasonPermanent, "round "+strconv.Itoa(round))
		l := f.only(t)
		require.Equal(t, first.First, l.First)
		require.Equal(t, round, l.Redrives)
		require.Equal(t, dlq.ReasonPermanent, l.Reason)
		require.Equal(t, "round "+strconv.Itoa(round), l.Error)
		require.Equal(t, "c2", l.Consumer)
		require.False(t, l.Died.Before(first.Died))
		require.Equal(t, first.OriginID, l.OriginID)
		require.Equal(t, first.FirstSeen, l.FirstSeen)
		require.Equal(t, 1, l.Attempts)
		require.Equal(t, 1, l.Deliveries)
	}
	page, err := f.queue.List(t.Context(), dlq.Filter{MinRedrives: 4}, "", 0)
	require.NoError(t, err)
	require.Empty(t, page.Letters)
}

func TestLetterThatKeepsDyingDoesNotLoopUnseen(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 3)
	for range 2 {
		// Each dies again while the redrive goes on, and is not taken again by it.
		sum, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{MaxRedrives: 2, Progress: func(s dlq.Redriven) {
			f.die(t, s.Done-1, dlq.ReasonAttempts, "again")
		}})
		require.NoError(t, err)
		require.Equal(t, dlq.Redriven{Done: 3}, sum)
	}
	sum, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{MaxRedrives: 2})
	require.NoError(t, err)
	require.Equal(t, dlq.Redriven{Looping: 3}, sum)
	page, err := f.queue.List(t.Context(), dlq.Filter{MinRedrives: 2}, "", 0)
	require.NoError(t, err)
	require.Len(t, page.Letters, 3)
}

func TestAttemptsAreResetOrKept(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.letter(t, 0, event("k", "order.placed"), dlq.ReasonAttempts, "no")
	_, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{KeepAttempts: true})
	require.NoError(t, err)
	f.die(t, 0, dlq.ReasonAttempts, "no")
	l := f.only(t)
	require.Equal(t, 4, l.Attempts, "3 kept, and one more")
	require.Equal(t, 1, l.Deliveries, "or the limit of deliveries would end it unseen")
	_, err = f.queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.NoError(t, err)
	f.die(t, 0, dlq.ReasonAttempts, "no")
	require.Equal(t, 1, f.only(t).Attempts)
}

func TestRedriveIsPaced(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	events := f.fill(t, 60)
	steps, before := 0, time.Now()
	sum, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{PerSecond: 200, Progress: func(dlq.Redriven) { steps++ }})
	require.NoError(t, err)
	require.Equal(t, 60, sum.Done)
	require.Equal(t, 3, steps, "20 a call")
	require.GreaterOrEqual(t, time.Since(before), 200*time.Millisecond, "two pauses of 20 letters at 200 a second")
	f.requireEachOnce(t, events)

	f.fill(t, 3)
	var refs []dlq.Ref
	for l, err := range f.queue.All(t.Context(), dlq.Filter{}) {
		require.NoError(t, err)
		refs = append(refs, refOf(l))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sum, err = f.queue.RedriveAll(ctx, dlq.Redrive{PerSecond: 1, Letters: refs, Progress: func(dlq.Redriven) { cancel() }})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, sum.Done)
}

func TestEditedPayloadGoesBackWithItsProvenance(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	e := event("k", "order.placed")
	ref := f.letter(t, 2, e, dlq.ReasonUndecodable, "no")
	for name, c := range map[string]struct {
		edit dlq.Edit
		part string
	}{
		"no JSON":      {dlq.Edit{Data: []byte(`{"a":`)}, "undecodable"},
		"no msgpack":   {dlq.Edit{Data: []byte("\xdd\xff\xff\xff\xff"), ContentType: stream.ContentTypeMsgpack}, "undecodable"},
		"too large":    {dlq.Edit{Data: make([]byte, stream.MaxData+1)}, "1048576 are allowed"},
		"content type": {dlq.Edit{Data: []byte("1"), ContentType: strings.Repeat("x", 201)}, "content type has 201 bytes"},
		"name":         {dlq.Edit{Data: []byte("1"), By: strings.Repeat("x", 201)}, "By has 201 bytes"},
	} {
		require.ErrorContains(t, f.queue.RedriveEdited(t.Context(), ref, c.edit), c.part, name)
	}
	require.ErrorIs(t, f.queue.RedriveEdited(t.Context(), dlq.Ref{ID: stream.ID{Ms: 1}}, dlq.Edit{Data: []byte("1")}), dlq.ErrNotFound)

	require.NoError(t, f.queue.RedriveEdited(t.Context(), ref, dlq.Edit{Data: []byte(`{"a":2}`), By: "ada", KeepAttempts: true}))
	f.die(t, 2, dlq.ReasonAttempts, "no")
	l := f.only(t)
	digest := sha256.Sum256(e.Data)
	require.Equal(t, `{"a":2}`, string(l.Entry.Event.Data))
	require.Equal(t, "ada", l.Edit.By)
	require.Equal(t, hex.EncodeToString(digest[:]), l.Edit.Original)
	require.WithinDuration(t, time.Now(), l.Edit.At, time.Hour)
	require.Equal(t, 4, l.Attempts)
	require.Equal(t, dlq.ReasonUndecodable, l.First.Reason)
	e.Data = l.Entry.Event.Data
	require.Equal(t, e, l.Entry.Event, "nothing else has changed")

	require.NoError(t, f.queue.RedriveEdited(t.Context(), refOf(l), dlq.Edit{Data: []byte("\xff"), ContentType: "image/png"}))
	f.die(t, 2, dlq.ReasonAttempts, "no")
	l = f.only(t)
	require.Equal(t, "image/png", l.Entry.Event.ContentType)
	require.Equal(t, []byte("\xff"), l.Entry.Event.Data)
	require.Equal(t, hex.EncodeToString(digest[:]), l.Edit.Original, "of what was published")
	require.Empty(t, l.Edit.By)
	require.Equal(t, 1, l.Attempts)
}

func TestEditOfNothingIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: stream.KeyDead.Key(f.topic.StreamKey(0), "billing"), Values: []string{"sk-reason", "trimmed"}}).Err())
	require.ErrorIs(t, f.queue.RedriveEdited(t.Context(), refOf(f.only(t)), dlq.Edit{Data: []byte("1")}), dlq.ErrNoBody)
	sum, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.NoError(t, err)
	require.Equal(t, dlq.Redriven{NoBody: 1}, sum)
}

// counting counts calls of scripts.
type counting struct {
	lossy
	calls int
}

func (c *counting) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			c.calls++
		}
		return next(ctx, cmd)
	}
}

func TestCallsAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for range 5 {
		e := event("k", "order.placed")
		e.Data = make([]byte, 300<<10)
		f.letter(t, 0, e, dlq.ReasonAttempts, "no")
	}
	rdb := redis.NewClient(f.rdb.Options())
	defer func() { require.NoError(t, rdb.Close()) }()
	calls := &counting{}
	rdb.AddHook(calls)
	queue, err := dlq.Open(rdb, f.topic, "billing")
	require.NoError(t, err)
	sum, err := queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.NoError(t, err)
	require.Equal(t, 5, sum.Done)
	require.Equal(t, 5, calls.calls)
}

// An entry of more fields than Lua can pass on is packed into one field of its letter.
func TestEntryOfVeryManyFieldsSurvivesItsDeaths(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	keys := pel.KeysOf(f.topic.StreamKey(0), "billing")
	_, err := pel.Ensure(t.Context(), f.rdb, keys, "0")
	require.NoError(t, err)
	var fields []string
	for i := range 3500 {
		fields = append(fields, "f"+strconv.Itoa(i), "v\xff"+strconv.Itoa(i))
	}
	require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: keys.Stream, Values: fields}).Err())
	reply, err := redisx.Raw(t.Context(), f.rdb, "xreadgroup", "group", "billing", "c1", "streams", keys.Stream, ">")
	require.NoError(t, err)
	require.NoError(t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
		_, err := pel.NewSettler(f.rdb, keys, "c1").Settle(t.Context(), false,
			pel.Settlement{Entry: en, Outcome: pel.DeadLetter, Carried: pel.CarriedBy(&en, false), Reason: dlq.ReasonUndecodable, Error: "fields"})
		return err
	}))
	for range 2 {
		l := f.only(t)
		require.Equal(t, fields, l.Fields())
		sum, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{})
		require.NoError(t, err)
		require.Equal(t, dlq.Redriven{Done: 1}, sum)
		f.die(t, 0, dlq.ReasonUndecodable, "fields")
	}
	require.Equal(t, fields, func() []string { l := f.only(t); return l.Fields() }())
}

func TestHostilePackedFieldIsNoFields(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, packed := range []string{"\xdd\xff\xff\xff\xff", "\x93\xa1a", "\x92\xa1a\xdb\xff\xff\xff\xff", "x", "\x91\xa1a"} {
		require.NoError(t, f.rdb.Del(t.Context(), stream.KeyDead.Key(f.topic.StreamKey(0), "billing")).Err())
		require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: stream.KeyDead.Key(f.topic.StreamKey(0), "billing"), Values: []string{"sk-packed", packed}}).Err())
		l := f.only(t)
		require.Empty(t, l.Fields())
	}
}

func TestBadRedrivesAndFiltersNameEveryFault(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{
		Limit: -1, PerSecond: -2, MaxRedrives: -3,
		Filter: dlq.Filter{Reasons: []dlq.Reason{"sad"}, Since: time.Now(), Until: time.Now().Add(-time.Hour), MinRedrives: -4},
	})
	for _, part := range []string{"Limit -1", "PerSecond -2", "MaxRedrives -3", `reason "sad"`, "lies before Since", "MinRedrives -4"} {
		require.ErrorContains(t, err, part)
	}
	_, err = f.queue.List(t.Context(), dlq.Filter{Reasons: []dlq.Reason{"sad"}}, "", 0)
	require.ErrorContains(t, err, `reason "sad"`)
	for _, err := range f.queue.All(t.Context(), dlq.Filter{MinRedrives: -1}) {
		require.ErrorContains(t, err, "MinRedrives")
	}
}
