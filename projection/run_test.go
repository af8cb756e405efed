package projection_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

func TestStopFinishesTheBatchInWork(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, numbered("e", 1, 5)...)
	reached, goOn := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	r := w.runner(func(c *projection.Config) {
		c.Apply = func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
			close(reached)
			<-goOn
			return record(ctx, tx, events)
		}
	})
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-reached
	cancel()
	close(goOn)
	require.NoError(t, <-done)
	require.Equal(t, numbered("e", 1, 5), w.ledger())
	require.EqualValues(t, 0, w.group(0).Lag)
}

func TestStopRollsBackWhatOutlastsShutdownTimeout(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, "e1")
	reached := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var cause error
	r := w.runner(func(c *projection.Config) {
		c.ShutdownTimeout = 50 * time.Millisecond
		c.Apply = func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
			if err := record(ctx, tx, events); err != nil {
				return err
			}
			close(reached)
			<-ctx.Done()
			cause = context.Cause(ctx)
			return nil
		}
	})
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-reached
	cancel()
	require.NoError(t, <-done)
	require.ErrorIs(t, cause, projection.ErrStopped)
	require.Empty(t, w.ledger())
	w.drain(w.runner())
	require.Equal(t, []string{"e1"}, w.ledger())
}

func TestRunnerRunsOnce(t *testing.T) {
	w := newWorld(t, 1)
	r := w.runner()
	stop := start(t, r)
	w.addDirect(0, "e1")
	w.eventually(1)
	_, err := r.RunOnce(t.Context())
	require.ErrorIs(t, err, projection.ErrRunning)
	require.ErrorIs(t, r.Run(t.Context()), projection.ErrRunning)
	require.NoError(t, stop())
}

func TestOutageOfRedisIsWaitedFor(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{AppendOnly: true})
	w := worldOn(t, testenv.RedisClient(t, server.URL()), 2)
	require.NoError(t, server.Kill())
	seen := &moments{}
	stop := start(t, w.runner(func(c *projection.Config) { c.Observer = seen })) // starts without Redis
	for round := range 2 {
		require.Eventually(t, func() bool { return seen.count(projection.Waiting) > round }, 30*time.Second, 5*time.Millisecond)
		require.NoError(t, server.Start(t.Context()))
		require.Eventually(t, func() bool { return w.rdb.Ping(t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
		w.addDirect(round, numbered("e", round*3+1, round*3+3)...)
		w.eventually(round*3 + 3)
		if round == 0 {
			waited := seen.count(projection.Waiting)
			require.NoError(t, server.Kill())
			require.Eventually(t, func() bool { return seen.count(projection.Waiting) > waited }, 30*time.Second, 5*time.Millisecond)
		}
	}
	require.NoError(t, stop())
	require.Equal(t, numbered("e", 1, 6), w.ledger())
	require.Zero(t, seen.count(projection.Failed), "an outage is no attempt")
}

func TestOutageOfPostgresIsWaitedForAndCountsNoAttempt(t *testing.T) {
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{})
	testenv.Migrate(t, server.URL())
	w := &world{t: t, pool: testenv.Pool(t, server.URL()), rdb: testenv.Redis(t), topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}}
	_, err := w.pool.Exec(t.Context(), `CREATE TABLE ledger (n bigint GENERATED ALWAYS AS IDENTITY, event text, key text)`)
	require.NoError(t, err)
	seen := &moments{}
	inApply, goOn := make(chan struct{}), make(chan struct{})
	first := true
	r := w.runner(func(c *projection.Config) {
		c.Observer, c.MaxAttempts = seen, 1
		c.Apply = func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
			if first { // the server goes away in the middle of this transaction
				first = false
				close(inApply)
				<-goOn
			}
			if err := record(ctx, tx, events); err != nil {
				return fmt.Errorf("no cause left to see: %s", err) //nolint:errorlint // on purpose
			}
			return nil
		}
	})
	w.addDirect(0, "e1")
	stop := start(t, r)
	<-inApply
	require.NoError(t, server.StopImmediate())
	close(goOn)
	require.Eventually(t, func() bool { return seen.count(projection.Waiting) >= 3 }, 30*time.Second, 5*time.Millisecond)
	require.NoError(t, server.Start(t.Context()))
	w.addDirect(0, "e2")
	w.eventually(2)
	require.NoError(t, stop())
	require.Equal(t, []string{"e1", "e2"}, w.ledger())
	require.Zero(t, seen.count(projection.Failed))
}

func TestSeveralTopicsAreReadTogether(t *testing.T) {
	w := newWorld(t, 2)
	other := stream.Topic{Name: "payments", Namespace: w.topic.Namespace, Partitions: 3}
	stop := start(t, w.runner(func(c *projection.Config) { c.Topics = topics(w.topic, other) }))
	w.addDirect(1, "o1")
	orders := w.topic
	w.topic = other
	w.addDirect(2, "p1", "p2")
	w.topic = orders
	w.eventually(3)
	require.NoError(t, stop())
	require.ElementsMatch(t, []string{"o1", "p1", "p2"}, w.ledger())
}

func TestClusterIsReadPartitionByPartition(t *testing.T) {
	t.Parallel()
	cluster := testenv.Cluster(t)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	t.Cleanup(func() { _ = rdb.Close() })
	w := &world{t: t, pool: testenv.Postgres(t), topic: stream.Topic{Name: "orders", Namespace: "ns", Partitions: 6}}
	_, err := w.pool.Exec(t.Context(), `CREATE TABLE ledger (n bigint GENERATED ALWAYS AS IDENTITY, event text, key text)`)
	require.NoError(t, err)
	r, err := projection.NewRunner(w.pool, rdb, projection.Config{Name: projectionName, Topics: topics(w.topic), Apply: record})
	require.NoError(t, err)
	publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	var ids []string
	publish := func(n int) {
		for range n {
			e := direct(fmt.Sprint("e", len(ids)))
			ids = append(ids, e.ID)
			_, err := publisher.Publish(t.Context(), w.topic, e)
			require.NoError(t, err)
		}
	}
	publish(50)
	result, err := drain(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, 50, result.Events)
	stop := start(t, r)
	publish(50)
	w.eventually(100)
	require.NoError(t, stop())
	require.ElementsMatch(t, ids, w.ledger())
}

func TestTooFewConnectionsAreRefused(t *testing.T) {
	t.Parallel()
	w := worldOn(t, testenv.Redis(t, func(o *redis.Options) { o.PoolSize = 1 }), 1)
	require.ErrorContains(t, w.runner().Run(t.Context()), "PoolSize 1 must be at least 2")
}

func TestMissingTablesAreNamed(t *testing.T) {
	w := newWorld(t, 1)
	_, err := w.pool.Exec(t.Context(), `DROP TABLE streamkeel.projection_checkpoint`)
	require.NoError(t, err)
	require.ErrorContains(t, w.runner().Run(t.Context()), "apply the migrations")
}

func TestAnotherNumberOfPartitionsIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	require.NoError(t, stream.Declare(t.Context(), w.rdb, w.topic))
	w.topic.Partitions = 2
	require.ErrorIs(t, w.runner().Run(t.Context()), stream.ErrPartitionMismatch)
}

func TestKeyOfAnotherTypeHalts(t *testing.T) {
	w := newWorld(t, 1)
	require.NoError(t, w.rdb.Set(t.Context(), w.topic.StreamKey(0), "x", 0).Err())
	require.ErrorContains(t, w.runner().Run(t.Context()), "WRONGTYPE")
}

func TestFullRedisKeepsTheProjectionGoing(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	w := worldOn(t, testenv.RedisClient(t, server.URL()), 1)
	r := w.runner()
	w.addDirect(0, "e1")
	w.drain(r)
	w.addDirect(0, "e2", "e3")
	require.NoError(t, w.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
	w.drain(r)
	require.Equal(t, numbered("e", 1, 3), w.ledger())
	require.EqualValues(t, 0, w.group(0).Lag)
}
