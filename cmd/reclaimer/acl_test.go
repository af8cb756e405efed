package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
	"github.com/streamkeel/streamkeel/telemetry"
)

// asRole starts a server, and returns a client of everything and one of a role.
func asRole(t *testing.T, role string) (admin, user *redis.Client, redisURL string) {
	t.Helper()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	admin = redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { require.NoError(t, admin.Close()) })
	redisURL = commandtest.Role(t, admin, server.Addr(), role)
	options, err := redis.ParseURL(redisURL)
	require.NoError(t, err)
	user = redis.NewClient(options)
	t.Cleanup(func() { require.NoError(t, user.Close()) })
	return admin, user, redisURL
}

// forget makes the server forget which commands were used so far.
func forget(t *testing.T, admin *redis.Client) {
	t.Helper()
	require.NoError(t, admin.ConfigResetStat(t.Context()).Err())
	require.NoError(t, admin.Do(t.Context(), "acl", "log", "reset").Err())
}

func TestPublisherRoleIsAllThatAPublisherNeeds(t *testing.T) {
	t.Parallel()
	admin, user, _ := asRole(t, "publisher")
	forget(t, admin)
	g := &group{t: t, rdb: user, topic: stream.Topic{Name: "orders", Partitions: 2}}
	g.publish(3)
	commandtest.RequireExact(t, admin, "publisher")
	require.ErrorContains(t, user.Do(t.Context(), "xrange", "sk:orders.0", "-", "+").Err(), "NOPERM")
	require.ErrorContains(t, user.Do(t.Context(), "xadd", "other", "*", "a", "b").Err(), "NOPERM")
}

func TestPublisherOfMoreThanTheDefaultNeedsWhatTheDocumentationAdds(t *testing.T) {
	t.Parallel()
	operations, err := os.ReadFile(filepath.Join(commandtest.Root(), "docs/operations.md"))
	require.NoError(t, err)
	admin, user, _ := asRole(t, "publisher")
	for more, what := range map[string]string{
		"~{sk:* +time +hmget +hset +exists +unlink +pexpire +eval +evalsha": "One whose topic has `Dedup` needs `%s` too",
		"+wait": "with `Replicas` it needs `%s`", "+xlen": "with `MaxLen` `%s`",
	} {
		require.Contains(t, string(operations), fmt.Sprintf(what, more))
		for _, rule := range strings.Fields(more) {
			require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "publisher", rule).Err())
		}
	}
	forget(t, admin)
	p, err := stream.NewPublisher(user, stream.PublisherConfig{Replicas: 1, DurableTimeout: time.Millisecond, MaxLen: 10, Reject: true})
	require.NoError(t, err)
	topic := stream.Topic{Name: "orders", Dedup: time.Minute}
	e := stream.NewEvent("order.placed", "k", stream.ContentTypeJSON, []byte("{}"))
	for _, duplicate := range []bool{false, true} {
		result, err := p.Publish(t.Context(), topic, e)
		require.ErrorIs(t, err, stream.ErrNotDurable) // there is no replica
		require.Equal(t, duplicate, result.Duplicate)
	}
	commandtest.RequireNothingDenied(t, admin, "publisher")
}

func TestConsumerRoleIsAllThatAConsumerNeeds(t *testing.T) {
	t.Parallel()
	admin, user, _ := asRole(t, "consumer")
	g := &group{t: t, rdb: admin, topic: stream.Topic{Name: "orders", Partitions: 2}, name: "billing"}
	g.publish(8)
	forget(t, admin)
	c, err := consumergroup.New(user, consumergroup.Config{
		Topics: []stream.Topic{g.topic}, Group: g.name, Logger: slog.New(slog.DiscardHandler), Limits: pel.Limits{MinIdle: pel.MinMinIdle},
		Retry: consumergroup.Policy{MaxAttempts: 2, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond},
		Handler: consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
			switch e.Key {
			case "a":
				return errors.New("poison")
			case "b": // as long as a heartbeat takes
				select {
				case <-ctx.Done():
				case <-time.After(pel.MinMinIdle * 2):
				}
			}
			return nil
		}),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	// Something is left behind by others, which the consumer takes over.
	require.Eventually(t, func() bool {
		err := admin.Do(t.Context(), "xreadgroup", "group", g.name, "dead", "count", 1, "streams", g.topic.StreamKey(0), ">").Err()
		return err == nil || err == redis.Nil
	}, commandtest.Patience, time.Millisecond)
	g.publish(4)
	g.abandon()
	g.eventually("all is handled, and the poison is dead", func(t pel.Totals) bool {
		return t.Err == nil && t.Pending == 0 && t.LagKnown && t.Lag == 0 && t.Due == 0 && t.Retry == 0 && t.Letters == 2
	})
	cancel()
	require.NoError(t, <-ended)
	commandtest.RequireExact(t, admin, "consumer", "xrevrange", "exists", "xgroup|setid")
	for _, denied := range [][]any{{"xgroup", "destroy", "sk:orders.0", "billing"}, {"del", "sk:orders.0"}, {"flushall"}, {"keys", "*"}, {"xadd", "other", "*", "a", "b"}} {
		require.ErrorContains(t, user.Do(t.Context(), denied...).Err(), "NOPERM", denied)
	}
}

func TestConsumerOfAnOrderedGroupNeedsWhatTheDocumentationAdds(t *testing.T) {
	t.Parallel()
	const more = "+hmget +hdel +xread +watch +unwatch +multi +exec"
	operations, err := os.ReadFile(filepath.Join(commandtest.Root(), "docs/operations.md"))
	require.NoError(t, err)
	require.Contains(t, string(operations), "One of an ordered group needs `"+more+"` too")
	admin, user, _ := asRole(t, "consumer")
	for _, rule := range strings.Fields(more) {
		require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "consumer", rule).Err())
	}
	g := &group{t: t, rdb: admin, topic: stream.Topic{Name: "orders", Partitions: 2}, name: "billing"}
	c, err := consumergroup.New(user, consumergroup.Config{
		Topics: []stream.Topic{g.topic}, Group: g.name, Logger: slog.New(slog.DiscardHandler), Limits: pel.Limits{MinIdle: pel.MinMinIdle},
		Ordered: true, Letters: dlq.Retention{MaxLen: 2, OnFull: dlq.FullPause},
		Retry: consumergroup.Policy{MaxAttempts: 2, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond},
		Handler: consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error {
			if e.Key == "a" {
				return errors.New("poison")
			}
			return nil
		}),
	})
	require.NoError(t, err)
	forget(t, admin)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	g.publish(8)
	g.eventually("all is handled, and the poison is dead", func(t pel.Totals) bool {
		return t.Err == nil && t.LagKnown && t.Lag == 0 && t.Pending == 0 && t.Letters == 1
	})
	g.pausesWithMoreThanTwoLetters()
	cancel()
	require.NoError(t, <-ended)
	commandtest.RequireNothingDenied(t, admin, "consumer")
	used, err := admin.Info(t.Context(), "commandstats").Result()
	require.NoError(t, err)
	for _, rule := range strings.Fields(more) {
		unused := !strings.Contains(used, "cmdstat_"+rule[1:]+":") && rule != "+unwatch" // of a read whose lease was lost
		require.False(t, unused, rule)
	}
}

func TestReclaimerRoleIsAllThatTheReclaimerNeeds(t *testing.T) {
	t.Parallel()
	admin, user, redisURL := asRole(t, "reclaimer")
	g := newGroup(t, admin, "sk")
	g.publish(4)
	g.abandon()
	// One retry that is due, and one entry that was trimmed while it was pending.
	require.NoError(t, admin.XTrimMaxLen(t.Context(), g.topic.StreamKey(0), 1).Err())
	require.NoError(t, admin.ZAdd(t.Context(), g.keys(1).Due, redis.Z{Score: 1, Member: "no retry"}).Err())
	// And a lag that is wrong, as after a restart.
	last, err := admin.XInfoStream(t.Context(), g.topic.StreamKey(1)).Result()
	require.NoError(t, err)
	require.NoError(t, admin.Do(t.Context(), "xgroup", "setid", g.topic.StreamKey(1), g.name, last.LastGeneratedID, "entriesread", 0).Err())
	forget(t, admin)
	d := commandtest.Serve(t, run, nil, anyPort("--redis-url="+redisURL, "--keep=1ms")...)
	addr := d.Addr()
	g.eventually("everything is taken over", func(t pel.Totals) bool {
		return t.Pending == 0 && t.Due == 0 && t.Retry+t.Letters == 5 && t.LagKnown && t.Lag == 0
	})
	commandtest.Eventually(t, addr, "/metrics", 200, `streamkeel_backlog_up{namespace="sk"} 1`)
	commandtest.Eventually(t, addr, "/readyz", 200, "ready")
	g.eventually("the names of the dead go", func(pel.Totals) bool {
		members, err := pel.Members(t.Context(), admin, g.keys(1))
		return err == nil && len(members) == 0
	})
	d.Cancel()
	require.Zero(t, d.Wait())
	d = commandtest.Serve(t, run, nil, anyPort("--redis-url="+redisURL, "--letters-max-len=2", "--letters-full=pause")...)
	d.Addr()
	g.pausesWithMoreThanTwoLetters()
	d.Cancel()
	require.Zero(t, d.Wait())
	commandtest.RequireExact(t, admin, "reclaimer", "xdel", "exists")
	require.ErrorContains(t, user.Do(t.Context(), "xreadgroup", "group", "billing", "c", "streams", "sk:orders.0", ">").Err(), "NOPERM")
}

func TestObserverRoleIsAllThatMetricsNeed(t *testing.T) {
	t.Parallel()
	admin, user, _ := asRole(t, "observer")
	g := newGroup(t, admin, "sk")
	g.publish(4)
	g.abandon()
	require.NoError(t, admin.ZAdd(t.Context(), g.keys(1).Due, redis.Z{Score: 1, Member: "m"}).Err())
	forget(t, admin)
	backlog, err := telemetry.NewBacklog(user, telemetry.BacklogConfig{})
	require.NoError(t, err)
	registry := prometheus.NewRegistry()
	registry.MustRegister(backlog)
	families, err := registry.Gather()
	require.NoError(t, err)
	require.Greater(t, len(families), 10)
	// What the command line reads beside, cmd/streamkeel's test shows.
	commandtest.RequireExact(t, admin, "observer", "hget", "xrange", "xrevrange", "info", "zrange", "xinfo|consumers")
	require.ErrorContains(t, user.Do(t.Context(), "xadd", "sk:orders.0", "*", "a", "b").Err(), "NOPERM")
}
