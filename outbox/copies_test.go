package outbox

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRepublishAppendsCopiesOfWhatWasPublishedThen(t *testing.T) {
	w := newWorld(t, 2)
	ctx := t.Context()
	stop := start(t, w.relay())
	w.publish(events("a", "a1", "a2")...)
	w.publish(events("b", "b1", "b2")...)
	w.eventually(4)
	eventuallyIdle(t, w)
	stop()
	w.publish(event("a", "a3")) // in no stream yet
	first := map[string]string{}
	for p := range 2 {
		for _, en := range w.entries(p) {
			first[en.Event.ID] = en.Event.Sequence.String()
		}
	}
	from := time.Now().Add(-time.Hour)

	sum, err := Republish(ctx, w.pool, w.rdb, RepublishConfig{From: from, Namespace: w.topic.Namespace, DryRun: true})
	require.NoError(t, err)
	require.EqualValues(t, 4, sum.Rows)
	require.EqualValues(t, 4*len(`{"n":1}`), sum.Bytes)
	require.Len(t, w.ids(), 4)
	for _, nothing := range []RepublishConfig{
		{From: from, To: from.Add(time.Minute)},
		{From: from, Topic: "another"},
		{From: from, Namespace: "another"},
		{From: from, Key: "c"},
	} {
		sum, err := Republish(ctx, w.pool, w.rdb, nothing)
		require.NoError(t, err)
		require.Zero(t, sum.Rows)
	}

	told := 0
	sum, err = Republish(ctx, w.pool, w.rdb, RepublishConfig{From: from, Key: "a", Progress: func(Republished) { told++ }})
	require.NoError(t, err)
	require.EqualValues(t, 2, sum.Rows)
	require.Positive(t, told)
	var copies []string
	for p := range 2 {
		messages, err := w.rdb.XRange(ctx, w.topic.StreamKey(p), "-", "+").Result()
		require.NoError(t, err)
		for _, m := range messages {
			if m.Values["sk-republished"] != nil {
				id := m.Values["id"].(string)
				copies = append(copies, id)
				require.Equal(t, first[id], m.Values["sequence"])
				require.Equal(t, `{"n":1}`, m.Values["data"])
			}
		}
	}
	require.Equal(t, []string{"a1", "a2"}, copies)

	start(t, w.relay()) // the position is what it was
	w.eventually(7)
	require.Contains(t, w.ids(), "a3")
}

func TestRepublishRefusesWhatIsNotKept(t *testing.T) {
	w := newWorld(t, 1)
	for range 2 {
		b := w.rows("relay_batch")
		stop := start(t, w.relay())
		w.publish(event("k", "e"))
		require.Eventually(t, func() bool { return w.rows("relay_batch") > b }, patience, 10*time.Millisecond)
		eventuallyIdle(t, w)
		stop()
	}
	_, err := w.pool.Exec(t.Context(), query(`DELETE FROM {schema}.relay_batch WHERE batch = 0`)) // as the upkeep does
	require.NoError(t, err)
	sum, err := Republish(t.Context(), w.pool, w.rdb, RepublishConfig{From: time.Now().Add(-time.Hour)})
	require.ErrorIs(t, err, ErrNotKept)
	require.WithinRange(t, sum.Kept, time.Now().Add(-10*time.Minute), time.Now().Add(time.Minute))
	require.Len(t, w.ids(), 2)

	for _, config := range []RepublishConfig{{}, {From: time.Now().Add(time.Hour)}, {From: time.Now(), To: time.Now().Add(-time.Hour)}} {
		_, err := Republish(t.Context(), w.pool, w.rdb, config)
		require.ErrorContains(t, err, "must be set, and lie before To")
	}
}

func TestRepublishLeavesOutWhatWasSetAside(t *testing.T) {
	w := newWorld(t, 1)
	require.NoError(t, Declare(t.Context(), w.pool, w.topic))
	start(t, w.relay(func(c *RelayConfig) { c.OnRefused = SetAside }))
	w.misplace("k", "refused")
	w.publish(event("k", "fine"))
	w.failed(1)
	w.eventually(1)
	eventuallyIdle(t, w)
	sum, err := Republish(t.Context(), w.pool, w.rdb, RepublishConfig{From: time.Now().Add(-time.Hour), Namespace: w.topic.Namespace})
	require.NoError(t, err)
	require.EqualValues(t, 1, sum.Rows)
	require.Equal(t, []string{"fine", "fine"}, w.ids())
}
