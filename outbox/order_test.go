package outbox

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// bank is rows with versions: each committed change of a row publishes its version, so that the versions of a key must
// come as 1, 2, 3, …
type bank struct {
	*world
	keys int
}

func (w *world) bank(keys int) bank {
	w.t.Helper()
	require.NoError(w.t, Declare(w.t.Context(), w.pool, w.topic))
	_, err := w.pool.Exec(w.t.Context(), `CREATE TABLE bank (key text PRIMARY KEY, version int NOT NULL); CREATE TABLE scratch (n int)`)
	require.NoError(w.t, err)
	for k := range keys {
		_, err := w.pool.Exec(w.t.Context(), `INSERT INTO bank VALUES ($1, 0)`, fmt.Sprint("k", k))
		require.NoError(w.t, err)
	}
	return bank{w, keys}
}

// change is a business transaction as they come: it writes something (and so has its number), locks the key by
// changing its row, and publishes the version that it made.
func (b bank) change(ctx context.Context, tx pgx.Tx, key string) error {
	var version int
	if err := tx.QueryRow(ctx, `UPDATE bank SET version = version + 1 WHERE key = $1 RETURNING version`, key).Scan(&version); err != nil {
		return err
	}
	e := event(key, key+"#"+strconv.Itoa(version))
	e.Data = []byte(strconv.Itoa(version))
	return Publish(ctx, tx, b.topic, e)
}

// verify waits until the streams hold every committed version, and fails if one is missing, there twice, or out of
// order.
func (b bank) verify() {
	b.t.Helper()
	want := map[string]int{}
	rows, err := b.pool.Query(b.t.Context(), `SELECT key, version FROM bank`)
	require.NoError(b.t, err)
	var key string
	var version, total int
	_, err = pgx.ForEachRow(rows, []any{&key, &version}, func() error {
		want[key] = version
		total += version
		return nil
	})
	require.NoError(b.t, err)
	require.Eventually(b.t, func() bool { return len(b.ids()) >= total }, 3*patience, 20*time.Millisecond, "want %d", total)
	got := map[string]int{}
	for p := range b.topic.Count() {
		var last stream.Position
		for _, en := range b.entries(p) {
			got[en.Event.Key]++
			require.Equal(b.t, strconv.Itoa(got[en.Event.Key]), string(en.Event.Data), "version of %s in %s", en.Event.Key, en.Stream)
			require.Positive(b.t, en.Event.Sequence.Compare(last), "sequence grows")
			last = en.Event.Sequence
		}
	}
	for key, version := range want {
		require.Equal(b.t, version, got[key], "versions of %s", key)
	}
}

// A transaction that is open for long holds back its own events, and nobody else's; they are read otherwise where many
// transactions lie between.
func TestLongTransactionHoldsBackOnlyItsOwnEvents(t *testing.T) {
	for name, between := range map[string]int{"near": 0, "far": nearBy + 1} {
		t.Run(name, func(t *testing.T) { testLongTransaction(t, between) })
	}
}

func testLongTransaction(t *testing.T, between int) {
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{}) // other tests have transactions
	testenv.Migrate(t, server.URL())
	w := worldOn(t, testenv.Pool(t, server.URL()), testenv.Redis(t), 4)
	b := w.bank(8)
	start(t, w.relay())
	ctx := t.Context()
	long, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	defer long.Rollback(ctx)
	require.NoError(t, b.change(ctx, long, "k0"))
	other := bank{w, 8}
	for i := range 30 {
		require.NoError(t, InTx(ctx, w.pool, func(tx pgx.Tx) error { return other.change(ctx, tx, fmt.Sprint("k", 1+i%7)) }))
	}
	w.eventually(30)
	_, err = w.pool.Exec(ctx, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`, between))
	require.NoError(t, err)
	require.NoError(t, InTx(ctx, w.pool, func(tx pgx.Tx) error { return other.change(ctx, tx, "k1") })) // a batch behind them
	w.eventually(31)
	require.NoError(t, b.change(ctx, long, "k0"))
	require.NoError(t, long.Commit(ctx))
	w.eventually(33)
	b.verify()
}

// faults is a hook that has something happen before some of the relay's pipelines.
type faults struct {
	pipelines atomic.Int32
	before    map[int32]func() error
}

func (f *faults) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f *faults) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (f *faults) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() != "evalsha" {
			return next(ctx, cmds)
		}
		if before := f.before[f.pipelines.Add(1)]; before != nil {
			if err := before(); err != nil {
				for _, cmd := range cmds {
					cmd.SetErr(err)
				}
				return err
			}
		}
		return next(ctx, cmds)
	}
}

// The calls of a page are made while the page before is on its way: where that fails they are made anew.
func TestPagesBehindOneThatFailsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	plain := testenv.RedisClient(t, server.URL())
	w := worldOn(t, testenv.Postgres(t), plain, 1)
	const n = 6*pageRows + 10
	want := make([]string, n)
	for i := range want {
		want[i] = strconv.Itoa(i)
	}
	w.publish(events("k", want...)...)
	key := w.topic.StreamKey(0)
	f := &faults{before: map[int32]func() error{
		2: func() error { return io.ErrUnexpectedEOF },
		4: func() error { return plain.ScriptFlush(t.Context()).Err() },
		6: func() error { // the stream loses its last rows
			entries := w.entries(0)
			for _, en := range entries[len(entries)-7:] {
				if err := plain.XDel(t.Context(), key, en.ID.String()).Err(); err != nil {
					return err
				}
			}
			last := entries[len(entries)-8].Event.Sequence
			return plain.HSet(t.Context(), stream.KeyRelay.Key(key, ""), "row", last.Row).Err()
		},
	}}
	hooked := testenv.RedisClient(t, server.URL())
	hooked.AddHook(f)
	start(t, worldOn(t, w.pool, hooked, 1).relay())
	w.eventually(n)
	require.Equal(t, want, w.ids())
	require.GreaterOrEqual(t, f.pipelines.Load(), int32(9), "each fault cost a pipeline")
}

// A relay that takes over publishes the shard's last batch again: what the streams hold is not sent again.
func TestRelayThatTakesOverSendsNothingThatIsThere(t *testing.T) {
	w := newWorld(t, 1)
	ids := make([]string, 8*pageRows)
	for i := range ids {
		ids[i] = strconv.Itoa(i)
	}
	w.publish(events("k", ids...)...)
	stop := start(t, w.relay())
	w.eventually(len(ids))
	stop()
	f := &faults{}
	w.rdb.(*redis.Client).AddHook(f)
	start(t, w.relay())
	w.publish(event("k", "next"))
	w.eventually(len(ids) + 1)
	require.LessOrEqual(t, f.pipelines.Load(), int32(4), "two pages before the first reply is there, and the next event")
}
