package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) {
	defer commandtest.Remove()
	testenv.Main(m)
}

var orderPlaced = stream.Define[string]("order.placed")

// publish commits n events, and returns their topic.
func publish(t *testing.T, topic stream.Topic, n int) {
	t.Helper()
	err := outbox.InTx(t.Context(), testenv.Postgres(t), func(tx pgx.Tx) error {
		for i := range n {
			if err := outbox.Publish(t.Context(), tx, topic, orderPlaced.Event(fmt.Sprint("key", i), "order")); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, err)
}

func arrived(t *testing.T, rdb redis.UniversalClient, topic stream.Topic, n int64) {
	t.Helper()
	require.Eventually(t, func() bool {
		total := int64(0)
		for _, key := range topic.StreamKeys() {
			total += rdb.XLen(t.Context(), key).Val()
		}
		return total == n
	}, commandtest.Patience, 10*time.Millisecond, "the events do not come")
}

// flags are those of a relay that disturbs no other.
func flags(t *testing.T, more ...string) []string {
	return append([]string{"--listen=127.0.0.1:0", "--postgres-url=" + testenv.PostgresURL(t), "--redis-url=" + testenv.RedisURL(t), "--lease-ttl=1s"}, more...)
}

func TestRelayMovesCommittedEventsAndTellsOfIt(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t), Partitions: 4}
	publish(t, topic, 20)
	d := commandtest.Serve(t, run, nil, flags(t)...)
	addr := d.Addr()
	arrived(t, rdb, topic, 20)
	commandtest.Eventually(t, addr, "/readyz", http.StatusOK, `"ready":true`)
	commandtest.Eventually(t, addr, "/metrics", http.StatusOK, "streamkeel_outbox_published_rows_total 20")
	commandtest.Eventually(t, addr, "/metrics", http.StatusOK, `streamkeel_outbox_shard_owned{shard="0"} 1`)
	publish(t, topic, 5)
	arrived(t, rdb, topic, 25)
	d.Cancel()
	require.Equal(t, command.ExitClean, d.Wait())
}

func TestRelayThatStopsGivesItsShardsToAnother(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t), Partitions: 4}
	binary := commandtest.Build(t, "cmd/outbox-relay")
	first := commandtest.Start(t, binary, nil, flags(t)...)
	first.Addr()
	publish(t, topic, 10)
	arrived(t, rdb, topic, 10)
	second := commandtest.Start(t, binary, nil, flags(t)...)
	second.Addr()
	first.Signal(syscall.SIGTERM)
	require.Equal(t, command.ExitClean, first.Wait(), first.Stderr())
	publish(t, topic, 10)
	arrived(t, rdb, topic, 20)
	second.Signal(syscall.SIGKILL)
	require.Equal(t, -1, second.Wait())
	third := commandtest.Start(t, binary, nil, flags(t)...)
	third.Addr()
	publish(t, topic, 10)
	arrived(t, rdb, topic, 30)
}

func TestOutageOfRedisMakesTheRelayUnreadyAndEventsWait(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, AppendOnly: true, Settings: map[string]string{"requirepass": `"` + commandtest.Canary + `"`}})
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: commandtest.Canary})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	topic := stream.Topic{Name: "orders", Partitions: 2}
	redisURL := "redis://" + url.UserPassword("default", commandtest.Canary).String() + "@" + server.Addr()
	env := []string{"STREAMKEEL_REDIS_URL=" + redisURL, "STREAMKEEL_POSTGRES_URL=" + testenv.PostgresURL(t)}
	d := commandtest.Serve(t, run, env, "--listen=127.0.0.1:0", "--log-level=debug")
	addr := d.Addr()
	publish(t, topic, 3)
	arrived(t, rdb, topic, 3)
	require.NoError(t, server.Kill())
	commandtest.Eventually(t, addr, "/readyz", http.StatusServiceUnavailable, "redis: ")
	publish(t, topic, 3)
	status, _ := commandtest.Get(t, addr, "/healthz")
	require.Equal(t, http.StatusOK, status)
	require.NoError(t, server.Start(t.Context()))
	arrived(t, rdb, topic, 6)
	commandtest.Eventually(t, addr, "/readyz", http.StatusOK, `"ready":true`)
	_, metrics := commandtest.Get(t, addr, "/metrics")
	d.Cancel()
	require.Equal(t, command.ExitClean, d.Wait())
	for _, text := range []string{d.Stderr(), metrics} {
		require.NotContains(t, text, "canary")
	}
}

// It answers what the checks ask, and takes no writes yet.
func TestOutageDuringTheStartIsWaitedFor(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, Settings: map[string]string{"min-replicas-to-write": "1"}})
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	topic := stream.Topic{Name: "orders", Partitions: 2}
	publish(t, topic, 3)
	env := []string{"STREAMKEEL_REDIS_URL=redis://" + server.Addr(), "STREAMKEEL_POSTGRES_URL=" + testenv.PostgresURL(t)}
	commandtest.RequireUnfit(t, commandtest.Call(t, run, env, "--disable-http", "--log-level=error", "--start-timeout=1s"), "NOREPLICAS")
	waiting := func() *commandtest.Daemon {
		require.NoError(t, rdb.ConfigResetStat(t.Context()).Err())
		d := commandtest.Serve(t, run, env, "--disable-http", "--start-timeout=10m")
		require.Eventually(t, func() bool { // three times as often as the client itself tries, and so between two starts
			var refused int
			_, _ = fmt.Sscanf(rdb.InfoMap(t.Context(), "errorstats").Item("Errorstats", "errorstat_NOREPLICAS"), "count=%d", &refused)
			return refused >= 12
		}, commandtest.Patience, 10*time.Millisecond)
		return d
	}
	d := waiting()
	d.Cancel()
	require.Equal(t, command.ExitClean, d.Wait(), "it was told to end")
	d = waiting()
	require.NoError(t, rdb.ConfigSet(t.Context(), "min-replicas-to-write", "0").Err())
	arrived(t, rdb, topic, 3)
	d.Cancel()
	require.Equal(t, command.ExitClean, d.Wait())
}

func TestBadInputIsOneLineThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	binary := commandtest.Build(t, "cmd/outbox-relay")
	postgres, redisURL := "--postgres-url="+testenv.PostgresURL(t), "--redis-url="+testenv.RedisURL(t)
	u, err := url.Parse(testenv.PostgresURL(t))
	require.NoError(t, err)
	u.Path = "/postgres"
	evicting := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, Settings: map[string]string{"maxmemory-policy": "allkeys-lru"}})
	secret := url.UserPassword("u", commandtest.Canary).String()
	for name, c := range map[string]struct {
		args, parts []string
	}{
		"unknown flag":         {[]string{"--no-such"}, []string{"unknown flag: --no-such"}},
		"no Postgres":          {[]string{redisURL}, []string{"--postgres-url is missing"}},
		"unreachable Postgres": {[]string{redisURL, "--postgres-url=postgres://" + secret + "@127.0.0.1:1/d?sslmode=disable", "--start-timeout=300ms"}, []string{"Postgres at 127.0.0.1:1/d", "--postgres-url"}},
		"unreachable Redis":    {[]string{postgres, "--redis-url=redis://" + secret + "@127.0.0.1:1", "--start-timeout=5s"}, []string{"connection refused", "--redis-url"}},
		"wrong Postgres URL":   {[]string{redisURL, "--postgres-url=http://" + secret + "@h"}, []string{"postgres://"}},
		"migrations":           {[]string{redisURL, "--postgres-url=" + u.String()}, []string{"migrations are missing", "streamkeel migrate up"}},
		"no such schema":       {[]string{redisURL, postgres, "--schema=nowhere"}, []string{"migrations are missing", "streamkeel migrate up"}},
		"wrong schema":         {[]string{redisURL, postgres, "--schema=a.b"}, []string{`--schema: schema "a.b" is not [a-z_]`}},
		"evicting":             {[]string{postgres, "--redis-url=" + evicting.URL()}, []string{"allkeys-lru", "--allow-eviction"}},
		"every fault": {
			[]string{"--lease-ttl=1ms", "--poll-min=1us", "--poll-max=0s", "--retention=1s", "--days-ahead=99", "--on-refused=drop", "--name=a b", "--schema=A", "--redis-url=x", "--listen=x"},
			[]string{"--lease-ttl 1ms", "--poll-min 1µs", "--poll-max 0s", "--retention 1s", "--days-ahead 99", "--on-refused", `--name "a b"`, "--schema", "--redis-url", "--postgres-url", "--listen"},
		},
		"small pool": {[]string{redisURL, postgres + "&pool_max_conns=1"}, []string{"pool_max_conns"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			commandtest.RequireUnfit(t, commandtest.Run(t, binary, nil, append([]string{"--listen=127.0.0.1:0"}, c.args...)...), c.parts...)
		})
	}
}

func TestTopicThatStandsDifferentlyInRedisIsUnfit(t *testing.T) {
	t.Parallel()
	ns := testenv.Namespace(t)
	publish(t, stream.Topic{Name: "orders", Namespace: ns, Partitions: 4}, 1)
	require.NoError(t, stream.Declare(t.Context(), testenv.Redis(t), stream.Topic{Name: "orders", Namespace: ns, Partitions: 2}))
	o := commandtest.Call(t, run, nil, flags(t)...)
	require.Equal(t, command.ExitUnfit, o.Code)
	require.Contains(t, o.Stderr, "declared differently")
	require.Contains(t, o.Stderr[strings.LastIndex(strings.TrimSpace(o.Stderr), "\n")+1:], "outbox-relay: ")
}

func TestShardThatStandsStillMakesTheRelayUnready(t *testing.T) {
	t.Parallel()
	w := newWatch()
	see := func(m outbox.Moment, shard int, err error) {
		observers{w}.Observe(context.Background(), outbox.Observation{Moment: m, Shard: shard, Err: err})
	}
	require.NoError(t, w.err())
	see(outbox.TakenOver, 3, nil)
	see(outbox.Stopped, 3, errors.New("lost too much"))
	see(outbox.Stopped, 1, errors.New("ahead"))
	require.EqualError(t, w.err(), "shard 1 stands still: ahead; shard 3 stands still: lost too much")
	see(outbox.Resumed, 3, nil)
	see(outbox.GivenUp, 1, nil)
	require.NoError(t, w.err())
}

func TestRelayRoleIsAllThatTheRelayNeeds(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { require.NoError(t, admin.Close()) })
	redisURL := commandtest.Role(t, admin, server.Addr(), "relay")
	topic := stream.Topic{Name: "orders", Partitions: 2}
	publish(t, topic, 5)
	d := commandtest.Serve(t, run, nil, "--listen=127.0.0.1:0", "--postgres-url="+testenv.PostgresURL(t), "--redis-url="+redisURL)
	addr := d.Addr()
	arrived(t, admin, topic, 5)
	commandtest.Eventually(t, addr, "/readyz", http.StatusOK, `"ready":true`)
	d.Cancel()
	require.Equal(t, command.ExitClean, d.Wait())
	commandtest.RequireExact(t, admin, "relay", "xgroup|create", "xgroup|destroy", "eval") // where a stream is empty, or the script is gone
}

func TestDocumentedFlagsAreThoseOfTheProgram(t *testing.T) {
	t.Parallel()
	var c config
	commandtest.RequireFlagTable(t, program, c.flags().FlagSet)
}
