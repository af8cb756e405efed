package pel_test

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// where is where the model says that an event is.
type where string

const (
	unread  where = "unread"
	pending where = "pending"
	due     where = "due"
	retry   where = "retry"
	dead    where = "dead"
	done    where = "done"
)

// inHand is an entry that a consumer once read. It may have lost it since.
type inHand struct {
	consumer string
	entry    stream.Entry
	carried  pel.Carried
}

// history is one run of the model beside a real group.
type history struct {
	t       *rapid.T
	ctx     context.Context
	rdb     *redis.Client
	keys    pel.Keys
	reclaim *pel.Reclaimer
	at      map[string]where  // by event
	owner   map[string]inHand // what is pending, by event
	hands   []inHand          // everything that was ever read
	aged    map[string]bool   // pending events whose consumer is silent
}

const maxDeliveries = 3

// TestEveryEventIsInExactlyOnePlace runs histories of reads, settlements, deaths and sweeps:
// 100 of them, more with -rapid.checks.
func TestEveryEventIsInExactlyOnePlace(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	namespace := testenv.Namespace(t)
	reach := pel.NewReach(rdb, time.Hour)
	require.NoError(t, reach.Look(t.Context(), namespace))
	require.Eventually(t, func() bool { return reach.Since(namespace) > pel.MinMinIdle }, 30*time.Second, 10*time.Millisecond)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		h := &history{
			t: rt, ctx: t.Context(), rdb: rdb, keys: pel.KeysOf(namespace, "g"+stream.ID{Ms: uint64(n)}.String()),
			at: map[string]where{}, owner: map[string]inHand{}, aged: map[string]bool{},
		}
		require.NoError(rt, rdb.Del(h.ctx, namespace).Err())
		_, err := pel.Ensure(h.ctx, rdb, h.keys, "0")
		require.NoError(rt, err)
		h.reclaim, err = pel.NewReclaimer(rdb, pel.Limits{MinIdle: pel.MinMinIdle, MaxDeliveries: maxDeliveries}, reach)
		require.NoError(rt, err)
		rt.Repeat(map[string]func(*rapid.T){
			"publish": func(*rapid.T) { h.publish() },
			"read":    func(rt *rapid.T) { h.read(rt, h.keys.Stream) },
			"retry":   func(rt *rapid.T) { h.read(rt, h.keys.Retry) },
			"settle":  h.settle,
			"die":     h.die,
			"sweep":   func(*rapid.T) { h.sweep() },
			"due":     func(*rapid.T) { h.moveDue() },
			"":        func(*rapid.T) { h.check() },
		})
	})
}

func (h *history) publish() {
	e := stream.NewEvent("order.placed", "k", stream.ContentTypeJSON, []byte(`{}`))
	require.NoError(h.t, h.rdb.Do(h.ctx, e.AppendFields([]any{"xadd", h.keys.Stream, "*"})...).Err())
	h.at[e.ID] = unread
}

func (h *history) read(rt *rapid.T, key string) {
	consumer := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "consumer")
	reply, err := redisx.Raw(h.ctx, h.rdb, "xreadgroup", "group", h.keys.Group, consumer, "count", 1, "streams", key, ">")
	if redisx.IsNil(err) {
		return
	}
	require.NoError(h.t, err)
	require.NoError(h.t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
		want := unread
		if key == h.keys.Retry {
			want = retry
		}
		require.Equal(h.t, want, h.at[en.Event.ID])
		carried := pel.CarriedBy(&en, key == h.keys.Retry)
		carried.Deliveries++
		hand := inHand{consumer, en, carried}
		h.at[en.Event.ID], h.owner[en.Event.ID] = pending, hand
		h.hands = append(h.hands, hand)
		return nil
	}))
}

// settle settles something that was ever read, however it was; only its owner may.
func (h *history) settle(rt *rapid.T) {
	if len(h.hands) == 0 {
		rt.Skip()
	}
	hand := rapid.SampledFrom(h.hands).Draw(rt, "hand")
	outcome := rapid.SampledFrom([]pel.Outcome{"ack", pel.Retry, pel.DeadLetter, pel.Release}).Draw(rt, "outcome")
	repeated := rapid.Bool().Draw(rt, "repeated")
	id := hand.entry.Event.ID
	mine := h.at[id] == pending && h.owner[id].entry.ID == hand.entry.ID && h.owner[id].entry.Stream == hand.entry.Stream
	settler := pel.NewSettler(h.rdb, h.keys, hand.consumer)
	if outcome == "ack" {
		if hand.entry.Stream == h.keys.Retry {
			_, err := settler.AckRetries(h.ctx, []stream.ID{hand.entry.ID})
			require.NoError(h.t, err)
		} else {
			cmd, reply := settler.AckCmd(h.ctx, []stream.ID{hand.entry.ID})
			_ = h.rdb.Process(h.ctx, cmd)
			require.NoError(h.t, reply.Err())
		}
		if mine {
			h.move(id, done)
		}
		return
	}
	st := pel.Settlement{Entry: hand.entry, Outcome: outcome, Carried: hand.carried, Reason: dlq.ReasonPermanent}
	statuses, err := settler.Settle(h.ctx, repeated, st)
	require.NoError(h.t, err)
	if !mine {
		require.NotEqual(h.t, pel.Settled, statuses[0], "%s of what is %s was carried out", outcome, h.at[id])
		return
	}
	require.Equal(h.t, pel.Settled, statuses[0])
	h.move(id, map[pel.Outcome]where{pel.Retry: due, pel.DeadLetter: dead, pel.Release: retry}[outcome])
}

func (h *history) move(id string, to where) {
	h.at[id] = to
	delete(h.owner, id)
	delete(h.aged, id)
}

// die makes a pending entry look as if its consumer had been silent for an hour.
func (h *history) die(rt *rapid.T) {
	var ids []string
	for _, hand := range h.hands {
		if id := hand.entry.Event.ID; h.at[id] == pending && h.owner[id].entry.ID == hand.entry.ID {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		rt.Skip()
	}
	id := rapid.SampledFrom(ids).Draw(rt, "event")
	hand := h.owner[id]
	require.NoError(h.t, h.rdb.Do(h.ctx, "xclaim", hand.entry.Stream, h.keys.Group, hand.consumer, 0, hand.entry.ID.String(), "idle", 3_600_000, "justid").Err())
	h.aged[id] = true
}

func (h *history) sweep() {
	require.NoError(h.t, h.reclaim.Sweep(h.ctx, h.keys, func(r pel.Reclaimed) {
		for id, hand := range h.owner {
			if hand.entry.ID != r.ID || hand.entry.Stream != r.Stream {
				continue
			}
			require.True(h.t, h.aged[id], "a living consumer's entry was taken")
			require.Equal(h.t, hand.carried.Deliveries, r.Deliveries)
			to := retry
			if r.Deliveries >= maxDeliveries {
				to = dead
			}
			h.move(id, to)
			return
		}
		h.t.Fatalf("%s of %s was taken, and is not pending", r.ID, r.Stream)
	}))
	require.Empty(h.t, h.aged, "a sweep takes everything whose consumer is silent")
}

func (h *history) moveDue() {
	_, _, err := pel.MoveDue(h.ctx, h.rdb, h.keys)
	require.NoError(h.t, err)
	for id, at := range h.at {
		if at == due {
			h.at[id] = retry
		}
	}
}

// check compares the model with Redis.
func (h *history) check() {
	want := map[where]int{}
	pendingIn := map[string]int64{}
	for id, at := range h.at {
		want[at]++
		if at == pending {
			pendingIn[h.owner[id].entry.Stream]++
		}
	}
	totals, err := pel.Inspect(h.ctx, h.rdb, h.keys)
	require.NoError(h.t, err)
	got := totals[0]
	require.EqualValues(h.t, want[pending], got.Pending)
	require.EqualValues(h.t, want[due], got.Due)
	require.EqualValues(h.t, want[dead], got.Letters)
	require.EqualValues(h.t, int64(want[retry])+pendingIn[h.keys.Retry], got.Retry)
	if got.LagKnown {
		require.EqualValues(h.t, want[unread], got.Lag)
	}
}
