package saga_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

// The test binary is a worker process too: childPostgres makes it one.
const (
	childPostgres  = "STREAMKEEL_SAGA_POSTGRES"
	childRedis     = "STREAMKEEL_SAGA_REDIS"
	childNamespace = "STREAMKEEL_SAGA_NAMESPACE"
)

// Where children die, each point once for all children.
var deaths = []string{"within a step", "after a step", "within a compensation", "after a compensation"}

// dieOnce kills this process, if it is the first that comes to the point.
func dieOnce(pool *pgxpool.Pool, point string) {
	tag, err := pool.Exec(context.Background(), `INSERT INTO deaths (point) VALUES ($1) ON CONFLICT DO NOTHING`, point)
	if err == nil && tag.RowsAffected() == 1 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

type dyingObserver struct{ pool *pgxpool.Pool }

func (o dyingObserver) Observe(_ context.Context, seen saga.Observation) {
	switch seen.Moment {
	case saga.StepDone:
		dieOnce(o.pool, "after a step")
	case saga.StepCompensated:
		dieOnce(o.pool, "after a compensation")
	}
}

// childMain runs the steps and the timers of a flow, until it is told to stop.
func childMain() {
	fail := func(err error) { fmt.Fprintln(os.Stderr, err); os.Exit(3) }
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // no child outlives a test that hangs
	defer cancel()
	pool, err := pgxpool.New(ctx, os.Getenv(childPostgres))
	if err != nil {
		fail(err)
	}
	opts, err := redis.ParseURL(os.Getenv(childRedis))
	if err != nil {
		fail(err)
	}
	rdb := redis.NewClient(opts)
	// A pool of its own: the steps may hold every connection of theirs.
	killer, err := pgxpool.New(ctx, os.Getenv(childPostgres))
	if err != nil {
		fail(err)
	}
	topic := stream.Topic{Name: "orders", Namespace: os.Getenv(childNamespace), Partitions: 2}
	dying := func(point string, fn func(context.Context, *saga.Tx, stream.Event, order) error) func(context.Context, *saga.Tx, stream.Event, order) error {
		return func(ctx context.Context, s *saga.Tx, e stream.Event, o order) error {
			err := fn(ctx, s, e, o)
			dieOnce(killer, point)
			return err
		}
	}
	f := saga.New(flowName, saga.Config{Topic: topic, Observer: dyingObserver{killer}})
	saga.Step(f, "reserve", placed, effect("reserve", reserved), undoable("reserve"))
	saga.Step(f, "charge", reserved, dying("within a step", effect("charge", charged)), saga.StepConfig[order]{
		Compensate: dying("within a compensation", effect("undo charge")),
	})
	saga.Step(f, "confirm", charged, func(ctx context.Context, s *saga.Tx, e stream.Event, o order) error {
		if strings.HasSuffix(o.ID, "3") { // asks again in a moment, whether somebody pays
			return s.After(ctx, "payment", 200*time.Millisecond, overdue.Event(o.ID, o))
		}
		s.Complete()
		return effect("confirm")(ctx, s, e, o)
	})
	saga.Step(f, "expire", overdue, refusal("nobody paid in time"))
	handler, err := f.Handler(pool)
	if err != nil {
		fail(err)
	}
	consumer, err := consumergroup.New(rdb, consumergroup.Config{
		Topics: []stream.Topic{topic}, Group: "shop", Handler: handler, Concurrency: 4, Limits: pel.Limits{MinIdle: pel.MinMinIdle},
		Retry: consumergroup.Policy{MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond},
	})
	if err != nil {
		fail(err)
	}
	timers, err := saga.NewTimers(pool, saga.TimersConfig{Every: 20 * time.Millisecond})
	if err != nil {
		fail(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- timers.Run(ctx) }()
	if err := errors.Join(consumer.Run(ctx), <-ended); err != nil {
		fail(err)
	}
	os.Exit(0)
}

// keepAlive runs a child, and starts another whenever one dies, until the test ends.
func keepAlive(t *testing.T, env ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), env...)
			cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = patience
			_ = cmd.Run() // it is killed; that is the test
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
}

// TestKilledProcessesLeaveEverySagaWhole runs sagas in two processes, from the outbox through Redis, which
// are killed within and after steps and compensations.
func TestKilledProcessesLeaveEverySagaWhole(t *testing.T) {
	t.Parallel()
	s := newService(t)
	s.topic.Partitions = 2
	_, err := s.pool.Exec(t.Context(), `CREATE TABLE deaths (point text PRIMARY KEY)`)
	require.NoError(t, err)
	relay, err := outbox.NewRelay(s.pool, testenv.Redis(t), outbox.RelayConfig{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })

	var starts []stream.Event
	for i := range 30 {
		starts = append(starts, place(fmt.Sprint("o", i)))
	}
	require.NoError(t, outbox.Publish(t.Context(), s.pool, s.topic, starts...))
	env := []string{childPostgres + "=" + testenv.PostgresURL(t), childRedis + "=" + testenv.RedisURL(t), childNamespace + "=" + s.topic.Namespace}
	keepAlive(t, env...)
	keepAlive(t, env...)

	require.Eventually(t, func() bool {
		all, err := saga.List(t.Context(), s.pool, saga.Filter{States: []saga.State{saga.StateCompleted, saga.StateCompensated}})
		return err == nil && len(all) == len(starts)
	}, 2*patience, 50*time.Millisecond, "the sagas do not come to their end")
	for i, e := range starts {
		want := []string{"reserve", "charge", "confirm"}
		if strings.HasSuffix(fmt.Sprint(i), "3") {
			want = []string{"reserve", "charge", "undo charge", "undo reserve"}
		}
		require.Equal(t, want, s.effects(t, e.ID), "order %d", i)
	}
	var died int
	require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT count(*) FROM deaths`).Scan(&died))
	require.Equal(t, len(deaths), died, "a point was never reached")
}
