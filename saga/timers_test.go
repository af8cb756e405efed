package saga_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

// withTimer is a flow whose first step sets a timer, which another step refuses to, and which charge
// cancels.
func withTimer(f *saga.Flow, after time.Duration) *saga.Flow {
	saga.Step(f, "reserve", placed, func(ctx context.Context, s *saga.Tx, e stream.Event, o order) error {
		if err := s.After(ctx, "payment", after, overdue.Event(o.ID, o)); err != nil {
			return err
		}
		return effect("reserve")(ctx, s, e, o)
	}, undoable("reserve"))
	saga.Step(f, "charge", reserved, func(ctx context.Context, s *saga.Tx, e stream.Event, o order) error {
		if err := s.Cancel(ctx, "payment"); err != nil {
			return err
		}
		return effect("charge")(ctx, s, e, o)
	}, undoable("charge"))
	saga.Step(f, "confirm", charged, effect("confirm"), saga.StepConfig[order]{Final: true})
	saga.Step(f, "expire", overdue, refusal("nobody paid in time"))
	return f
}

func (s *service) timers(t *testing.T, edit ...func(*saga.TimersConfig)) *saga.Timers {
	t.Helper()
	config := saga.TimersConfig{Every: tick, Logger: slog.New(slog.DiscardHandler)}
	for _, e := range edit {
		e(&config)
	}
	timers, err := saga.NewTimers(s.pool, config)
	require.NoError(t, err)
	return timers
}

func (s *service) fire(t *testing.T) int {
	t.Helper()
	n, err := s.timers(t).RunOnce(t.Context())
	require.NoError(t, err)
	return n
}

func TestTimerPublishesItsEventForTheSaga(t *testing.T) {
	t.Parallel()
	s := newService(t)
	h := s.handler(t, withTimer(s.flow(), 0))
	e := place("o1")
	require.NoError(t, handle(h, e))
	require.Empty(t, s.emitted(t))
	watch := &seen{}
	n, err := s.timers(t, func(c *saga.TimersConfig) { c.Observer = watch }).RunOnce(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, 1, watch.count(saga.TimerFired))
	out := s.emitted(t)
	require.Len(t, out, 1)
	require.Equal(t, overdue.Type(), out[0].Type)
	require.Equal(t, e.ID, out[0].CorrelationID)
	require.Equal(t, e.ID, out[0].CausationID)
	s.run(t, h, out...)
	require.Equal(t, []string{"reserve", "undo reserve"}, s.effects(t, e.ID))
	require.Zero(t, s.fire(t))
	require.Equal(t, []string{"done reserve", "timer fired", "refused expire", "undone reserve", "compensated"}, history(s.get(t, e.ID)))
}

func TestTimerThatIsNotDueWaits(t *testing.T) {
	t.Parallel()
	s := newService(t)
	require.NoError(t, handle(s.handler(t, withTimer(s.flow(), time.Hour)), place("o1")))
	require.Zero(t, s.fire(t))
}

func TestTimersThatAreCancelledOrOutlivedDoNotFire(t *testing.T) {
	t.Parallel()
	next := func(d stream.Definition[order], sagaID string) stream.Event {
		e := d.Event("o1", order{ID: "o1"})
		e.CorrelationID = sagaID
		return e
	}
	s := newService(t)
	f := withTimer(s.flow(), 0)
	h := s.handler(t, f)
	abort := func(id string) stream.Event {
		e := f.Aborted().Event("o1", saga.Aborted{Flow: flowName, Saga: id})
		e.CorrelationID = id
		return e
	}
	for name, end := range map[string]func(id string) stream.Event{
		"cancelled": func(id string) stream.Event { return next(reserved, id) },
		"completed": func(id string) stream.Event { return next(charged, id) },
		"refused":   func(id string) stream.Event { return next(overdue, id) },
		"aborted":   abort,
		"completed elsewhere": func(id string) stream.Event {
			e := f.Completed().Event("o1", saga.Completed{Flow: flowName, Saga: id})
			e.CorrelationID = id
			return e
		},
	} {
		e := place("o1")
		require.NoError(t, handle(h, e), name)
		require.NoError(t, handle(h, end(e.ID)), name)
		require.Zero(t, s.fire(t), name)
	}
	e := place("o2")
	require.NoError(t, handle(h, e))
	require.NoError(t, f.Abort(t.Context(), s.pool, e.ID, "by hand"))
	require.Zero(t, s.fire(t))
}

func TestTimerSetAgainTakesThePlaceOfTheOld(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := s.flow()
	saga.Step(f, "reserve", placed, func(ctx context.Context, tx *saga.Tx, _ stream.Event, o order) error {
		if err := tx.After(ctx, "payment", 0, overdue.Event("old", o)); err != nil {
			return err
		}
		return tx.After(ctx, "payment", 0, overdue.Event("new", o))
	})
	require.NoError(t, handle(s.handler(t, f), place("o1")))
	require.Equal(t, 1, s.fire(t))
	require.Equal(t, "new", s.emitted(t)[0].Key)
}

func TestEachTimerFiresOnceWhateverNumberOfTimersRun(t *testing.T) {
	t.Parallel()
	s := newService(t)
	h := s.handler(t, withTimer(s.flow(), 0))
	const n = 250
	for i := range n {
		require.NoError(t, handle(h, place(fmt.Sprint("o", i))))
	}
	tx, err := s.pool.Begin(t.Context()) // makes all three be at it at the same time
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `LOCK TABLE streamkeel.saga_log IN EXCLUSIVE MODE`)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		timers := s.timers(t)
		wg.Go(func() {
			if err := timers.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	s.waiting(t, 3)
	require.NoError(t, tx.Commit(t.Context()))
	require.Eventually(t, func() bool {
		var left int
		err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM streamkeel.saga_timer`).Scan(&left)
		return err == nil && left == 0
	}, patience, tick)
	cancel()
	wg.Wait()
	fired := map[string]int{}
	for _, e := range s.emitted(t) {
		fired[e.CorrelationID]++
	}
	require.Len(t, fired, n)
	for id, times := range fired {
		require.Equal(t, 1, times, id)
	}
}

func TestTimerThatCannotFireIsKeptOutOfTheWay(t *testing.T) {
	t.Parallel()
	s := newService(t)
	h := s.handler(t, withTimer(s.flow(), 0))
	broken, whole := place("o1"), place("o2")
	require.NoError(t, handle(h, broken))
	require.NoError(t, handle(h, whole))
	_, err := s.pool.Exec(t.Context(), `UPDATE streamkeel.saga_timer SET topic = '{"Name": "no:name"}', due_at = due_at - interval '1 hour' WHERE saga_id = $1`, broken.ID)
	require.NoError(t, err)
	require.Equal(t, 2, s.fire(t))
	out := s.emitted(t)
	require.Len(t, out, 1)
	require.Equal(t, whole.ID, out[0].CorrelationID)
	var attempts int
	var reason string
	require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT attempts, error FROM streamkeel.saga_timer WHERE due_at > now()`).Scan(&attempts, &reason))
	require.Equal(t, 1, attempts)
	require.Contains(t, reason, "no:name")
	require.Zero(t, s.fire(t), "not before a minute is over")
}

func TestTimersWaitForPostgres(t *testing.T) {
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{})
	testenv.Migrate(t, server.URL())
	s := &service{pool: testenv.Pool(t, server.URL()), topic: stream.Topic{Name: "orders"}}
	makeEffects(t, s.pool)
	h := s.handler(t, withTimer(s.flow(), 0))
	ctx, cancel := context.WithCancel(t.Context())
	timers := s.timers(t)
	ended := make(chan error, 1)
	go func() { ended <- timers.Run(ctx) }()
	require.NoError(t, server.StopImmediate())
	require.Eventually(t, func() bool {
		quick, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return s.pool.Ping(quick) != nil
	}, patience, tick)
	require.NoError(t, server.Start(t.Context()))
	e := place("o1")
	require.Eventually(t, func() bool { return handle(h, e) == nil }, patience, tick)
	require.Eventually(t, func() bool { return len(s.emitted(t)) == 1 }, patience, tick)
	cancel()
	require.NoError(t, <-ended)
}

func TestFaultsOfTimersAreToldAtOnce(t *testing.T) {
	t.Parallel()
	_, err := saga.NewTimers((*pgxpool.Pool)(nil), saga.TimersConfig{Every: -1})
	require.ErrorIs(t, err, saga.ErrInvalid)
	require.ErrorContains(t, err, "pool is nil")
	require.ErrorContains(t, err, "Every -1ns")
}
