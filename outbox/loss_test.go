package outbox

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// failover is a master and a replica, and a client that follows whoever is master, as one with Sentinel does.
type failover struct {
	t               *testing.T
	master, replica *servers.Redis
	rdb             *redis.Client
	addr            atomic.Pointer[string]
}

// debug allows DEBUG DIGEST, by which two servers are compared.
var debug = map[string]string{"enable-debug-command": "yes"}

func newFailover(t *testing.T) *failover {
	t.Helper()
	f := &failover{t: t, master: testenv.PrivateRedis(t, servers.RedisConfig{Settings: debug})}
	f.replica = testenv.PrivateRedis(t, servers.RedisConfig{ReplicaOf: f.master.Addr(), Settings: debug})
	addr := f.master.Addr()
	f.addr.Store(&addr)
	f.rdb = redis.NewClient(&redis.Options{Addr: "follows", Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", *f.addr.Load())
	}})
	t.Cleanup(func() { _ = f.rdb.Close() })
	return f
}

// caughtUp waits until the replica has what the master has.
func (f *failover) caughtUp() {
	f.t.Helper()
	other := redis.NewClient(&redis.Options{Addr: f.replica.Addr()})
	defer other.Close()
	require.Eventually(f.t, func() bool {
		want, err := f.rdb.Do(f.t.Context(), "debug", "digest").Text()
		require.NoError(f.t, err)
		have, err := other.Do(f.t.Context(), "debug", "digest").Text()
		return err == nil && want == have
	}, patience, 10*time.Millisecond)
}

// lag cuts the replica off: it gets nothing of what is written from now on.
func (f *failover) lag() {
	f.t.Helper()
	other := redis.NewClient(&redis.Options{Addr: f.replica.Addr()})
	defer other.Close()
	require.NoError(f.t, other.ReplicaOf(f.t.Context(), "NO", "ONE").Err())
}

// follow has the replica get everything again.
func (f *failover) follow() {
	f.t.Helper()
	other := redis.NewClient(&redis.Options{Addr: f.replica.Addr()})
	defer other.Close()
	host, port, err := net.SplitHostPort(f.master.Addr())
	require.NoError(f.t, err)
	require.NoError(f.t, other.ReplicaOf(f.t.Context(), host, port).Err())
}

// promote has the client follow the replica.
func (f *failover) promote() {
	f.t.Helper()
	addr := f.replica.Addr()
	f.addr.Store(&addr)
	require.NoError(f.t, f.master.Kill())
}

func (b bank) changes(n int) {
	b.t.Helper()
	require.NoError(b.t, InTx(b.t.Context(), b.pool, func(tx pgx.Tx) error {
		for i := range n {
			if err := b.change(b.t.Context(), tx, fmt.Sprint("k", i%b.keys)); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (b bank) verifyEach(times int) {
	b.t.Helper()
	for range times {
		b.changes(b.keys)
		b.verify()
	}
}

// What a promoted replica lacks is found by the next row of each stream, and published again, in order, with the
// sequence that it had.
func TestTailThatRedisLostInAFailoverIsPublishedAgain(t *testing.T) {
	t.Parallel()
	f := newFailover(t)
	w := worldOn(t, testenv.Postgres(t), f.rdb, 3)
	b := w.bank(12)
	seen := &recorder{}
	start(t, w.relay(func(c *RelayConfig) { c.Observer = seen }))
	b.changes(30)
	b.verify()
	f.caughtUp()
	f.lag()
	for range 5 { // several batches, the last of which is closed
		b.verifyEach(1)
	}
	before := map[string]string{}
	for p := range w.topic.Count() {
		for _, en := range w.entries(p) {
			before[en.Event.ID] = en.Event.Sequence.String()
		}
	}
	f.promote()
	require.Less(t, len(w.ids()), len(before), "the replica lags")
	b.changes(b.keys)
	b.verify()
	for p := range w.topic.Count() {
		for _, en := range w.entries(p) {
			if sequence, ok := before[en.Event.ID]; ok {
				require.Equal(t, sequence, en.Event.Sequence.String())
			}
		}
	}
	seen.eventually(t, Rewound)
	require.Empty(t, seen.of(Stopped))
	b.verifyEach(3)
}

// A Redis that was emptied knows no position: that may be the wrong one, so the relay asks.
func TestRelayStopsAtARedisThatKnowsNothing(t *testing.T) {
	for _, answer := range []decision{decisionRepublish, decisionAcceptLoss} {
		t.Run(string(answer), func(t *testing.T) {
			t.Parallel()
			server := testenv.PrivateRedis(t, servers.RedisConfig{})
			w := worldOn(t, testenv.Postgres(t), testenv.RedisClient(t, server.URL()), 1)
			b := w.bank(4)
			seen := &recorder{}
			start(t, w.relay(func(c *RelayConfig) { c.Observer = seen }))
			b.verifyEach(3)
			require.NoError(t, w.rdb.FlushAll(t.Context()).Err())
			b.changes(4)
			stop := w.stopped(ReasonLoss)
			seen.eventually(t, Stopped)
			require.EqualValues(t, 12, stop.Rows)
			require.Positive(t, stop.Bytes)
			require.Empty(t, w.ids())
			require.ErrorIs(t, Resync(t.Context(), w.pool, stop.Shard), ErrNothingToDecide)
			require.ErrorIs(t, RepublishLost(t.Context(), w.pool, (stop.Shard+1)%8), ErrNothingToDecide)
			if answer == decisionRepublish {
				require.NoError(t, RepublishLost(t.Context(), w.pool, stop.Shard))
				b.verify()
			} else {
				require.NoError(t, AcceptLoss(t.Context(), w.pool, stop.Shard))
				w.eventually(4)
			}
			require.Eventually(t, func() bool { return w.rows("relay_stop") == 0 }, patience, 10*time.Millisecond)
			seen.eventually(t, Resumed)

			// The decision held for one time.
			require.NoError(t, w.rdb.FlushAll(t.Context()).Err())
			b.changes(4)
			w.stopped(ReasonLoss)
			require.Empty(t, w.ids())
		})
	}
}

// stopped waits until a shard stands still for the reason.
func (w *world) stopped(reason Reason) (found Stop) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		status, err := ReadStatus(w.t.Context(), w.pool)
		require.NoError(w.t, err)
		for _, s := range status.Shards {
			if s.Stop != nil && s.Stop.Reason == reason {
				found = *s.Stop
				return true
			}
		}
		return false
	}, patience, 20*time.Millisecond, "no shard stands still for %s", reason)
	return found
}

// A relay that is restarted in front of the same Redis still stops: it knows what it published from the log.
func TestRelayThatTakesOverStopsAtARedisThatKnowsNothing(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	w := worldOn(t, testenv.Postgres(t), testenv.RedisClient(t, server.URL()), 1)
	b := w.bank(4)
	stop := start(t, w.relay())
	b.verifyEach(3)
	stop()
	require.NoError(t, w.rdb.FlushAll(t.Context()).Err())
	start(t, w.relay())
	w.stopped(ReasonLoss)
	require.Empty(t, w.ids())
}

func TestStreamThatWasDeletedCountsAsLost(t *testing.T) {
	w := newWorld(t, 1)
	b := w.bank(4)
	start(t, w.relay())
	b.verifyEach(2)
	require.NoError(t, w.rdb.Del(t.Context(), w.topic.StreamKey(0)).Err())
	b.changes(4)
	stop := w.stopped(ReasonLoss)
	require.NoError(t, RepublishLost(t.Context(), w.pool, stop.Shard))
	b.verify()
}

func TestLossOlderThanRewindMaxStopsTheShardAndNoOther(t *testing.T) {
	t.Parallel()
	f := newFailover(t)
	w := worldOn(t, testenv.Postgres(t), f.rdb, 2)
	b := w.bank(12)
	start(t, w.relay(func(c *RelayConfig) { c.RewindMax = time.Minute }))
	b.verifyEach(2)
	f.caughtUp()
	f.lag()
	b.verifyEach(2)
	// Of partition 0's shard, the batches are old.
	var shard int
	require.NoError(t, w.pool.QueryRow(t.Context(), query(`
UPDATE {schema}.relay_batch SET frozen_at = frozen_at - interval '2 minutes'
WHERE shard = (SELECT first_shard FROM {schema}.topic WHERE name = 'orders') RETURNING shard`)).Scan(&shard))
	f.promote()
	b.changes(12)
	stop := w.stopped(ReasonLoss)
	require.Equal(t, shard, stop.Shard)
	other := len(w.entries(1))
	b.changes(12)
	require.Eventually(t, func() bool { return len(w.entries(1)) > other }, patience, 10*time.Millisecond, "the other shard goes on")
	require.NoError(t, RepublishLost(t.Context(), w.pool, shard))
	b.verify()
}

// lose takes back what tables get while fn runs, as a standby that is promoted lacks it.
func (w *world) lose(fn func(), tables ...string) {
	w.t.Helper()
	exec := func(sql string) {
		w.t.Helper()
		_, err := w.pool.Exec(w.t.Context(), query(sql))
		require.NoError(w.t, err)
	}
	for i, table := range tables {
		exec(fmt.Sprintf("CREATE TABLE saved_%d AS SELECT * FROM %s", i, table))
	}
	fn()
	for i, table := range tables {
		exec(fmt.Sprintf("DELETE FROM %s", table))
		exec(fmt.Sprintf("INSERT INTO %s SELECT * FROM saved_%d", table, i))
	}
}

func (w *world) ghosts(shard int) (ids []string) {
	w.t.Helper()
	for en, err := range Ghosts(w.t.Context(), w.pool, w.rdb, shard) {
		require.NoError(w.t, err)
		ids = append(ids, en.Event.ID)
	}
	return ids
}

// theLog and theRows are what a Postgres may have lost.
var (
	theLog  = []string{"{schema}.relay_batch", "{schema}.relay_lease"}
	theRows = []string{"{schema}.outbox_row", "bank"}
)

// newBehind returns a world without a relay. Its stream has 16 entries, of the last 8 of which Postgres has lost the tables.
func newBehind(t *testing.T, lost ...string) (*world, bank) {
	t.Helper()
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{})
	testenv.Migrate(t, server.URL())
	w := worldOn(t, testenv.Pool(t, server.URL()), testenv.Redis(t), 1)
	b := w.bank(4)
	publish := func() {
		stop := start(t, w.relay())
		b.verifyEach(2)
		eventuallyIdle(t, w)
		stop()
	}
	publish()
	w.lose(publish, lost...)
	return w, b
}

// Rows that Postgres lost in a failover are in Redis: the next batch would overwrite their history.
func TestRelayStopsWhereRedisIsAheadOfPostgres(t *testing.T) {
	w, b := newBehind(t, slices.Concat(theLog, theRows)...)
	ctx := t.Context()
	ghosts := w.ids()[8:]
	start(t, w.relay())
	b.changes(4)
	stopped := w.stopped(ReasonAhead)
	require.Len(t, w.ids(), 16, "nothing is added")
	require.Equal(t, ghosts, w.ghosts(stopped.Shard))
	require.NoError(t, Resync(ctx, w.pool, stopped.Shard))
	w.eventually(20)
	b.changes(8)
	w.eventually(28)
	var versions []string
	for _, en := range w.entries(0)[16:] {
		if en.Event.Key == "k1" {
			versions = append(versions, string(en.Event.Data))
		}
	}
	require.Equal(t, []string{"3", "4", "5"}, versions, "what was in hand and what came after, in order")
	entries := w.entries(0)
	for i := 1; i < len(entries); i++ {
		require.Positive(t, entries[i].Event.Sequence.Compare(entries[i-1].Event.Sequence), "sequences grow")
	}
}

// The stream's position that a resync took over is of a batch that Postgres never had. When the stream is lost too, all
// that Postgres has is published again, also what the stream already had at the resync.
func TestStreamThatIsLostAfterAResyncIsPublishedAgain(t *testing.T) {
	for name, lost := range map[string][]string{"of which Postgres had the rows": theLog, "of which it had none": slices.Concat(theLog, theRows)} {
		t.Run(name, func(t *testing.T) {
			w, b := newBehind(t, lost...)
			start(t, w.relay())
			b.changes(4)
			require.NoError(t, Resync(t.Context(), w.pool, w.stopped(ReasonAhead).Shard))
			w.eventually(20)
			require.NoError(t, w.rdb.Del(t.Context(), w.topic.StreamKey(0)).Err())
			b.changes(4)
			require.NoError(t, RepublishLost(t.Context(), w.pool, w.stopped(ReasonLoss).Shard))
			b.verify()
			b.verifyEach(2)
		})
	}
}

// The log of batches may lack what the outbox has: then the rows are in Redis under numbers that nobody knows.
func TestRowsWhoseBatchesPostgresLostAreNoGhostsAndDoNotComeAgain(t *testing.T) {
	w, b := newBehind(t, theLog...)
	start(t, w.relay())
	b.changes(4)
	stopped := w.stopped(ReasonAhead)
	require.Empty(t, w.ghosts(stopped.Shard))
	require.NoError(t, Resync(t.Context(), w.pool, stopped.Shard))
	b.verify()
	b.verifyEach(2)
}

// reads counts reads of streams, and the calls of scripts.
type reads struct{ ranges, scripts atomic.Int64 }

func (r *reads) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *reads) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if strings.Contains(cmd.Name(), "range") {
			r.ranges.Add(1)
		}
		return next(ctx, cmd)
	}
}

func (r *reads) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			if cmd.Name() == "evalsha" {
				r.scripts.Add(1)
			}
		}
		return next(ctx, cmds)
	}
}

// A shard may stand still for days, before a stream with millions of entries that Postgres lost.
func TestStreamThatIsAheadIsReadOnceWhileItsShardStandsStill(t *testing.T) {
	w, b := newBehind(t, slices.Concat(theLog, theRows)...)
	seen := &reads{}
	w.rdb.AddHook(seen)
	start(t, w.relay(func(c *RelayConfig) { c.LeaseTTL = time.Minute })) // an owner that takes over reads anew
	b.changes(4)
	w.stopped(ReasonAhead)
	looks, tries := seen.ranges.Load(), seen.scripts.Load()
	require.Positive(t, looks)
	require.Eventually(t, func() bool { return seen.scripts.Load() >= tries+2 }, patience, 10*time.Millisecond, "it tries again")
	require.Equal(t, looks, seen.ranges.Load())
}

// Copies stand at the stream's end, with positions that lie before those of what Postgres lost.
func TestCopiesBehindWhatPostgresLostHideNothing(t *testing.T) {
	w, b := newBehind(t, slices.Concat(theLog, theRows)...)
	ghosts := w.ids()[8:]
	sum, err := Republish(t.Context(), w.pool, w.rdb, RepublishConfig{From: time.Now().Add(-time.Hour)})
	require.NoError(t, err)
	require.EqualValues(t, 8, sum.Rows)
	start(t, w.relay())
	b.changes(4)
	stopped := w.stopped(ReasonAhead)
	require.Equal(t, ghosts, w.ghosts(stopped.Shard))
	require.NoError(t, Resync(t.Context(), w.pool, stopped.Shard))
	w.eventually(16 + 8 + 4)
	require.Equal(t, ghosts, w.ids()[8:16])
}

// eventuallyIdle waits until the status says that everything is in Redis.
func eventuallyIdle(t *testing.T, w *world) {
	t.Helper()
	require.Eventually(t, func() bool {
		status, err := ReadStatus(t.Context(), w.pool)
		require.NoError(t, err)
		for _, s := range status.Shards {
			if !s.Idle() {
				return false
			}
		}
		return true
	}, patience, 20*time.Millisecond)
}
