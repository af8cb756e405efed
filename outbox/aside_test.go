package outbox

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// misplace writes a row that says it is in another shard than its stream.
func (w *world) misplace(key, id string) {
	w.t.Helper()
	_, err := w.pool.Exec(w.t.Context(), query(`
INSERT INTO {schema}.outbox_row (shard, partition, namespace, topic, key, event_id, type, source, data)
SELECT (first_shard + 1) % {schema}.outbox_shards(), 0, namespace, name, $1, $2, 't', 's', '' FROM {schema}.topic WHERE name = 'orders'`), key, id)
	require.NoError(w.t, err)
}

func TestRowThatCanNeverBePublishedStopsItsShardByDefault(t *testing.T) {
	w := newWorld(t, 1)
	start(t, w.relay())
	w.publish(event("k", "1"))
	w.eventually(1)
	w.misplace("k", "bad")
	stop := w.stopped(ReasonRefused)
	require.Contains(t, stop.Detail, "shard")
	w.publish(event("k", "2")) // of the right shard
	w.eventually(2)
}

// The key of a refused row waits behind it, other keys of the same stream go on, and all of it comes back in order.
func TestParkedKeyWaitsInOrderAndComesBackInOrder(t *testing.T) {
	w := newWorld(t, 1)
	b := w.bank(2)
	key := w.topic.StreamKey(0)
	seen := &recorder{}
	run := func() (stop func()) {
		return start(t, w.relay(func(c *RelayConfig) { c.OnRefused, c.Observer = ParkKey, seen }))
	}
	stop := run()
	b.verifyEach(2)
	// Redis refuses everything for this stream for a while.
	require.NoError(t, w.rdb.Rename(t.Context(), key, key+"-kept").Err())
	require.NoError(t, w.rdb.Set(t.Context(), key, "x", 0).Err())
	b.changes(2)
	w.failed(2)
	require.NoError(t, w.rdb.Rename(t.Context(), key+"-kept", key).Err())
	// The stream is whole again, the keys stay parked.
	b.changes(2)
	w.failed(4)
	w.publish(event("other", "goes on"), event("", "without a key"))
	w.eventually(4 + 2)
	stop() // another relay knows it too
	run()
	b.changes(2)
	w.failed(6)
	seen.eventually(t, Refused)

	list, err := ListFailed(t.Context(), w.pool, FailedFilter{Key: "k1"})
	require.NoError(t, err)
	require.Len(t, list, 3)
	require.True(t, list[0].Parked)
	require.Contains(t, list[0].Reason, "WRONGTYPE")
	require.Equal(t, "k1#3", list[0].Event.ID)

	n, err := RetryFailed(t.Context(), w.pool, FailedFilter{Key: "k1"})
	require.NoError(t, err)
	require.EqualValues(t, 3, n)
	w.eventually(6 + 3)
	n, err = RetryFailed(t.Context(), w.pool, FailedFilter{})
	require.NoError(t, err)
	require.EqualValues(t, 3, n)
	w.eventually(6 + 6)
	for _, id := range []string{"goes on", "without a key"} {
		require.Contains(t, w.ids(), id)
	}
	require.NoError(t, w.rdb.XDel(t.Context(), key, w.idOf("goes on"), w.idOf("without a key")).Err())
	b.verifyEach(3)
	w.failed(0)
}

func (w *world) idOf(event string) string {
	w.t.Helper()
	for _, en := range w.entries(0) {
		if en.Event.ID == event {
			return en.ID.String()
		}
	}
	require.Fail(w.t, "no entry", event)
	return ""
}

// failed waits until so many rows are set aside.
func (w *world) failed(n int) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		status, err := ReadStatus(w.t.Context(), w.pool)
		require.NoError(w.t, err)
		return status.Failed == int64(n)
	}, patience, 10*time.Millisecond, "rows set aside")
}

func TestRowSetAsideLetsItsKeyGoOn(t *testing.T) {
	w := newWorld(t, 1)
	start(t, w.relay(func(c *RelayConfig) { c.OnRefused = SetAside }))
	w.publish(event("k", "1"))
	w.eventually(1)
	w.misplace("k", "bad")
	w.failed(1)
	w.publish(event("k", "2"))
	w.eventually(2)
	// It is refused for the same reason, and set aside again.
	_, err := RetryFailed(t.Context(), w.pool, FailedFilter{})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return w.rows("outbox_failed") == 2 }, patience, 10*time.Millisecond)
	w.failed(1)
}

// What is in outbox_failed does not come back by itself, also when its batch is published again.
func TestRowsSetAsideStayAsideWhenTheirBatchIsPublishedAgain(t *testing.T) {
	w := newWorld(t, 1)
	b := w.bank(2)
	key := w.topic.StreamKey(0)
	b.changes(2)
	relay := func() *Relay {
		return w.relay(func(c *RelayConfig) { c.OnRefused = ParkKey })
	}
	require.NoError(t, w.rdb.Set(t.Context(), key, "x", 0).Err())
	stop := start(t, relay())
	w.failed(2)
	stop()
	require.NoError(t, w.rdb.Del(t.Context(), key).Err())
	r := relay()
	start(t, r)
	w.publish(event("other", "goes on"))
	w.eventually(1)
	_, err := RetryFailed(t.Context(), w.pool, FailedFilter{})
	require.NoError(t, err)
	w.eventually(3)
}
