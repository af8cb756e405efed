package outbox

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// keepChanging commits changes until stop is called. What is under way is finished: a commit that is cut off may come
// after whoever looks what there is.
func (b bank) keepChanging() (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	var wg sync.WaitGroup
	for writer := range 2 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				_ = pgx.BeginFunc(b.t.Context(), b.pool, func(tx pgx.Tx) error {
					return b.change(b.t.Context(), tx, fmt.Sprint("k", (i*2+writer)%b.keys))
				})
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

func TestRowsWaitAndLeasesAreKeptWhileRedisHangs(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	w := worldOn(t, testenv.Postgres(t), testenv.RedisClient(t, server.URL(), func(o *redis.Options) { o.ReadTimeout = 300 * time.Millisecond }), 3)
	b := w.bank(12)
	seen := &recorder{}
	r := w.relay(func(c *RelayConfig) { c.Observer, c.LeaseTTL = seen, 2*time.Second })
	epochs := func() (epochs []int64) {
		status, err := ReadStatus(t.Context(), w.pool)
		require.NoError(t, err)
		for _, s := range status.Shards {
			epochs = append(epochs, s.Epoch)
		}
		return epochs
	}
	start(t, r)
	stop := b.keepChanging()
	w.eventuallyMore(50)
	owned := epochs()
	require.NoError(t, server.Pause())
	until := time.Now().Add(3 * time.Second) // longer than a lease
	seen.eventually(t, Waiting)
	require.Eventually(t, func() bool { return time.Now().After(until) }, patience, 50*time.Millisecond)
	require.Equal(t, owned, epochs(), "the leases are kept")
	require.NoError(t, server.Resume())
	n := len(w.ids())
	w.eventuallyMore(n + 50)
	stop()
	b.verify()
	require.Empty(t, seen.of(Stopped))
}

// eventuallyMore waits until the streams hold n entries or more.
func (w *world) eventuallyMore(n int) {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return len(w.ids()) >= n }, patience, 10*time.Millisecond)
}

func TestRowsWaitWhileRedisHasNoMemory(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	w := worldOn(t, testenv.Postgres(t), testenv.RedisClient(t, server.URL()), 3)
	b := w.bank(12)
	seen := &recorder{}
	start(t, w.relay(func(c *RelayConfig) { c.Observer = seen }))
	b.verifyEach(1)
	require.NoError(t, w.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
	b.changes(12)
	seen.eventually(t, Waiting)
	require.Len(t, w.ids(), 12)
	require.NoError(t, w.rdb.ConfigSet(t.Context(), "maxmemory", "0").Err())
	b.verify()
	require.Empty(t, seen.of(Stopped))
}

// Relays of two databases would mix their positions up: the second one stops.
func TestStreamsOfAnotherDatabaseAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	b := w.bank(4)
	start(t, w.relay())
	b.verifyEach(1)
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{})
	testenv.Migrate(t, server.URL())
	other := &world{t: t, pool: testenv.Pool(t, server.URL()), rdb: w.rdb, topic: w.topic}
	start(t, other.relay())
	other.publish(event("k", "foreign"))
	other.stopped(ReasonForeign)
	require.NotContains(t, w.ids(), "foreign")
	b.verifyEach(1)
}

func TestRelayWorksOnACluster(t *testing.T) {
	t.Parallel()
	cluster := testenv.Cluster(t)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer rdb.Close()
	w := worldOn(t, testenv.Postgres(t), rdb, 16)
	b := w.bank(32)
	start(t, w.relay())
	b.verifyEach(5)
}
