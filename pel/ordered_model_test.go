package pel_test

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// entryState is what the model knows of an entry of an ordered group.
type entryState struct {
	place   pel.Place
	entry   stream.Entry // once it was delivered
	at      where        // unread, pending, dead, done, or lost
	counted int          // deliveries
	note    pel.Note
	trimmed bool
	aged    bool // idle for an hour
}

// tenancy is one run of the model beside a real partition.
type tenancy struct {
	model
	lessors map[string]*pel.Lessor

	owner      string           // as Redis has it
	expired    bool             // its lease ran out
	generation int64            // of the latest lease
	knows      map[string]int64 // the generation that each consumer believes in
	lanes      [2][]*entryState // the topic's stream and the retry stream, in order
	bodies     int              // letters with a body
	remains    int              // letters without
}

// TestOnlyTheOwnerActsAndNothingOfAPartitionIsLostOrReordered runs histories of leases that
// run out, are given up and taken over by consumers that may be mistaken, deliveries,
// settlements, notes, decisions, trims, sweeps and redrives.
func TestOnlyTheOwnerActsAndNothingOfAPartitionIsLostOrReordered(t *testing.T) {
	checkModel(t, pel.Limits{MinIdle: pel.MinMinIdle}, func(m model) {
		h := &tenancy{model: m, lessors: map[string]*pel.Lessor{}, knows: map[string]int64{}}
		for _, name := range []string{"a", "b"} {
			h.lessors[name] = pel.NewLessor(h.rdb, h.keys, name, time.Hour)
		}
		m.t.Repeat(map[string]func(*rapid.T){
			"publish":  func(*rapid.T) { h.publish() },
			"acquire":  h.acquire,
			"expire":   func(*rapid.T) { h.expire() },
			"give up":  h.giveUp,
			"read":     h.read,
			"takeover": h.takeOver,
			"count":    h.count,
			"ack":      h.ack,
			"hold":     h.hold,
			"decide":   h.decide,
			"dead":     h.deadLetter,
			"trim":     h.trim,
			"sweep":    func(*rapid.T) { h.sweep() },
			"redrive":  h.redrive,
			"":         func(*rapid.T) { h.check() },
		})
	})
}

func (h *tenancy) publish() {
	_, id := h.add()
	h.lanes[0] = append(h.lanes[0], &entryState{place: pel.Place{ID: id}, at: unread})
}

// someone draws a consumer, and tells whether it holds the lease with what it knows.
func (h *tenancy) someone(rt *rapid.T) (name string, l *pel.Lessor, holds bool) {
	name = rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "consumer")
	return name, h.lessors[name], h.owner == name && h.knows[name] == h.generation
}

// some draws an entry that was delivered.
func (h *tenancy) some(rt *rapid.T) (*entryState, string) {
	var all []*entryState
	for _, lane := range h.lanes {
		for _, e := range lane {
			if e.at != unread {
				all = append(all, e)
			}
		}
	}
	if len(all) == 0 {
		rt.Skip()
	}
	e := rapid.SampledFrom(all).Draw(rt, "entry")
	return e, e.entry.Stream
}

// expect requires that an owner's call succeeded, and everybody else's was refused.
func (h *tenancy) expect(holds bool, err error) {
	if holds {
		require.NoError(h.t, err)
	} else {
		require.ErrorIs(h.t, err, pel.ErrLeaseLost)
	}
}

func (h *tenancy) acquire(rt *rapid.T) {
	name, l, holds := h.someone(rt)
	grant, err := l.Acquire(h.ctx, h.knows[name])
	if h.owner != "" && h.owner != name && !h.expired {
		require.ErrorIs(h.t, err, pel.ErrLeaseLost)
		return
	}
	require.NoError(h.t, err)
	if holds {
		require.Equal(h.t, h.generation, grant.Generation, "a renewal is no new lease")
	} else {
		require.Greater(h.t, grant.Generation, h.generation)
	}
	h.owner, h.expired, h.generation, h.knows[name] = name, false, grant.Generation, grant.Generation
}

// expire lets the lease run out; its owner still holds it until somebody else takes it.
func (h *tenancy) expire() {
	if h.owner != "" {
		require.NoError(h.t, h.rdb.HSet(h.ctx, h.keys.Hash, "lease-until", 1).Err())
		h.expired = true
	}
}

func (h *tenancy) giveUp(rt *rapid.T) {
	name, l, holds := h.someone(rt)
	require.NoError(h.t, l.GiveUp(h.ctx, h.knows[name]))
	if holds {
		h.owner = ""
	}
}

func (h *tenancy) read(rt *rapid.T) {
	name, _, holds := h.someone(rt)
	count := rapid.IntRange(1, 3).Draw(rt, "count")
	reply, lost, err := pel.ReadLeased(h.ctx, h.rdb, name, count, []pel.Leased{{Keys: h.keys, Generation: h.knows[name]}})
	require.Equal(h.t, holds, len(lost) == 0)
	if !errors.Is(err, redis.Nil) {
		require.NoError(h.t, err)
	}
	var want []*entryState
	for _, lane := range h.lanes {
		n := 0
		for _, e := range lane {
			if holds && e.at == unread && n < count {
				want = append(want, e)
				n++
			}
		}
	}
	var got []stream.Entry
	if err == nil {
		require.NoError(h.t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error { got = append(got, en); return nil }))
	}
	require.Len(h.t, got, len(want))
	for i, e := range want {
		require.Equal(h.t, e.place.ID, got[i].ID, "the order")
		e.entry, e.at, e.counted = got[i], pending, 1
	}
}

// takeOver takes everything that is pending, in both streams.
func (h *tenancy) takeOver(rt *rapid.T) {
	name, l, holds := h.someone(rt)
	for i, key := range []string{h.keys.Stream, h.keys.Retry} {
		entries, trimmed, next, err := l.TakeOver(h.ctx, h.knows[name], key, "-")
		h.expect(holds, err)
		if !holds {
			continue
		}
		require.Empty(h.t, next)
		for _, e := range h.lanes[i] {
			switch {
			case e.at != pending:
			case e.trimmed:
				require.NotEmpty(h.t, trimmed)
				require.Equal(h.t, e.place.ID, trimmed[0].ID)
				trimmed = trimmed[1:]
				h.lose(e)
			default:
				require.NotEmpty(h.t, entries)
				require.Equal(h.t, e.place.ID, entries[0].Entry.ID, "the order")
				require.Equal(h.t, e.counted, entries[0].Carried.Deliveries)
				require.Equal(h.t, e.note.State, entries[0].Note.State)
				require.Equal(h.t, e.note.Reason, entries[0].Note.Reason)
				entries = entries[1:]
				e.counted, e.aged = max(e.counted, 1), false
			}
		}
		require.Empty(h.t, entries)
		require.Empty(h.t, trimmed)
	}
}

func (h *tenancy) lose(e *entryState) {
	e.at, e.note = lost, pel.Note{}
	h.remains++
}

func (h *tenancy) count(rt *rapid.T) {
	name, l, holds := h.someone(rt)
	e, key := h.some(rt)
	n := rapid.IntRange(0, 5).Draw(rt, "deliveries")
	h.expect(holds, l.Count(h.ctx, h.knows[name], key, n, e.place.ID))
	if holds && e.at == pending && !e.trimmed {
		e.counted, e.aged = n, false
	}
}

func (h *tenancy) ack(rt *rapid.T) {
	name, l, holds := h.someone(rt)
	e, key := h.some(rt)
	var err error
	if e.note.State != "" || rapid.Bool().Draw(rt, "noted") {
		err = l.AckHeld(h.ctx, h.knows[name], &e.entry)
	} else {
		err = l.Ack(h.ctx, h.knows[name], key, []stream.ID{e.place.ID})
	}
	h.expect(holds, err)
	if holds && e.at == pending {
		e.at, e.note = done, pel.Note{}
	}
}

func (h *tenancy) hold(rt *rapid.T) {
	name, l, holds := h.someone(rt)
	e, _ := h.some(rt)
	note := pel.Note{State: pel.NoteWaiting, Attempts: e.note.Attempts + 1, First: time.UnixMilli(1), Error: "no money"}
	if rapid.Bool().Draw(rt, "park") {
		note.State, note.Reason = pel.NoteParked, dlq.ReasonAttempts
	}
	h.expect(holds, l.Hold(h.ctx, h.knows[name], &e.entry, note, time.Minute))
	if holds && e.at == pending {
		e.note = note
	}
}

func (h *tenancy) decide(rt *rapid.T) {
	e, _ := h.some(rt)
	decision := rapid.SampledFrom([]pel.NoteState{pel.NoteRetry, pel.NoteDead}).Draw(rt, "decision")
	err := pel.Decide(h.ctx, h.rdb, h.keys, e.place, decision)
	if e.note.State != pel.NoteParked {
		require.ErrorIs(h.t, err, pel.ErrNotParked)
		return
	}
	require.NoError(h.t, err)
	e.note.State = decision
}

func (h *tenancy) deadLetter(rt *rapid.T) {
	name, l, holds := h.someone(rt)
	e, key := h.some(rt)
	if e.at != pending && e.trimmed {
		rt.Skip() // a consumer settles what it has in hand, once
	}
	status, err := l.DeadLetter(h.ctx, h.knows[name], rapid.Bool().Draw(rt, "repeated"), pel.Settlement{
		Entry: e.entry, Carried: pel.CarriedBy(&e.entry, key == h.keys.Retry), Reason: dlq.ReasonPermanent,
	})
	h.expect(holds, err)
	switch {
	case !holds:
	case e.at == pending:
		require.Equal(h.t, pel.Settled, status)
		e.at, e.note = dead, pel.Note{}
		h.bodies++
	default:
		require.Equal(h.t, pel.SettledBefore, status)
	}
}

// trim takes a pending entry from the topic's stream, as a foreign XTRIM would, after its
// consumer was silent or not.
func (h *tenancy) trim(rt *rapid.T) {
	e, key := h.some(rt)
	if e.at != pending || e.trimmed || key != h.keys.Stream {
		rt.Skip()
	}
	if e.aged = rapid.Bool().Draw(rt, "silent"); e.aged {
		pending, err := h.rdb.XPendingExt(h.ctx, &redis.XPendingExtArgs{Stream: key, Group: h.keys.Group, Start: e.place.ID.String(), End: e.place.ID.String(), Count: 1}).Result()
		require.NoError(h.t, err)
		require.NoError(h.t, h.rdb.Do(h.ctx, "xclaim", key, h.keys.Group, pending[0].Consumer, 0, e.place.ID.String(), "idle", 3_600_000, "justid").Err())
	}
	require.NoError(h.t, h.rdb.XDel(h.ctx, key, e.place.ID.String()).Err())
	e.trimmed = true
}

func (h *tenancy) sweep() {
	var taken []stream.ID
	require.NoError(h.t, h.reclaim.SweepOrdered(h.ctx, h.keys, func(r pel.Reclaimed) { taken = append(taken, r.ID) }))
	leased := h.owner != "" && !h.expired
	for _, e := range h.lanes[0] {
		if e.at != pending || !e.trimmed || leased {
			continue
		}
		if len(taken) > 0 && e.place.ID == taken[0] { // a history may take longer than MinIdle
			taken = taken[1:]
			h.lose(e)
		} else {
			require.False(h.t, e.aged, "nobody tells that it was trimmed")
		}
	}
	require.Empty(h.t, taken, "the daemon took what is the next owner's")
}

func (h *tenancy) redrive(rt *rapid.T) {
	if h.bodies == 0 {
		rt.Skip()
	}
	_, err := h.letters.RedriveAll(h.ctx, dlq.Redrive{MaxRedrives: 1000})
	require.NoError(h.t, err)
	messages, err := h.rdb.XRange(h.ctx, h.keys.Retry, "-", "+").Result()
	require.NoError(h.t, err)
	for _, m := range messages[len(messages)-h.bodies:] {
		id, err := stream.ParseID(m.ID)
		require.NoError(h.t, err)
		h.lanes[1] = append(h.lanes[1], &entryState{place: pel.Place{ID: id, Retry: true}, at: unread})
	}
	for _, lane := range h.lanes {
		for _, e := range lane {
			if e.at == dead {
				e.at = done // it is another entry now
			}
		}
	}
	h.bodies = 0
}

// check compares the model with Redis.
func (h *tenancy) check() {
	notes, err := pel.Noted(h.ctx, h.rdb, h.keys)
	require.NoError(h.t, err)
	retries := 0
	for i, key := range []string{h.keys.Stream, h.keys.Retry} {
		list, err := h.rdb.XPendingExt(h.ctx, &redis.XPendingExtArgs{Stream: key, Group: h.keys.Group, Start: "-", End: "+", Count: 10_000}).Result()
		require.NoError(h.t, err)
		for _, e := range h.lanes[i] {
			note := notes[e.place]
			delete(notes, e.place)
			require.Equal(h.t, e.note.State, note.State)
			require.Equal(h.t, e.note.Attempts, note.Attempts)
			if i == 1 && (e.at == unread || e.at == pending) {
				retries++
			}
			if e.at != pending {
				continue
			}
			require.NotEmpty(h.t, list)
			require.Equal(h.t, e.place.ID.String(), list[0].ID)
			require.EqualValues(h.t, e.counted, list[0].RetryCount)
			list = list[1:]
		}
		require.Empty(h.t, list)
	}
	require.Empty(h.t, notes)
	require.EqualValues(h.t, h.bodies+h.remains, h.rdb.XLen(h.ctx, h.keys.Dead).Val())
	require.EqualValues(h.t, retries, h.rdb.XLen(h.ctx, h.keys.Retry).Val())
}
