package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// The variables by which a test hands a child process its work, and where it is to die.
const (
	childVar    = "STREAMKEEL_INBOX_CHILD"
	postgresVar = "STREAMKEEL_INBOX_POSTGRES"
	redisVar    = "STREAMKEEL_INBOX_REDIS"
	topicVar    = "STREAMKEEL_INBOX_NAMESPACE"
)

func die() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }

// childMain runs a consumer that kills its process at the named point, with its first event.
func childMain() {
	ctx := context.Background()
	point := os.Getenv(childVar)
	fail := func(err error) { fmt.Fprintln(os.Stderr, err); os.Exit(3) }
	time.AfterFunc(time.Minute, func() { fail(errors.New("the child never came to where it is to die")) })
	pool, err := pgxpool.New(ctx, os.Getenv(postgresVar))
	if err != nil {
		fail(err)
	}
	opts, err := redis.ParseURL(os.Getenv(redisVar))
	if err != nil {
		fail(err)
	}
	rdb := redis.NewClient(opts)
	if point == "after the effect" {
		c, err := inbox.NewClaims(rdb, inbox.ClaimsConfig{Namespace: os.Getenv(topicVar), Lease: time.Second})
		if err != nil {
			fail(err)
		}
		_, err = c.Do(ctx, group, newEvent("e"), func(ctx context.Context) error {
			if err := rdb.Incr(ctx, os.Getenv(topicVar)+":effects").Err(); err != nil {
				return err
			}
			die()
			return nil
		})
		fail(err)
	}
	careful := inbox.Handler(pool, func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
		err := record(ctx, tx, e)
		if point == "before commit" {
			die()
		}
		return err
	})
	c, err := consumergroup.New(rdb, consumergroup.Config{
		Topics: []stream.Topic{{Name: "orders", Namespace: os.Getenv(topicVar)}}, Group: group, Logger: slog.New(slog.DiscardHandler),
		Handler: consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
			if err := careful.Handle(ctx, e); err != nil {
				fail(err)
			}
			die() // between the commit and the ack
			return nil
		}),
	})
	if err != nil {
		fail(err)
	}
	fail(c.Run(ctx))
}

// runChild runs a process until it kills itself at the point.
func runChild(t *testing.T, point, postgres, namespace string) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childVar+"="+point, postgresVar+"="+postgres, redisVar+"="+testenv.RedisURL(t), topicVar+"="+namespace)
	output, err := child.CombinedOutput()
	require.ErrorContains(t, err, "signal: killed", "%s", output)
}

// Nobody can tell whether the effect came: once too often is better than never.
func TestClaimOfAKilledProcessEndsWithItsLeaseAndTheEffectComesAgain(t *testing.T) {
	t.Parallel()
	rdb, namespace := testenv.Redis(t), testenv.Namespace(t)
	runChild(t, "after the effect", "", namespace)
	c, err := inbox.NewClaims(rdb, inbox.ClaimsConfig{Namespace: namespace})
	require.NoError(t, err)
	effect := func(ctx context.Context) error { return rdb.Incr(ctx, namespace+":effects").Err() }
	for _, want := range []bool{true, false} {
		ran, err := c.Do(t.Context(), group, newEvent("e"), effect)
		require.NoError(t, err)
		require.Equal(t, want, ran)
	}
	require.Equal(t, "2", rdb.Get(t.Context(), namespace+":effects").Val())
}

func TestKilledProcessLeavesEachEffectOnce(t *testing.T) {
	t.Parallel()
	for point, committed := range map[string]int{"before commit": 0, "before ack": 1} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.add(newEvent("e"))
			runChild(t, point, testenv.PostgresURL(t), w.topic.Namespace)
			require.Equal(t, committed, w.effects("e"))

			calls := atomic.Int64{}
			w.consume(w.handler(func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
				calls.Add(1)
				return record(ctx, tx, e)
			}))
			w.settled(1) // the entry was reclaimed from the dead
			require.Equal(t, 1, w.effects("e"))
			require.EqualValues(t, 1-committed, calls.Load())
			require.Zero(t, w.letters())
		})
	}
}

func TestOutageOfPostgresBurnsNoAttempt(t *testing.T) {
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{})
	testenv.Migrate(t, server.URL())
	w := worldOn(t, testenv.Pool(t, server.URL()))
	attempts, failures := atomic.Int64{}, atomic.Int64{}
	once := w.handler(func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
		m, _ := consumergroup.MetadataFrom(ctx)
		attempts.Store(max(attempts.Load(), int64(m.Attempt)))
		return record(ctx, tx, e)
	})
	w.consume(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		err := once.Handle(ctx, e)
		if err != nil {
			failures.Add(1)
		}
		return err
	}), func(c *consumergroup.Config) { c.Retry.MaxAttempts = 1 }) // one burnt attempt is a letter
	w.add(newEvent("before"))
	w.settled(1)

	require.NoError(t, server.StopImmediate())
	for i := range 3 {
		w.add(newEvent(fmt.Sprint(i)))
	}
	require.Eventually(t, func() bool { return failures.Load() >= 2 }, patience, 10*time.Millisecond)
	require.NoError(t, server.Start(t.Context()))
	w.settled(4)
	require.Zero(t, w.letters())
	require.EqualValues(t, 1, attempts.Load())
	for i := range 3 {
		require.Equal(t, 1, w.effects(fmt.Sprint(i)))
	}
}
