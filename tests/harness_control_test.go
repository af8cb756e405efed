package tests

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// control is a relay as one writes it first: a loop that reads what it has not read, and adds it. The harness must
// see what each of them breaks, or its verdict on the real one says nothing.
type control struct {
	name  string   // its stream, beside those of the topic
	query string   // selects a mark, and id, key and version of the events behind the mark $1
	mark  []string // of the last row that was added
}

// bySequence reads what has a higher number than the last row. A number that was drawn before and committed after is lost.
func bySequence() *control {
	return &control{name: "by sequence", mark: []string{"0"}, query: `
SELECT ARRAY[id::text], event_id, key, data FROM streamkeel.outbox WHERE id > ($1::text[])[1]::bigint ORDER BY id`}
}

// belowHorizon reads, in the order of transactions and rows, what lies below the oldest running transaction. A transaction
// that wrote early and locked late passes those that it waited for.
func belowHorizon() *control {
	return &control{name: "below the horizon", mark: []string{"0", "0"}, query: `
SELECT ARRAY[xid::text, id::text], event_id, key, data FROM streamkeel.outbox
WHERE (xid, id) > (($1::text[])[1]::xid8, ($1::text[])[2]::bigint) AND xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY xid, id`}
}

// highWater reads what lies between two snapshots, in the order of rows, as it should be done; and never asks
// what Redis has of what it added.
func highWater() *control {
	return &control{name: "high-water mark", mark: []string{"1:1:"}, query: `
SELECT ARRAY[pg_current_snapshot()::text], event_id, key, data FROM streamkeel.outbox
WHERE NOT pg_visible_in_snapshot(xid, ($1::text[])[1]::pg_snapshot) ORDER BY id`}
}

// relay moves what there is.
func (c *control) relay(h *harness) {
	h.t.Helper()
	rows, err := h.pool.Query(h.t.Context(), c.query, c.mark)
	require.NoError(h.t, err)
	var id, key string
	var version []byte
	_, err = pgx.ForEachRow(rows, []any{&c.mark, &id, &key, &version}, func() error {
		return h.rdb.XAdd(h.t.Context(), &redis.XAddArgs{Stream: c.stream(h), Values: []any{"id", id, "subject", key, "data", version}}).Err()
	})
	require.NoError(h.t, err)
}

func (c *control) stream(h *harness) string { return h.topic.Namespace + ":" + c.name }

// interleave commits transactions in two orders that happen all the time. relay has the controls move what they see.
func (h *harness) interleave(relay func()) {
	h.t.Helper()
	ctx := h.t.Context()
	begin := func() pgx.Tx {
		tx, err := h.pool.Begin(ctx)
		require.NoError(h.t, err)
		return tx
	}
	change := func(tx pgx.Tx, key string) { require.NoError(h.t, h.change(ctx, tx, 1, key)) }
	commit := func(tx pgx.Tx) { require.NoError(h.t, tx.Commit(ctx)) }

	// One that drew its number early commits late.
	early, late := begin(), begin()
	change(early, account(0))
	change(late, account(1))
	commit(late)
	relay()
	commit(early)
	h.horizonPasses()
	relay()

	// One that wrote early locks the key late: it has the lower transaction number, and the later version.
	early, late = begin(), begin()
	_, err := early.Exec(ctx, `INSERT INTO scratch VALUES (1)`)
	require.NoError(h.t, err)
	change(late, account(2))
	commit(late)
	relay()
	change(early, account(2))
	commit(early)
	h.horizonPasses()
	relay()
}

// loseTail has a replica promoted that lacks two of four changes of three accounts.
func (h *harness) loseTail(relay func()) {
	h.t.Helper()
	change := func() {
		require.NoError(h.t, pgx.BeginFunc(h.t.Context(), h.pool, func(tx pgx.Tx) error {
			return h.change(h.t.Context(), tx, 1, account(0), account(1), account(2))
		}))
		h.horizonPasses()
		relay()
	}
	change()
	replica := h.laggingReplica()
	change()
	change()
	h.promote(replica)
	h.until("Redis is there again", func() bool { return h.length() >= 0 })
	change()
}

// horizonPasses waits until every transaction that may be older than a row of the outbox has ended, other tests' too.
func (h *harness) horizonPasses() {
	h.t.Helper()
	h.until("older transactions end", func() (passed bool) {
		require.NoError(h.t, h.pool.QueryRow(h.t.Context(), `
SELECT pg_snapshot_xmin(pg_current_snapshot()) > (SELECT max(xid) FROM streamkeel.outbox)`).Scan(&passed))
		return passed
	})
}

// The relay and the controls see the same transactions, and lose the same Redis.
func TestHarnessSeesWhatSimplerRelaysBreak(t *testing.T) {
	h := newHarness(t, ownRedis)
	h.employ()
	sequence, horizon, water := bySequence(), belowHorizon(), highWater()
	relay := func() {
		h.until("the streams hold what was committed", func() bool { return h.length() == len(h.committed()) })
		for _, c := range []*control{sequence, horizon, water} {
			c.relay(h)
		}
	}
	judged := func(want, bySequence, belowHorizon, highWater verdict) {
		t.Helper()
		committed := h.committed()
		require.Equal(t, want, judge(committed, h.inStreams()))
		require.Equal(t, bySequence, judge(committed, h.entries(sequence.stream(h))), "by sequence")
		require.Equal(t, belowHorizon, judge(committed, h.entries(horizon.stream(h))), "below the horizon")
		require.Equal(t, highWater, judge(committed, h.entries(water.stream(h))), "with a high-water mark")
	}
	h.interleave(relay)
	judged(verdict{committed: 4}, verdict{committed: 4, lost: 1}, verdict{committed: 4, reordered: 1}, verdict{committed: 4})
	h.loseTail(relay)
	judged(verdict{committed: 16}, verdict{committed: 16, lost: 7}, verdict{committed: 16, lost: 6, reordered: 1}, verdict{committed: 16, lost: 6})
	h.verify("")
}
