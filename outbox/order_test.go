package outbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

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

// write runs transactions from several writers, some of them slow, some rolled back, some that wrote long before they
// lock, until each has done n.
func (b bank) write(ctx context.Context, writers, n int) {
	var wg sync.WaitGroup
	for writer := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(writer), 7))
			for range n {
				keys := []string{fmt.Sprint("k", random.IntN(b.keys))}
				err := pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
					if random.IntN(2) == 0 {
						if _, err := tx.Exec(ctx, `INSERT INTO scratch VALUES (1)`); err != nil {
							return err
						}
						if random.IntN(4) == 0 {
							if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, random.Float64()/50); err != nil {
								return err
							}
						}
					}
					for _, key := range keys {
						if err := b.change(ctx, tx, key); err != nil {
							return err
						}
					}
					if random.IntN(10) == 0 {
						return errRollback
					}
					return nil
				})
				if err != nil && err != errRollback && ctx.Err() == nil {
					b.t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

var errRollback = fmt.Errorf("rolled back on purpose")

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

// bySequence reads what has a higher number than the last row it saw.
type bySequence struct{ last int64 }

func (r *bySequence) poll(t *testing.T, tx pgx.Tx) (ids []string) {
	rows, err := tx.Query(t.Context(), query(`SELECT id, event_id FROM {schema}.outbox WHERE id > $1 ORDER BY id`), r.last)
	require.NoError(t, err)
	var id string
	_, err = pgx.ForEachRow(rows, []any{&r.last, &id}, func() error {
		ids = append(ids, id)
		return nil
	})
	require.NoError(t, err)
	return ids
}

// belowHorizon reads in the order of (xid, id) what lies below the oldest running transaction.
type belowHorizon struct{ xid, last int64 }

func (r *belowHorizon) poll(t *testing.T, tx pgx.Tx) (ids []string) {
	rows, err := tx.Query(t.Context(), query(`
SELECT xid::text::bigint, id, event_id FROM {schema}.outbox
WHERE (xid::text::bigint, id) > ($1, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, id`), r.xid, r.last)
	require.NoError(t, err)
	var id string
	_, err = pgx.ForEachRow(rows, []any{&r.xid, &r.last, &id}, func() error {
		ids = append(ids, id)
		return nil
	})
	require.NoError(t, err)
	return ids
}

// Two interleavings that happen all the time. In the first, a transaction that drew its number early commits late. In
// the second, one that wrote early locks the key late: it has the lower transaction number, and the later version.
func TestRelayKeepsTheOrderThatSimplerReadersLose(t *testing.T) {
	// Transaction numbers of other databases of the server would move the horizon.
	server := testenv.PrivatePostgres(t, postgresConfig)
	testenv.Migrate(t, server.URL())
	t.Parallel()
	w := worldOn(t, testenv.Pool(t, server.URL()), testenv.Redis(t), 1)
	b := w.bank(3)
	ctx := t.Context()
	sequence, horizon := &bySequence{}, &belowHorizon{}
	var bySeq, byXid []string
	relay := w.relay()
	start(t, relay)
	require.Eventually(t, func() bool { return len(relay.Owned()) == 8 }, patience, 5*time.Millisecond)
	poll := func() {
		tx, err := w.pool.Begin(ctx)
		require.NoError(t, err)
		defer tx.Rollback(ctx)
		bySeq = append(bySeq, sequence.poll(t, tx)...)
		byXid = append(byXid, horizon.poll(t, tx)...)
	}
	begin := func() pgx.Tx {
		tx, err := w.pool.Begin(ctx)
		require.NoError(t, err)
		return tx
	}
	commit := func(tx pgx.Tx) { require.NoError(t, tx.Commit(ctx)) }

	slow, quick := begin(), begin()
	require.NoError(t, b.change(ctx, slow, "k0"))
	require.NoError(t, b.change(ctx, quick, "k1"))
	commit(quick)
	w.eventually(1) // no wait for the slow one
	poll()
	commit(slow)
	w.eventually(2)
	poll()

	early, late := begin(), begin()
	_, err := early.Exec(ctx, `INSERT INTO scratch VALUES (1)`)
	require.NoError(t, err)
	require.NoError(t, b.change(ctx, late, "k2"))
	commit(late)
	poll()
	require.NoError(t, b.change(ctx, early, "k2"))
	commit(early)
	w.eventually(4)
	poll()

	require.NotContains(t, bySeq, "k0#1", "a reader by sequence loses the late commit")
	require.Less(t, index(byXid, "k2#2"), index(byXid, "k2#1"), "a reader by (xid, id) turns the versions round")
	b.verify()
}

func index(list []string, item string) int {
	for i, s := range list {
		if s == item {
			return i
		}
	}
	return -1
}

func TestEachKeyKeepsItsOrderUnderConcurrentWriters(t *testing.T) {
	w := newWorld(t, 4)
	b := w.bank(16)
	n := 40
	if testenv.IsLong() {
		n = 600
	}
	start(t, w.relay())
	start(t, w.relay())
	b.write(t.Context(), 6, n)
	b.verify()
}

// A transaction that is open for long holds back its own events, and nobody else's.
func TestLongTransactionHoldsBackOnlyItsOwnEvents(t *testing.T) {
	w := newWorld(t, 4)
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
	require.NoError(t, b.change(ctx, long, "k0"))
	require.NoError(t, long.Commit(ctx))
	w.eventually(32)
	b.verify()
}
