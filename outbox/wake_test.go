package outbox

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// asleep is a relay that looks for rows once an hour.
func asleep(c *RelayConfig) { c.PollMin, c.PollMax = time.Hour, time.Hour }

// dozing waits until the relay has looked, and has nothing to do for an hour.
func (w *world) dozing() {
	w.t.Helper()
	first := len(w.ids())
	w.publish(event("k", "first"))
	require.Eventually(w.t, func() bool {
		Wake() // it may have begun after the commit
		return len(w.ids()) > first
	}, patience, 10*time.Millisecond)
	eventuallyIdle(w.t, w)
}

func TestInTxWakesTheRelaysOfThisProcess(t *testing.T) {
	w := newWorld(t, 1)
	start(t, w.relay(asleep))
	w.dozing()
	for i := range 20 {
		w.publish(event("k", "e"))
		w.eventually(2 + i)
	}
}

// A commit that comes while its shard is busy is looked for when that is done.
func TestWakingIsNotLostOnABusyShard(t *testing.T) {
	w := newWorld(t, 1)
	start(t, w.relay(asleep))
	w.dozing()
	for round := range 5 {
		for range 20 {
			w.publish(event("k", "e"))
		}
		w.eventually(1 + 20*(round+1))
	}
}

func TestNotificationWakesTheRelaysThatListen(t *testing.T) {
	w := newWorld(t, 1)
	start(t, w.relay(asleep, func(c *RelayConfig) { c.ListenURL = testenv.PostgresURL(t) }))
	w.dozing()
	require.NoError(t, Publish(t.Context(), w.pool, w.topic, event("k", "silent"))) // and no Wake
	require.Eventually(t, func() bool {
		_, err := w.pool.Exec(t.Context(), "NOTIFY "+notifyChannel(pgschema.Name{})) // again, until it listens
		require.NoError(t, err)
		return len(w.ids()) == 2
	}, patience, 20*time.Millisecond)
}

func TestNotifierNotifiesAfterInTx(t *testing.T) {
	w := newWorld(t, 1)
	listener, err := pgx.Connect(t.Context(), testenv.PostgresURL(t))
	require.NoError(t, err)
	defer listener.Close(t.Context())
	_, err = listener.Exec(t.Context(), "LISTEN "+notifyChannel(pgschema.Name{}))
	require.NoError(t, err)
	_, err = NewNotifier(nil, NotifierConfig{Schema: "No"})
	require.ErrorContains(t, err, "pool is nil")
	n, err := NewNotifier(w.pool, NotifierConfig{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	heard := make(chan error, 1)
	go func() {
		_, err := listener.WaitForNotification(t.Context())
		heard <- err
	}()
	require.Eventually(t, func() bool {
		w.publish(event("k", "e")) // again, until the Notifier runs
		select {
		case err := <-heard:
			require.NoError(t, err)
			return true
		default:
			return false
		}
	}, patience, 20*time.Millisecond)
	cancel()
	require.NoError(t, <-ended)
}

// What replicas do not have does not count as published, and is not lost in a failover to one of them.
func TestBatchCountsAsPublishedWhenReplicasHaveIt(t *testing.T) {
	t.Parallel()
	f := newFailover(t)
	w := worldOn(t, testenv.Postgres(t), f.rdb, 3)
	b := w.bank(12)
	seen := &recorder{}
	start(t, w.relay(func(c *RelayConfig) {
		c.Observer, c.Replicas, c.DurableTimeout = seen, 1, 100*time.Millisecond
	}))
	b.verifyEach(2)
	eventuallyIdle(t, w)
	f.lag()
	published := len(seen.of(Published))
	b.changes(12)
	seen.eventually(t, Waiting)
	require.ErrorIs(t, seen.of(Waiting)[0].Err, stream.ErrNotDurable)
	require.Len(t, seen.of(Published), published)
	f.follow()
	b.verify()
	eventuallyIdle(t, w)
	b.verifyEach(2)
}

// Before 7.2 there is no WAITAOF, and without an append-only file it is refused.
func TestFsyncIsCheckedAtTheStart(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	w := worldOn(t, testenv.Postgres(t), testenv.RedisClient(t, server.URL()), 1)
	require.ErrorContains(t, w.relay(func(c *RelayConfig) { c.Fsync = true }).Run(t.Context()), "Fsync")
}
