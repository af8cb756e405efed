package pel_test

import (
	"context"
	"strconv"
	"testing"

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
	lost    where = "lost" // it was trimmed while it was pending, and a letter without a body tells of it
)

// inHand is an entry that a consumer once read. It may have lost it since.
type inHand struct {
	consumer string
	entry    stream.Entry
	carried  pel.Carried
	settled  bool // its consumer settled it, whatever came of it
}

// model is what every history begins with: a group that nobody has used, at an empty stream.
type model struct {
	t       *rapid.T
	ctx     context.Context
	rdb     *redis.Client
	keys    pel.Keys
	letters *dlq.Queue
	reclaim *pel.Reclaimer
}

// checkModel runs histories, one after the other.
func checkModel(t *testing.T, limits pel.Limits, run func(model)) {
	t.Parallel()
	rdb, namespace := testenv.Redis(t), testenv.Namespace(t)
	reach := reached(t, rdb, namespace, pel.MinMinIdle)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		m := model{t: rt, ctx: t.Context(), rdb: rdb, keys: pel.KeysOf(namespace, "g"+strconv.Itoa(n))}
		require.NoError(rt, rdb.Del(m.ctx, namespace).Err())
		_, err := pel.Ensure(m.ctx, rdb, m.keys, "0")
		require.NoError(rt, err)
		m.letters, err = dlq.Open(rdb, stream.Topic{Name: "orders", Stream: namespace}, m.keys.Group)
		require.NoError(rt, err)
		m.reclaim, err = pel.NewReclaimer(rdb, limits, reach)
		require.NoError(rt, err)
		run(m)
	})
}

// add publishes an event, and returns its id and its entry's.
func (m *model) add() (event string, id stream.ID) {
	e := stream.NewEvent("order.placed", "k", stream.ContentTypeJSON, []byte(`{}`))
	text, err := m.rdb.Do(m.ctx, e.AppendFields([]any{"xadd", m.keys.Stream, "*"})...).Text()
	require.NoError(m.t, err)
	id, err = stream.ParseID(text)
	require.NoError(m.t, err)
	return e.ID, id
}

// history is one run of the model beside a real group.
type history struct {
	model
	at      map[string]where   // by event
	owner   map[string]*inHand // what is pending, by event
	hands   []*inHand          // everything that was ever read
	aged    map[string]bool    // pending events whose consumer is silent
	trimmed map[string]bool    // events that are gone from the topic's stream
	remains int                // letters without a body
}

const maxDeliveries = 3

// TestEveryEventIsInExactlyOnePlace runs histories of reads, settlements, heartbeats, deaths,
// sweeps, foreign trims and redrives.
func TestEveryEventIsInExactlyOnePlace(t *testing.T) {
	checkModel(t, pel.Limits{MinIdle: pel.MinMinIdle, MaxDeliveries: maxDeliveries}, func(m model) {
		h := &history{model: m, at: map[string]where{}, owner: map[string]*inHand{}, aged: map[string]bool{}, trimmed: map[string]bool{}}
		m.t.Repeat(map[string]func(*rapid.T){
			"publish": func(*rapid.T) { h.publish() },
			"read":    func(rt *rapid.T) { h.read(rt, h.keys.Stream) },
			"retry":   func(rt *rapid.T) { h.read(rt, h.keys.Retry) },
			"settle":  h.settle,
			"extend":  h.extend,
			"trim":    h.trim,
			"redrive": h.redrive,
			"die":     h.die,
			"sweep":   func(*rapid.T) { h.sweep() },
			"due":     func(*rapid.T) { h.moveDue() },
			"":        func(*rapid.T) { h.check() },
		})
		h.checkContents()
	})
}

func (h *history) publish() {
	event, _ := h.add()
	h.at[event] = unread
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
		hand := &inHand{consumer: consumer, entry: en, carried: carried}
		h.at[en.Event.ID], h.owner[en.Event.ID] = pending, hand
		h.hands = append(h.hands, hand)
		return nil
	}))
}

// any draws something that was ever read.
func (h *history) any(rt *rapid.T) (hand *inHand, id string, mine bool) {
	if len(h.hands) == 0 {
		rt.Skip()
	}
	hand = rapid.SampledFrom(h.hands).Draw(rt, "hand")
	id = hand.entry.Event.ID
	return hand, id, h.at[id] == pending && h.owner[id] == hand
}

// gone reports whether the entry of a delivery was trimmed.
func (h *history) gone(hand *inHand) bool {
	return hand.entry.Stream == h.keys.Stream && h.trimmed[hand.entry.Event.ID]
}

// settle settles something that was ever read, however it was; only its owner may, or, once
// it was trimmed and is nobody's, who has the last copy.
func (h *history) settle(rt *rapid.T) {
	hand, id, mine := h.any(rt)
	if hand.settled && h.gone(hand) {
		rt.Skip() // a consumer settles what it has in hand, once
	}
	outcome := rapid.SampledFrom([]pel.Outcome{"ack", pel.Retry, pel.DeadLetter, pel.Release}).Draw(rt, "outcome")
	repeated := rapid.Bool().Draw(rt, "repeated")
	hand.settled = true
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
	if !mine && h.at[id] == lost && h.gone(hand) {
		mine = true
	}
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
		if id := hand.entry.Event.ID; h.at[id] == pending && h.owner[id] == hand {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		rt.Skip()
	}
	id := rapid.SampledFrom(ids).Draw(rt, "event")
	hand := h.owner[id]
	if h.gone(hand) { // XCLAIM would purge it
		rt.Skip()
	}
	require.NoError(h.t, h.rdb.Do(h.ctx, "xclaim", hand.entry.Stream, h.keys.Group, hand.consumer, 0, hand.entry.ID.String(), "idle", 3_600_000, "justid").Err())
	h.aged[id] = true
}

// extend tells that the consumer of something that was ever read lives.
func (h *history) extend(rt *rapid.T) {
	hand, id, mine := h.any(rt)
	held, err := pel.NewSettler(h.rdb, h.keys, hand.consumer).Extend(h.ctx, hand.entry.Stream, []stream.ID{hand.entry.ID})
	require.NoError(h.t, err)
	switch {
	case mine && h.gone(hand):
		require.Equal(h.t, pel.HeldGone, held[0])
	case mine:
		require.Equal(h.t, pel.HeldExtended, held[0])
		delete(h.aged, id)
	default:
		require.NotEqual(h.t, pel.HeldExtended, held[0], "%s is %s", id, h.at[id])
	}
}

// trim takes the entry of a pending event from the topic's stream, as a foreign XTRIM would.
func (h *history) trim(rt *rapid.T) {
	hand, id, mine := h.any(rt)
	if !mine || hand.entry.Stream != h.keys.Stream {
		rt.Skip()
	}
	require.NoError(h.t, h.rdb.XDel(h.ctx, h.keys.Stream, hand.entry.ID.String()).Err())
	h.trimmed[id] = true
}

// redrive gives one letter back, or all.
func (h *history) redrive(rt *rapid.T) {
	page, err := h.letters.List(h.ctx, dlq.Filter{}, "", 1000)
	require.NoError(h.t, err)
	if len(page.Letters) == 0 {
		rt.Skip()
	}
	how := dlq.Redrive{MaxRedrives: 1000, KeepAttempts: rapid.Bool().Draw(rt, "keep")}
	if !rapid.Bool().Draw(rt, "all") {
		page.Letters = page.Letters[:1]
		how.Letters = []dlq.Ref{{Partition: page.Letters[0].Partition, ID: page.Letters[0].ID}}
	}
	_, err = h.letters.RedriveAll(h.ctx, how)
	for _, l := range page.Letters {
		if l.Reason == dlq.ReasonTrimmed {
			require.True(h.t, how.Letters == nil || err != nil, "a letter without a body went back")
			continue
		}
		require.NoError(h.t, err)
		require.Equal(h.t, dead, h.at[l.Entry.Event.ID])
		h.at[l.Entry.Event.ID] = retry
	}
}

// sweep is what the reclaimer does, right after the living have told that they live: a
// history takes longer than MinIdle.
func (h *history) sweep() {
	for id, hand := range h.owner {
		if h.at[id] == pending && !h.aged[id] {
			_, err := pel.NewSettler(h.rdb, h.keys, hand.consumer).Extend(h.ctx, hand.entry.Stream, []stream.ID{hand.entry.ID})
			require.NoError(h.t, err)
		}
	}
	require.NoError(h.t, h.reclaim.Sweep(h.ctx, h.keys, func(r pel.Reclaimed) {
		for id, hand := range h.owner {
			if hand.entry.ID != r.ID || hand.entry.Stream != r.Stream {
				continue
			}
			require.True(h.t, h.aged[id] || h.gone(hand), "a living consumer's entry was taken")
			require.Equal(h.t, hand.carried.Deliveries, r.Deliveries)
			to := retry
			switch {
			case r.Fate == pel.FateTrimmed:
				require.True(h.t, h.gone(hand))
				to = lost
				h.remains++
			case r.Deliveries >= maxDeliveries:
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
	require.EqualValues(h.t, want[dead]+h.remains, got.Letters)
	require.EqualValues(h.t, int64(want[retry])+pendingIn[h.keys.Retry], got.Retry)
	if got.LagKnown {
		require.EqualValues(h.t, want[unread], got.Lag)
	}
}

// checkContents compares which events the model and Redis have in each place.
func (h *history) checkContents() {
	got := map[where][]string{}
	for l, err := range h.letters.All(h.ctx, dlq.Filter{}) {
		require.NoError(h.t, err)
		if l.Reason != dlq.ReasonTrimmed {
			got[dead] = append(got[dead], l.Entry.Event.ID)
		}
	}
	reply, err := redisx.Raw(h.ctx, h.rdb, "xread", "streams", h.keys.Retry, "0")
	if !redisx.IsNil(err) {
		require.NoError(h.t, err)
		require.NoError(h.t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
			got[retry] = append(got[retry], en.Event.ID)
			return nil
		}))
	}
	want := map[where][]string{}
	for id, at := range h.at {
		switch {
		case at == dead:
			want[dead] = append(want[dead], id)
		case at == retry, at == pending && h.owner[id].entry.Stream == h.keys.Retry:
			want[retry] = append(want[retry], id)
		}
	}
	require.ElementsMatch(h.t, want[dead], got[dead])
	require.ElementsMatch(h.t, want[retry], got[retry])
}
