package outbox

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// emigrate makes the outbox one of another database cluster, whose transaction numbers are far above: as it is when
// a dump was restored here.
func (w *world) emigrate() {
	w.t.Helper()
	ctx := w.t.Context()
	for _, statement := range []string{
		`UPDATE {schema}.outbox_row SET xid = (xid::text::bigint + 1000000000)::text::xid8`,
		`CREATE FUNCTION {schema}.shifted(snap pg_snapshot) RETURNS pg_snapshot LANGUAGE sql AS $$
			SELECT ((split_part(snap::text, ':', 1)::bigint + 1000000000) || ':' || (split_part(snap::text, ':', 2)::bigint + 1000000000) || ':' ||
				coalesce((SELECT string_agg((xip::text::bigint + 1000000000)::text, ',' ORDER BY xip) FROM pg_snapshot_xip(snap) AS x(xip)), ''))::pg_snapshot $$`,
		`UPDATE {schema}.relay_batch SET snap_from = {schema}.shifted(snap_from), snap_to = {schema}.shifted(snap_to)`,
	} {
		_, err := w.pool.Exec(ctx, query(statement))
		require.NoError(w.t, err)
	}
	for p := range w.topic.Count() {
		relay := stream.KeyRelay.Key(w.topic.StreamKey(p), "")
		if w.rdb.Exists(ctx, relay).Val() == 1 {
			require.NoError(w.t, w.rdb.HSet(ctx, relay, "system", "7000000000000000000/5").Err())
		}
	}
}

func TestRestampedOutboxGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	w := worldOn(t, testenv.Postgres(t), testenv.RedisClient(t, server.URL(), func(o *redis.Options) {
		o.ReadTimeout, o.MaxRetries = 200*time.Millisecond, -1
	}), 2)
	b := w.bank(12)
	ctx := t.Context()
	stop := start(t, w.relay())
	b.verifyEach(3)
	eventuallyIdle(t, w)
	// A transaction is open over the last batches, and one of these is under way when the dump is made.
	open, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	require.NoError(t, b.change(ctx, open, "k0"))
	require.NoError(t, server.Pause())
	batches := w.rows("relay_batch")
	part := bank{w, 12}
	for _, key := range []string{"k1", "k2", "k3", "k4", "k5"} {
		tx, err := w.pool.Begin(ctx)
		require.NoError(t, err)
		require.NoError(t, part.change(ctx, tx, key))
		require.NoError(t, tx.Commit(ctx))
	}
	require.Eventually(t, func() bool { return w.rows("relay_batch") > batches }, patience, 10*time.Millisecond)
	stop()
	require.NoError(t, open.Commit(ctx))
	require.NoError(t, server.Resume())
	b.changes(12) // in no batch
	w.emigrate()

	require.ErrorIs(t, w.relay().Run(ctx), ErrForeign)
	rows := int64(w.rows("outbox"))
	plan, err := Restamp(ctx, w.pool, w.rdb, true)
	require.NoError(t, err)
	require.Equal(t, rows, plan.Rows)
	require.Equal(t, map[string]string{w.topic.StreamKey(0): "7000000000000000000/5", w.topic.StreamKey(1): "7000000000000000000/5"}, plan.Streams)
	require.ErrorIs(t, w.relay().Run(ctx), ErrForeign, "it was dry")
	done, err := Restamp(ctx, w.pool, w.rdb, false)
	require.NoError(t, err)
	require.Equal(t, plan, done)

	again := w.relay()
	start(t, again)
	b.verify()
	b.verifyEach(2)
	_, err = Restamp(ctx, w.pool, w.rdb, false)
	require.ErrorIs(t, err, ErrRelayRuns)
}

// An upgraded cluster keeps its transaction numbers: nothing needs to be written but what streams say.
func TestRestampWritesRowsOnlyWhereTheirNumbersMeanNothing(t *testing.T) {
	w := newWorld(t, 1)
	b := w.bank(4)
	relay := w.relay()
	stop := start(t, relay)
	b.verifyEach(2)
	stop()
	require.NoError(t, w.rdb.HSet(t.Context(), stream.KeyRelay.Key(w.topic.StreamKey(0), ""), "system", "7000000000000000000/5").Err())
	stop = start(t, w.relay())
	b.changes(4)
	w.stopped(ReasonForeign)
	stop()
	done, err := Restamp(t.Context(), w.pool, w.rdb, false)
	require.NoError(t, err)
	require.Zero(t, done.Rows)
	require.Len(t, done.Streams, 1)
	start(t, w.relay())
	b.verify()
	again, err := Restamp(t.Context(), w.pool, w.rdb, true)
	require.ErrorIs(t, err, ErrRelayRuns)
	require.Empty(t, again.Streams)
}
