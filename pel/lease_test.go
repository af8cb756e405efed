package pel_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// say adds an event without delivering it.
func (f *fixture) say(key string) stream.ID {
	f.t.Helper()
	e := stream.NewEvent("order.placed", key, stream.ContentTypeJSON, []byte(`{}`))
	id, err := f.rdb.Do(f.t.Context(), e.AppendFields([]any{"xadd", f.keys.Stream, "*"})...).Text()
	require.NoError(f.t, err)
	parsed, err := stream.ParseID(id)
	require.NoError(f.t, err)
	return parsed
}

func (f *fixture) lessor(consumer string, ttl time.Duration) *pel.Lessor {
	return pel.NewLessor(f.rdb, f.keys, consumer, ttl)
}

// take takes delivery of everything as the owner does, and returns the IDs.
func (f *fixture) take(consumer string, generation int64) (ids []stream.ID, lost bool) {
	f.t.Helper()
	reply, places, err := pel.ReadLeased(f.t.Context(), f.rdb, consumer, 1000, []pel.Leased{{Keys: f.keys, Generation: generation}})
	if errors.Is(err, redis.Nil) {
		return nil, len(places) > 0
	}
	require.NoError(f.t, err)
	require.NoError(f.t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
		ids = append(ids, en.ID)
		return nil
	}))
	return ids, len(places) > 0
}

func (f *fixture) group() redis.XInfoGroup {
	f.t.Helper()
	groups, err := f.rdb.XInfoGroups(f.t.Context(), f.keys.Stream).Result()
	require.NoError(f.t, err)
	require.Len(f.t, groups, 1)
	return groups[0]
}

func (f *fixture) entry(id stream.ID) stream.Entry {
	f.t.Helper()
	reply, err := redisx.Raw(f.t.Context(), f.rdb, "xread", "count", 1000, "streams", f.keys.Stream, "0")
	require.NoError(f.t, err)
	var entry stream.Entry
	require.NoError(f.t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
		if en.ID == id {
			entry = en
		}
		return nil
	}))
	require.Equal(f.t, id, entry.ID)
	return entry
}

func TestOnlyTheOwnerOfTheLeaseActs(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	first := f.say("k")
	a, b := f.lessor("a", time.Minute), f.lessor("b", time.Minute)
	held, err := a.Acquire(ctx, 0)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), time.UnixMilli(held.Generation), time.Minute, "a generation is the server's time at least")
	require.Zero(t, held.Main)
	_, err = b.Acquire(ctx, 0)
	require.ErrorIs(t, err, pel.ErrLeaseLost)
	renewed, err := a.Acquire(ctx, held.Generation)
	require.NoError(t, err)
	require.Equal(t, held.Generation, renewed.Generation, "renewing changes no generation")

	ids, lost := f.take("a", held.Generation)
	require.False(t, lost)
	require.Equal(t, []stream.ID{first}, ids)
	second := f.say("k")

	// Another consumer, and another generation, change nothing.
	en := f.entry(first)
	for name, l := range map[string]*pel.Lessor{"b": b, "a": a} {
		generation := held.Generation
		if l == a {
			generation--
		}
		ids, lost = f.take(name, generation)
		require.True(t, lost, name)
		require.Empty(t, ids, name)
		require.ErrorIs(t, l.Count(ctx, generation, f.keys.Stream, 7, first), pel.ErrLeaseLost, name)
		require.ErrorIs(t, l.Hold(ctx, generation, &en, pel.Note{State: pel.NoteWaiting}, 0), pel.ErrLeaseLost, name)
		require.ErrorIs(t, l.AckHeld(ctx, generation, &en), pel.ErrLeaseLost, name)
		_, err = l.DeadLetter(ctx, generation, false, pel.Settlement{Entry: en})
		require.ErrorIs(t, err, pel.ErrLeaseLost, name)
		_, _, _, err = l.TakeOver(ctx, generation, f.keys.Stream, "-")
		require.ErrorIs(t, err, pel.ErrLeaseLost, name)
		require.ErrorIs(t, l.Ack(ctx, generation, f.keys.Stream, []stream.ID{first}), pel.ErrLeaseLost, name)
		require.NoError(t, l.GiveUp(ctx, generation))
	}
	require.EqualValues(t, 1, f.pending(f.keys.Stream))
	require.Zero(t, f.length(f.keys.Dead))
	require.Zero(t, f.rdb.Exists(ctx, f.keys.Attempts).Val())

	ids, lost = f.take("a", held.Generation)
	require.False(t, lost)
	require.Equal(t, []stream.ID{second}, ids)
	require.NoError(t, a.Ack(ctx, held.Generation, f.keys.Stream, []stream.ID{first, second}))
	g := f.group()
	require.Zero(t, g.Pending)
	require.Zero(t, g.Lag)

	require.NoError(t, a.GiveUp(ctx, held.Generation))
	next, err := b.Acquire(ctx, 0)
	require.NoError(t, err)
	require.Greater(t, next.Generation, held.Generation)
	require.Equal(t, second, next.Main)
}

// meddler does something between the look at the leases and the read.
type meddler struct{ do func() }

func (m *meddler) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (m *meddler) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (m *meddler) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() == "multi" && m.do != nil {
			do := m.do
			m.do = nil
			do()
		}
		return next(ctx, cmds)
	}
}

func TestOwnerThatIsPausedBetweenLookAndReadTakesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.say("k")
	a, b := f.lessor("a", 30*time.Millisecond), f.lessor("b", time.Minute)
	old, err := a.Acquire(t.Context(), 0)
	require.NoError(t, err)
	paused := testenv.Redis(t)
	m := &meddler{do: func() {
		require.Eventually(t, func() bool { _, err := b.Acquire(t.Context(), 0); return err == nil }, 30*time.Second, 5*time.Millisecond)
	}}
	paused.AddHook(m)
	_, lost, err := pel.ReadLeased(t.Context(), paused, "a", 100, []pel.Leased{{Keys: f.keys, Generation: old.Generation}})
	require.ErrorIs(t, err, redis.Nil)
	require.Equal(t, []int{0}, lost)
	require.Nil(t, m.do, "it was not paused")
	require.Zero(t, f.pending(f.keys.Stream))

	// What only touches the hash costs another look.
	now, err := b.Acquire(t.Context(), 0)
	require.NoError(t, err)
	m.do = func() { require.NoError(t, pel.Checkpoint(t.Context(), f.rdb, f.keys)) }
	_, lost, err = pel.ReadLeased(t.Context(), paused, "b", 100, []pel.Leased{{Keys: f.keys, Generation: now.Generation}})
	require.NoError(t, err)
	require.Empty(t, lost)
	require.EqualValues(t, 1, f.pending(f.keys.Stream))
}

func TestLeaseThatRanOutIsTakenOverAndItsOwnerFenced(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	id := f.say("k")
	a, b := f.lessor("a", 50*time.Millisecond), f.lessor("b", time.Minute)
	old, err := a.Acquire(t.Context(), 0)
	require.NoError(t, err)
	ids, _ := f.take("a", old.Generation)
	require.Equal(t, []stream.ID{id}, ids)
	var won pel.Grant
	require.Eventually(t, func() bool { won, err = b.Acquire(t.Context(), 0); return err == nil }, 30*time.Second, 5*time.Millisecond)
	require.Greater(t, won.Generation, old.Generation)
	_, err = a.Acquire(t.Context(), old.Generation)
	require.ErrorIs(t, err, pel.ErrLeaseLost)
	require.ErrorIs(t, a.Ack(t.Context(), old.Generation, f.keys.Stream, []stream.ID{id}), pel.ErrLeaseLost)
	require.EqualValues(t, 1, f.pending(f.keys.Stream))

	// A consumer that lost its memory of the lease, by a failover, does not get its old generation.
	again, err := b.Acquire(t.Context(), won.Generation-1)
	require.NoError(t, err)
	require.Greater(t, again.Generation, won.Generation)
}

func TestTakeOverBringsWhatWasPendingWithItsCountsAndNotes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	ids := []stream.ID{f.say("begun"), f.say("held"), f.say("trimmed"), f.say("parked"), f.say("released")}
	a, b := f.lessor("a", time.Minute), f.lessor("b", time.Minute)
	g, err := a.Acquire(ctx, 0)
	require.NoError(t, err)
	f.take("a", g.Generation)
	held, parked := f.entry(ids[1]), f.entry(ids[3])
	firstSeen := time.UnixMilli(time.Now().Add(-time.Hour).UnixMilli()).UTC()
	require.NoError(t, a.Hold(ctx, g.Generation, &held, pel.Note{State: pel.NoteWaiting, Attempts: 3, First: firstSeen, Error: "no  money, no\nhoney"}, time.Hour))
	require.NoError(t, a.Hold(ctx, g.Generation, &parked, pel.Note{State: pel.NoteParked, Reason: dlq.ReasonPermanent, Attempts: 1, First: firstSeen, Error: "x"}, 0))
	require.NoError(t, a.Count(ctx, g.Generation, f.keys.Stream, 3, ids[1]))
	require.NoError(t, a.Count(ctx, g.Generation, f.keys.Stream, 0, ids[4]))
	require.NoError(t, f.rdb.XDel(ctx, f.keys.Stream, ids[2].String()).Err())
	require.NoError(t, a.GiveUp(ctx, g.Generation))

	g, err = b.Acquire(ctx, 0)
	require.NoError(t, err)
	entries, trimmed, next, err := b.TakeOver(ctx, g.Generation, f.keys.Stream, "-")
	require.NoError(t, err)
	require.Empty(t, next)
	require.Len(t, trimmed, 1)
	require.Equal(t, pel.Reclaimed{Stream: f.keys.Stream, ID: ids[2], Group: "billing", Consumer: "a", Deliveries: 1, Fate: pel.FateTrimmed}, trimmed[0])
	require.EqualValues(t, 1, f.length(f.keys.Dead), "what was trimmed while it was pending is told")
	require.Len(t, entries, 4)
	for i, want := range []struct {
		key        string
		deliveries int
		attempts   int
		state      pel.NoteState
	}{{"begun", 1, 0, ""}, {"held", 3, 3, pel.NoteWaiting}, {"parked", 1, 1, pel.NoteParked}, {"released", 0, 0, ""}} {
		got := entries[i]
		require.Equal(t, want.key, got.Entry.Event.Key)
		require.Equal(t, want.deliveries, got.Carried.Deliveries, want.key)
		require.Equal(t, want.attempts, got.Carried.Attempts, want.key)
		require.Equal(t, want.state, got.Note.State, want.key)
	}
	require.Equal(t, "no  money, no\nhoney", entries[1].Note.Error)
	require.Equal(t, firstSeen, entries[1].Carried.First)
	require.InDelta(t, time.Hour, entries[1].Due, float64(time.Minute))
	require.Equal(t, dlq.ReasonPermanent, entries[2].Note.Reason)
	consumers, err := f.rdb.XInfoConsumers(ctx, f.keys.Stream, "billing").Result()
	require.NoError(t, err)
	require.Len(t, consumers, 1, "only the owner has a name")
	require.Equal(t, "b", consumers[0].Name)

	require.NoError(t, b.AckHeld(ctx, g.Generation, &held))
	status, err := b.DeadLetter(ctx, g.Generation, false, pel.Settlement{Entry: parked, Carried: pel.CarriedBy(&parked, false), Reason: dlq.ReasonPermanent})
	require.NoError(t, err)
	require.Equal(t, pel.Settled, status)
	status, err = b.DeadLetter(ctx, g.Generation, true, pel.Settlement{Entry: parked, Carried: pel.CarriedBy(&parked, false), Reason: dlq.ReasonPermanent})
	require.NoError(t, err)
	require.Equal(t, pel.SettledBefore, status)
	require.EqualValues(t, 2, f.length(f.keys.Dead))
	require.EqualValues(t, 2, f.pending(f.keys.Stream))
	require.Zero(t, f.rdb.Exists(ctx, f.keys.Attempts).Val(), "what is settled leaves no note")
}

func TestTakeOverOfALongListComesInPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	a, b := f.lessor("a", time.Minute), f.lessor("b", time.Minute)
	g, err := a.Acquire(t.Context(), 0)
	require.NoError(t, err)
	ids := make([]stream.ID, 250)
	for i := range ids {
		ids[i] = f.say("k")
	}
	f.take("a", g.Generation)
	require.NoError(t, a.GiveUp(t.Context(), g.Generation))
	g, err = b.Acquire(t.Context(), 0)
	require.NoError(t, err)
	var got []stream.ID
	pages := 0
	for cursor := "-"; cursor != ""; pages++ {
		entries, _, next, err := b.TakeOver(t.Context(), g.Generation, f.keys.Stream, cursor)
		require.NoError(t, err)
		for _, e := range entries {
			got = append(got, e.Entry.ID)
		}
		cursor = next
	}
	require.Equal(t, ids, got)
	require.Equal(t, 3, pages)
}

func TestDaemonTouchesOnlyWhatWasTrimmedOfAnOrderedGroupThatNobodyLeases(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	gone := f.say("k")
	f.say("k")
	a := f.lessor("a", 700*time.Millisecond)
	g, err := a.Acquire(ctx, 0)
	require.NoError(t, err)
	f.take("a", g.Generation)
	require.NoError(t, f.rdb.XDel(ctx, f.keys.Stream, gone.String()).Err())
	reclaimer, err := pel.NewReclaimer(f.rdb, pel.Limits{MinIdle: pel.MinMinIdle}, f.reached(pel.MinMinIdle))
	require.NoError(t, err)
	var taken []pel.Reclaimed
	sweep := func() {
		require.NoError(t, reclaimer.SweepOrdered(ctx, f.keys, func(r pel.Reclaimed) { taken = append(taken, r) }))
	}
	keep := time.Now()
	for time.Since(keep) < 2*pel.MinMinIdle { // the owner has the last copy, and may settle it
		_, err = a.Acquire(ctx, g.Generation)
		require.NoError(t, err)
		sweep()
	}
	require.Empty(t, taken)
	require.Eventually(t, func() bool { sweep(); return len(taken) > 0 }, 30*time.Second, 20*time.Millisecond)
	require.Len(t, taken, 1)
	require.Equal(t, gone, taken[0].ID)
	require.Equal(t, pel.FateTrimmed, taken[0].Fate)
	require.EqualValues(t, 1, f.pending(f.keys.Stream))
	require.Zero(t, f.length(f.keys.Retry))
}

func TestTenuresTellWhoOwnsAndWhoLives(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	a := f.lessor("a", time.Minute)
	g, err := a.Acquire(t.Context(), 0)
	require.NoError(t, err)
	_, err = pel.NewSettler(f.rdb, f.keys, "b").Extend(t.Context(), f.keys.Stream, nil)
	require.NoError(t, err)
	tenures, err := pel.Tenures(t.Context(), f.rdb, f.keys, pel.KeysOf(f.keys.Stream, "nobody"))
	require.NoError(t, err)
	require.Len(t, tenures, 2)
	require.True(t, tenures[0].Held())
	require.Equal(t, "a", tenures[0].Owner)
	require.Equal(t, g.Generation, tenures[0].Generation)
	require.InDelta(t, time.Minute, tenures[0].Left, float64(30*time.Second))
	require.Contains(t, tenures[0].Members, "b")
	require.False(t, tenures[1].Held())
	require.Empty(t, tenures[1].Members)

	// A member that never read leaves too.
	require.NoError(t, pel.Leave(t.Context(), f.rdb, f.keys, "b"))
	tenures, err = pel.Tenures(t.Context(), f.rdb, f.keys)
	require.NoError(t, err)
	require.Empty(t, tenures[0].Members)
}
