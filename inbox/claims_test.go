package inbox_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// claims returns Claims in a namespace of the test's own, and the key of newEvent("e").
func claims(t *testing.T, rdb redis.UniversalClient, edit ...func(*inbox.ClaimsConfig)) (*inbox.Claims, string) {
	t.Helper()
	config := inbox.ClaimsConfig{Namespace: testenv.Namespace(t), Logger: slog.New(slog.DiscardHandler)}
	for _, e := range edit {
		e(&config)
	}
	c, err := inbox.NewClaims(rdb, config)
	require.NoError(t, err)
	return c, config.Namespace + ":$claim:billing:4:shop/e"
}

func shortLease(c *inbox.ClaimsConfig) { c.Lease = time.Second }

func TestFiftyConcurrentCallersRunTheEffectOnce(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	c, key := claims(t, rdb)
	effects, ran := atomic.Int64{}, atomic.Int64{}
	var wg sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		wg.Go(func() {
			did, err := c.Do(t.Context(), group, newEvent("e"), func(context.Context) error {
				effects.Add(1)
				<-time.After(50 * time.Millisecond) // while the others come
				return nil
			})
			if errs[i] = err; did {
				ran.Add(1)
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.EqualValues(t, 1, effects.Load())
	require.EqualValues(t, 1, ran.Load())
	require.Equal(t, "done", rdb.Get(t.Context(), key).Val())
	require.InDelta(t, 7*24*time.Hour, rdb.PTTL(t.Context(), key).Val(), float64(time.Minute))
}

func TestFailedEffectIsTriedByTheNextCaller(t *testing.T) {
	t.Parallel()
	c, _ := claims(t, testenv.Redis(t), func(c *inbox.ClaimsConfig) { c.Lease = time.Hour }) // nobody waits for a lease to end
	effects := 0
	for _, fail := range []func(){
		func() {
			ran, err := c.Do(t.Context(), group, newEvent("e"), func(context.Context) error { return errors.New("no luck") })
			require.True(t, ran)
			require.EqualError(t, err, "no luck")
		},
		func() {
			require.Panics(t, func() {
				_, _ = c.Do(t.Context(), group, newEvent("e"), func(context.Context) error { panic("no luck") })
			})
		},
	} {
		fail()
	}
	for range 2 {
		_, err := c.Do(t.Context(), group, newEvent("e"), func(context.Context) error { effects++; return nil })
		require.NoError(t, err)
	}
	require.Equal(t, 1, effects)
}

func TestWaitForAClaimEndsWithItsContext(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	c, key := claims(t, rdb)
	require.NoError(t, rdb.Set(t.Context(), key, "another's token", time.Hour).Err())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	ran, err := c.Do(ctx, group, newEvent("e"), func(context.Context) error { return nil })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.False(t, ran)
}

func TestClaimIsRenewedWhileItsEffectRuns(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	c, key := claims(t, rdb, func(c *inbox.ClaimsConfig) { c.Lease = 3 * time.Second })
	_, err := c.Do(t.Context(), group, newEvent("e"), func(ctx context.Context) error {
		mine := rdb.Get(ctx, key).Val()
		for range 2 { // it runs down, and up again
			require.Eventually(t, func() bool { return rdb.PTTL(ctx, key).Val() < 2200*time.Millisecond }, patience, time.Millisecond)
			require.Eventually(t, func() bool { return rdb.PTTL(ctx, key).Val() > 2500*time.Millisecond }, patience, time.Millisecond)
		}
		require.Equal(t, mine, rdb.Get(ctx, key).Val())
		return ctx.Err()
	})
	require.NoError(t, err)
}

func TestWhoLosesTheClaimIsTold(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	c, key := claims(t, rdb, shortLease)
	ran, err := c.Do(t.Context(), group, newEvent("e"), func(ctx context.Context) error {
		require.NoError(t, rdb.Set(ctx, key, "another's token", time.Hour).Err())
		<-ctx.Done()
		return context.Cause(ctx)
	})
	require.True(t, ran)
	require.ErrorIs(t, err, inbox.ErrClaimLost)
	require.Equal(t, "another's token", rdb.Get(t.Context(), key).Val(), "it is the other's still")
}

func TestWhoLosesRedisLosesTheClaimInTime(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	c, _ := claims(t, testenv.RedisClient(t, server.URL()), shortLease)
	_, err := c.Do(t.Context(), group, newEvent("e"), func(ctx context.Context) error {
		started := time.Now()
		require.NoError(t, server.Pause())
		<-ctx.Done()
		require.Less(t, time.Since(started), 2*time.Second, "a call of the client takes 3 seconds")
		require.NoError(t, server.Resume())
		return context.Cause(ctx)
	})
	require.ErrorIs(t, err, inbox.ErrClaimLost)
}

func TestEffectIsRecordedAfterItsLeaseEndedAndAfterRedisCameBack(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	rdb := testenv.RedisClient(t, server.URL())
	c, key := claims(t, rdb, func(c *inbox.ClaimsConfig) { c.Lease = time.Minute })
	ran, err := c.Do(t.Context(), group, newEvent("e"), func(ctx context.Context) error {
		require.NoError(t, rdb.Del(ctx, key).Err())
		require.NoError(t, server.Kill())
		go func() { _ = server.Start(context.WithoutCancel(ctx)) }()
		return nil
	})
	require.True(t, ran)
	require.NoError(t, err)
	require.Equal(t, "done", rdb.Get(t.Context(), key).Val())
}

func TestClaimsAreAMiddleware(t *testing.T) {
	w := newWorld(t)
	c, _ := claims(t, w.rdb)
	effects := atomic.Int64{}
	w.consume(c.Once(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error {
		if m, _ := consumergroup.MetadataFrom(ctx); m.Attempt == 1 {
			return errors.New("no luck")
		}
		effects.Add(1)
		return nil
	})))
	for range 3 {
		w.add(newEvent("e"))
	}
	w.settled(3)
	require.EqualValues(t, 1, effects.Load())
	require.Zero(t, w.letters())
}

func TestOutageOfRedisIsNoAttempt(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	c, _ := claims(t, testenv.RedisClient(t, server.URL()))
	require.NoError(t, server.Kill())
	ran, err := c.Do(t.Context(), group, newEvent("e"), func(context.Context) error { return nil })
	require.False(t, ran)
	require.Equal(t, consumergroup.UnavailableError, consumergroup.Classify(err), "%v", err)
}

func TestClaimsConfigNamesEveryFault(t *testing.T) {
	t.Parallel()
	_, err := inbox.NewClaims(nil, inbox.ClaimsConfig{Namespace: "no name", Lease: time.Millisecond, Retention: -time.Second})
	for _, want := range []string{
		"the Redis client is nil", `Namespace "no name"`, "Lease 1ms must be at least 1s", "Retention -1s must be at least the Lease 1ms",
	} {
		require.ErrorContains(t, err, want)
	}
	c, _ := claims(t, testenv.Redis(t))
	_, err = c.Do(t.Context(), "", newEvent("e"), func(context.Context) error { return nil })
	require.ErrorContains(t, err, `inbox: group "" is not`)
}
