package tests

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

const (
	patience = 30 * time.Second
	tick     = 10 * time.Millisecond
)

// bank is accounts, whose every change is an event, and a projection that adds the changes up. Adding is
// not idempotent: a change that is lost or applied twice shows in the sum.
type bank struct {
	t        *testing.T
	pool     *pgxpool.Pool
	topic    stream.Topic
	accounts int
}

var deposited = stream.Define[int64]("deposited")

func newBank(t *testing.T) *bank {
	b := &bank{t: t, pool: testenv.Postgres(t), accounts: 7, topic: stream.Topic{Name: "bank", Namespace: testenv.Namespace(t), Partitions: 3}}
	_, err := b.pool.Exec(t.Context(), `CREATE TABLE account (id text PRIMARY KEY, cents bigint); CREATE TABLE total (id text PRIMARY KEY, cents bigint)`)
	require.NoError(t, err)
	return b
}

// deposit changes every account n times, each change a transaction with its event.
func (b *bank) deposit(n int) {
	b.t.Helper()
	for i := range n * b.accounts {
		id, cents := fmt.Sprint("a", i%b.accounts), int64(i+1)
		require.NoError(b.t, pgx.BeginFunc(b.t.Context(), b.pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(b.t.Context(), `INSERT INTO account VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET cents = account.cents + excluded.cents`, id, cents)
			if err != nil {
				return err
			}
			return outbox.Publish(b.t.Context(), tx, b.topic, deposited.Event(id, cents))
		}))
	}
}

func (b *bank) sums(table string) map[string]int64 {
	rows, err := b.pool.Query(context.Background(), `SELECT id, cents FROM `+table)
	require.NoError(b.t, err)
	sums := map[string]int64{}
	var id string
	var cents int64
	_, err = pgx.ForEachRow(rows, []any{&id, &cents}, func() error { sums[id] = cents; return nil })
	require.NoError(b.t, err)
	return sums
}

// exact waits until the projection's totals are the accounts'.
func (b *bank) exact() {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return maps.Equal(b.sums("account"), b.sums("total")) }, patience, tick, "the totals are not the accounts'")
}

// run runs a relay and the projection until the test ends.
func (b *bank) run(rdb redis.UniversalClient, seen outbox.Observer) {
	quiet := slog.New(slog.DiscardHandler)
	relay, err := outbox.NewRelay(b.pool, rdb, outbox.RelayConfig{Logger: quiet, Observer: seen})
	require.NoError(b.t, err)
	mux := projection.NewMux()
	projection.Handle(mux, deposited, func(ctx context.Context, tx pgx.Tx, e stream.Event, cents int64) error {
		_, err := tx.Exec(ctx, `INSERT INTO total VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET cents = total.cents + excluded.cents`, e.Key, cents)
		return err
	})
	runner, err := projection.NewRunner(b.pool, rdb, projection.Config{Name: "totals", Topics: []stream.Topic{b.topic}, Mux: mux, Logger: quiet})
	require.NoError(b.t, err)
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan error, 2)
	for _, run := range []func(context.Context) error{relay.Run, runner.Run} {
		go func() { ended <- run(ctx) }()
	}
	b.t.Cleanup(func() {
		cancel()
		require.NoError(b.t, <-ended)
		require.NoError(b.t, <-ended)
	})
}

// moments counts what a relay tells.
type moments struct {
	mu    sync.Mutex
	times map[outbox.Moment]int
}

func (m *moments) Observe(_ context.Context, o outbox.Observation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times[o.Moment]++
}

func (m *moments) count(moment outbox.Moment) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.times[moment]
}

// A replica that lags is promoted after the relay closed batches that it lacks, and after the projection
// applied them. The next publish finds the gap and fills it; the projection, which meets the republished
// events again under other IDs, counts none twice and misses none.
func TestTotalsAreExactAfterAFailoverThatLostATail(t *testing.T) {
	t.Parallel()
	master := testenv.PrivateRedis(t, servers.RedisConfig{})
	replica := testenv.PrivateRedis(t, servers.RedisConfig{ReplicaOf: master.Addr()})
	var addr atomic.Value // of the one that is master, as a Sentinel would tell
	addr.Store(master.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: "follows", Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr.Load().(string))
	}})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	replicaClient := testenv.RedisClient(t, replica.URL())
	b := newBank(t)
	lengths := func(rdb *redis.Client) (n int64) {
		for _, key := range b.topic.StreamKeys() {
			n += rdb.XLen(t.Context(), key).Val()
		}
		return n
	}
	seen := &moments{times: map[outbox.Moment]int{}}
	b.run(rdb, seen)

	b.deposit(10)
	b.exact()
	require.Eventually(t, func() bool { return lengths(replicaClient) == lengths(rdb) }, patience, tick, "the replica does not catch up")
	require.NoError(t, replicaClient.ReplicaOf(t.Context(), "NO", "ONE").Err()) // it misses everything from here on
	for range 3 {
		b.deposit(5)
		b.exact() // so the batches are closed, and applied
	}
	require.EqualValues(t, 25*b.accounts, lengths(rdb))
	require.Less(t, lengths(replicaClient), lengths(rdb), "the replica lags")
	require.Zero(t, seen.count(outbox.Rewound))

	addr.Store(replica.Addr())
	require.NoError(t, master.Kill())
	b.deposit(1)
	require.Eventually(t, func() bool { return lengths(replicaClient) >= int64(26*b.accounts) }, patience, tick, "the gap is not filled")
	b.exact()
	require.NotZero(t, seen.count(outbox.Rewound))
	require.Zero(t, seen.count(outbox.Stopped))
	require.EqualValues(t, 26*b.accounts, lengths(replicaClient), "each event once")
	b.deposit(5)
	b.exact()
	for _, key := range b.topic.StreamKeys() {
		require.Eventually(t, func() bool {
			groups, err := rdb.XInfoGroups(t.Context(), key).Result()
			return err == nil && len(groups) == 1 && groups[0].Lag == 0
		}, patience, tick, "%s has a lag", key)
	}
}
