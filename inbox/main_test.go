package inbox_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVar) != "" {
		childMain()
	}
	testenv.Main(m)
}

const (
	patience = 30 * time.Second
	group    = "billing"
)

// world is a topic, and a database with a ledger of effects.
type world struct {
	t     *testing.T
	pool  *pgxpool.Pool
	rdb   *redis.Client
	topic stream.Topic
}

func newWorld(t *testing.T) *world {
	t.Parallel()
	return worldOn(t, testenv.Postgres(t))
}

func worldOn(t *testing.T, pool *pgxpool.Pool) *world {
	t.Helper()
	_, err := pool.Exec(t.Context(), `CREATE TABLE ledger (event text NOT NULL)`)
	require.NoError(t, err)
	return &world{t: t, pool: pool, rdb: testenv.Redis(t), topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}}
}

// record is the effect.
func record(ctx context.Context, tx pgx.Tx, e stream.Event) error {
	_, err := tx.Exec(ctx, `INSERT INTO ledger VALUES ($1)`, e.ID)
	return err
}

// add writes an event into the stream, as often as it is called.
func (w *world) add(e stream.Event) {
	w.t.Helper()
	e.Stamp(w.t.Context(), w.topic)
	require.NoError(w.t, w.rdb.Do(w.t.Context(), e.AppendFields([]any{"xadd", w.topic.StreamKey(0), "*"})...).Err())
}

func newEvent(id string) stream.Event {
	e := stream.NewEvent("order.placed", "key", stream.ContentTypeJSON, []byte(`{"n":1}`))
	e.ID, e.Source = id, "shop"
	return e
}

// delivery returns the context of a delivery to the group.
func delivery(ctx context.Context) context.Context {
	return consumergroup.WithMetadata(ctx, consumergroup.Metadata{Group: group, Topic: "orders"})
}

// consume runs a consumer until the test ends.
func (w *world) consume(h consumergroup.Handler, edit ...func(*consumergroup.Config)) {
	w.t.Helper()
	config := consumergroup.Config{
		Topics: []stream.Topic{w.topic}, Group: group, Handler: h, Concurrency: 4,
		Limits: pel.Limits{MinIdle: pel.MinMinIdle},
		Retry:  consumergroup.Policy{MaxAttempts: 3, MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond},
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, e := range edit {
		e(&config)
	}
	c, err := consumergroup.New(w.rdb, config)
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(w.t, err)
		case <-time.After(2 * patience):
			require.NoError(w.t, errors.New("Run did not return"))
		}
	})
}

// settled waits until the group has read n entries and nothing is on its way.
func (w *world) settled(n int64) {
	w.t.Helper()
	k := pel.KeysOf(w.topic.StreamKey(0), group)
	require.Eventually(w.t, func() bool {
		tx := w.rdb.TxPipeline() // an attempt that fails moves the entry from one to the other
		info, due, retry := tx.XInfoGroups(w.t.Context(), k.Stream), tx.ZCard(w.t.Context(), k.Due), tx.XLen(w.t.Context(), k.Retry)
		_, err := tx.Exec(w.t.Context())
		groups := info.Val()
		return err == nil && len(groups) == 1 && groups[0].EntriesRead == n && groups[0].Pending == 0 && due.Val() == 0 && retry.Val() == 0
	}, patience, 10*time.Millisecond, "the group does not come to rest")
}

func (w *world) letters() int64 {
	return w.rdb.XLen(w.t.Context(), pel.KeysOf(w.topic.StreamKey(0), group).Dead).Val()
}

func (w *world) count(sql string, args ...any) (n int) {
	w.t.Helper()
	require.NoError(w.t, w.pool.QueryRow(w.t.Context(), sql, args...).Scan(&n))
	return n
}

// effects counts how often the event's effect is in the ledger.
func (w *world) effects(id string) int {
	w.t.Helper()
	return w.count(`SELECT count(*) FROM ledger WHERE event = $1`, id)
}

func (w *world) rows() int {
	w.t.Helper()
	return w.count(`SELECT count(*) FROM streamkeel.inbox`)
}

// handler is inbox.Handler, never nil.
func (w *world) handler(fn func(context.Context, pgx.Tx, stream.Event) error) consumergroup.Handler {
	w.t.Helper()
	h := inbox.Handler(w.pool, fn)
	require.NotNil(w.t, h)
	return h
}
