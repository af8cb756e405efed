package projection_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVar) != "" {
		childMain()
	}
	testenv.Main(m)
}

// world is a topic and a read model, a ledger in which every event should stand once.
type world struct {
	t     *testing.T
	pool  *pgxpool.Pool
	rdb   *redis.Client
	topic stream.Topic
	next  int64 // the last sequence that was published
}

func newWorld(t *testing.T, partitions int) *world {
	t.Parallel()
	return worldOn(t, testenv.Redis(t), partitions)
}

func worldOn(t *testing.T, rdb *redis.Client, partitions int) *world {
	w := &world{t: t, pool: testenv.Postgres(t), rdb: rdb, topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t), Partitions: partitions}}
	_, err := w.pool.Exec(t.Context(), `CREATE TABLE ledger (n bigint GENERATED ALWAYS AS IDENTITY, event text NOT NULL, key text NOT NULL)`)
	require.NoError(t, err)
	return w
}

const projectionName = "ledger"

// record is an Apply that writes the events into the ledger.
func record(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
	batch := &pgx.Batch{}
	for _, e := range events {
		batch.Queue(`INSERT INTO ledger (event, key) VALUES ($1, $2)`, e.ID, e.Key)
	}
	return tx.SendBatch(ctx, batch).Close()
}

func (w *world) runner(edit ...func(*projection.Config)) *projection.Runner {
	w.t.Helper()
	config := projection.Config{Name: projectionName, Topics: []stream.Topic{w.topic}, Apply: record, MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond}
	for _, e := range edit {
		e(&config)
	}
	r, err := projection.NewRunner(w.pool, w.rdb, config)
	require.NoError(w.t, err)
	return r
}

// add writes an event into partition p, and returns the entry's ID.
func (w *world) add(p int, e stream.Event) string {
	w.t.Helper()
	return w.addTo(w.rdb, p, "*", e)
}

func (w *world) addTo(rdb *redis.Client, p int, id string, e stream.Event) string {
	w.t.Helper()
	args := []any{"xadd", w.topic.StreamKey(p), id}
	got, err := rdb.Do(w.t.Context(), e.AppendFields(args)...).Text()
	require.NoError(w.t, err)
	return got
}

// direct makes an event as a Publisher would write it, with an id to remember.
func direct(id string) stream.Event {
	e := stream.NewEvent("order.placed", "key-"+id, stream.ContentTypeJSON, []byte(`{"n":1}`))
	e.ID = id
	return e
}

// relayed makes an event as the relay would write it.
func (w *world) relayed(id string) stream.Event {
	w.next++
	return at(direct(id), w.next)
}

func at(e stream.Event, sequence int64) stream.Event {
	e.Sequence = stream.Position{Batch: 1 + sequence/10, Row: sequence}
	return e
}

func (w *world) addRelayed(p int, ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		w.add(p, w.relayed(id))
	}
}

func (w *world) addDirect(p int, ids ...string) (entries []string) {
	w.t.Helper()
	for _, id := range ids {
		entries = append(entries, w.add(p, direct(id)))
	}
	return entries
}

// drain applies everything that is there.
func drain(ctx context.Context, r *projection.Runner) (projection.Result, error) {
	var total projection.Result
	for {
		result, err := r.RunOnce(ctx)
		total.Events += result.Events
		total.Skipped += result.Skipped
		total.Malformed += result.Malformed
		if err != nil || result == (projection.Result{}) {
			return total, err
		}
	}
}

func (w *world) drain(r *projection.Runner) projection.Result {
	w.t.Helper()
	result, err := drain(w.t.Context(), r)
	require.NoError(w.t, err)
	return result
}

// ledger returns what was applied, in order.
func (w *world) ledger() []string {
	w.t.Helper()
	return ledgerOf(w.t, w.pool)
}

func ledgerOf(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT event FROM ledger ORDER BY n`)
	require.NoError(t, err)
	events, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return events
}

func (w *world) checkpoint(p int) projection.Checkpoint {
	w.t.Helper()
	all, err := projection.Checkpoints(w.t.Context(), w.pool, projectionName)
	require.NoError(w.t, err)
	for _, c := range all {
		if c.Stream == w.topic.StreamKey(p) {
			return c
		}
	}
	require.Fail(w.t, "no checkpoint", "partition %d", p)
	return projection.Checkpoint{}
}

// group returns the projection's group on partition p.
func (w *world) group(p int) redis.XInfoGroup {
	w.t.Helper()
	groups, err := w.rdb.XInfoGroups(w.t.Context(), w.topic.StreamKey(p)).Result()
	require.NoError(w.t, err)
	for _, g := range groups {
		if g.Name == projectionName {
			return g
		}
	}
	require.Fail(w.t, "no group", "partition %d", p)
	return redis.XInfoGroup{}
}

func numbered(prefix string, from, to int) []string {
	ids := make([]string, 0, to-from+1)
	for i := from; i <= to; i++ {
		ids = append(ids, fmt.Sprintf("%s%d", prefix, i))
	}
	return ids
}

// start runs r in the background; stop ends it and returns what Run returned.
func start(t *testing.T, r *projection.Runner) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			select {
			case err = <-done:
			case <-time.After(30 * time.Second):
				err = errors.New("Run did not end")
			}
		})
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

// eventually waits until the ledger holds n rows, or more.
func (w *world) eventually(n int) {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return len(w.ledger()) >= n }, 30*time.Second, 5*time.Millisecond)
}
