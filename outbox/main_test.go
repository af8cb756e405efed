package outbox

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// world is an outbox and a Redis of the test's own.
type world struct {
	t     *testing.T
	pool  *pgxpool.Pool
	rdb   redis.UniversalClient
	topic stream.Topic
}

func newWorld(t *testing.T, partitions int) *world {
	t.Parallel()
	return worldOn(t, testenv.Postgres(t), testenv.Redis(t), partitions)
}

func worldOn(t *testing.T, pool *pgxpool.Pool, rdb redis.UniversalClient, partitions int) *world {
	return &world{t: t, pool: pool, rdb: rdb, topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t), Partitions: partitions}}
}

// publish commits the events in one transaction.
func (w *world) publish(events ...stream.Event) {
	w.t.Helper()
	require.NoError(w.t, InTx(w.t.Context(), w.pool, func(tx pgx.Tx) error {
		return Publish(w.t.Context(), tx, w.topic, events...)
	}))
}

func event(key, id string) stream.Event {
	e := stream.NewEvent("order.placed", key, stream.ContentTypeJSON, []byte(`{"n":1}`))
	e.ID = id
	return e
}

func events(key string, ids ...string) []stream.Event {
	all := make([]stream.Event, len(ids))
	for i, id := range ids {
		all[i] = event(key, id)
	}
	return all
}

// relay returns a relay with short times, that tells the test's observer.
func (w *world) relay(edit ...func(*RelayConfig)) *Relay {
	w.t.Helper()
	config := RelayConfig{
		LeaseTTL: time.Second, PollMax: 20 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(testWriter{w.t}, nil)),
	}
	for _, e := range edit {
		e(&config)
	}
	r, err := NewRelay(w.pool, w.rdb, config)
	require.NoError(w.t, err)
	return r
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if os.Getenv("STREAMKEEL_TEST_VERBOSE") != "" {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}

// start runs a relay until stop is called, or the test ends.
func start(t *testing.T, r *Relay) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				require.NoError(t, err)
			case <-time.After(30 * time.Second):
				require.NoError(t, errors.New("Run did not end"))
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// entries returns what partition p's stream holds.
func (w *world) entries(p int) []stream.Entry {
	w.t.Helper()
	return entriesOf(w.t, w.rdb, w.topic.StreamKey(p))
}

func entriesOf(t *testing.T, rdb redis.UniversalClient, key string) []stream.Entry {
	t.Helper()
	messages, err := rdb.XRange(t.Context(), key, "-", "+").Result()
	require.NoError(t, err)
	all := make([]stream.Entry, len(messages))
	for i, m := range messages {
		all[i].Stream = key
		all[i].ID, err = stream.ParseID(m.ID)
		require.NoError(t, err)
		text := func(name string) string { v, _ := m.Values[name].(string); return v }
		all[i].Event.ID, all[i].Event.Key, all[i].Event.Type = text("id"), text("subject"), text("type")
		all[i].Event.Data = []byte(text("data"))
		if sequence := text("sequence"); sequence != "" {
			all[i].Event.Sequence, err = stream.ParsePosition(sequence)
			require.NoError(t, err)
		}
	}
	return all
}

// ids returns the event ids that the topic's streams hold, partition by partition.
func (w *world) ids() []string {
	w.t.Helper()
	var ids []string
	for p := range w.topic.Count() {
		for _, en := range w.entries(p) {
			ids = append(ids, en.Event.ID)
		}
	}
	return ids
}

const patience = time.Minute

// eventually waits until the streams hold n entries.
func (w *world) eventually(n int) {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return len(w.ids()) >= n }, patience, 10*time.Millisecond, "entries")
	require.Len(w.t, w.ids(), n)
}

// recorder is an Observer that keeps what it is told.
type recorder struct{ seen atomic.Pointer[[]Observation] }

func (r *recorder) Observe(_ context.Context, o Observation) {
	for {
		old := r.seen.Load()
		var all []Observation
		if old != nil {
			all = append(all, *old...)
		}
		all = append(all, o)
		if r.seen.CompareAndSwap(old, &all) {
			return
		}
	}
}

// eventually waits until the moment is told: the tables may show it before.
func (r *recorder) eventually(t testing.TB, m Moment) {
	t.Helper()
	require.Eventually(t, func() bool { return len(r.of(m)) > 0 }, patience, 10*time.Millisecond, "nobody was told: %s", m)
}

func (r *recorder) of(m Moment) (list []Observation) {
	if all := r.seen.Load(); all != nil {
		for _, o := range *all {
			if o.Moment == m {
				list = append(list, o)
			}
		}
	}
	return list
}
