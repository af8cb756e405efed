package saga_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

func TestListFindsWhatAPersonLooksFor(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := s.flow()
	saga.Step(f, "reserve", placed, func(ctx context.Context, tx *saga.Tx, _ stream.Event, o order) error {
		if o.ID == "refused" {
			return saga.Refuse(nil)
		}
		return nil
	}, saga.StepConfig[order]{Within: 48 * time.Hour})
	h := s.handler(t, f)
	var want []string
	for i := range 5 {
		e := place(fmt.Sprint("o", i))
		want = append(want, e.ID)
		require.NoError(t, handle(h, e))
	}
	refused := place("refused")
	require.NoError(t, handle(h, refused))

	var got []string
	var page []saga.Saga
	for filter := (saga.Filter{Flow: flowName, Limit: 2, States: []saga.State{saga.StateRunning}}); ; filter.After = page[len(page)-1] {
		var err error
		page, err = saga.List(t.Context(), s.pool, filter)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		require.LessOrEqual(t, len(page), 2)
		got = append(got, ids(page)...)
	}
	require.Equal(t, want, got, "those that were touched longest ago come first")

	for name, filter := range map[string]saga.Filter{
		"the refused one": {States: []saga.State{saga.StateAborting, saga.StateParked}}, "none is stuck": {Stuck: true}, "another flow": {Flow: "other"},
	} {
		all, err := saga.List(t.Context(), s.pool, filter)
		require.NoError(t, err)
		if name == "the refused one" {
			require.Equal(t, []string{refused.ID}, ids(all))
			require.Equal(t, "refused", all[0].Cause)
		} else {
			require.Empty(t, all, name)
		}
	}
	_, err := saga.List(t.Context(), s.pool, saga.Filter{Limit: -1})
	require.ErrorIs(t, err, saga.ErrInvalid)
	all, err := saga.List(t.Context(), s.pool, saga.Filter{})
	require.NoError(t, err)
	require.Len(t, all, 6)
	require.WithinDuration(t, time.Now().Add(48*time.Hour), all[0].ExpectedBy, time.Hour, "longer than an int4 of microseconds")
}

func TestSagaWhoseNextStepIsOverdueIsStuck(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := checkout(s.flow(func(c *saga.Config) { c.Within = time.Microsecond }))
	h := s.handler(t, f)
	e := place("o1")
	require.NoError(t, handle(h, e))
	stuck, err := saga.List(t.Context(), s.pool, saga.Filter{Stuck: true})
	require.NoError(t, err)
	require.Equal(t, []string{e.ID}, ids(stuck))
	require.Equal(t, "reserve", stuck[0].LastStep)
	require.True(t, stuck[0].Stuck)
	s.run(t, h, s.emitted(t)...)
	stuck, err = saga.List(t.Context(), s.pool, saga.Filter{Stuck: true})
	require.NoError(t, err)
	require.Empty(t, stuck, "it has ended")
}

func TestPurgeDeletesOnlyWhatEndedLongAgo(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := checkout(s.flow())
	h := s.handler(t, f)
	old, fresh, running := place("o1"), place("o2"), place("o3")
	s.run(t, h, old)
	s.run(t, h, fresh)
	require.NoError(t, handle(h, running))
	_, err := s.pool.Exec(t.Context(), `UPDATE streamkeel.saga SET updated = now() - interval '8 days' WHERE saga_id <> $1`, fresh.ID)
	require.NoError(t, err)
	n, err := f.Purge(t.Context(), s.pool, 7*24*time.Hour)
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	_, err = saga.Get(t.Context(), s.pool, flowName, old.ID)
	require.ErrorIs(t, err, saga.ErrNotFound)
	require.Equal(t, saga.StateCompleted, s.state(t, fresh.ID))
	require.Equal(t, saga.StateRunning, s.state(t, running.ID))
	var steps int
	require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT count(*) FROM streamkeel.saga_step WHERE saga_id = $1`, old.ID).Scan(&steps))
	require.Zero(t, steps)
	_, err = f.Purge(t.Context(), s.pool, 0)
	require.ErrorIs(t, err, saga.ErrInvalid)
}

func TestMissingTablesAreSaidToBe(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, err := s.pool.Exec(t.Context(), `DROP TABLE streamkeel.saga_step, streamkeel.saga_log, streamkeel.saga_timer, streamkeel.saga`)
	require.NoError(t, err)
	f := checkout(s.flow())
	require.ErrorContains(t, handle(s.handler(t, f), place("o1")), "apply the migrations")
	_, err = saga.List(t.Context(), s.pool, saga.Filter{})
	require.ErrorContains(t, err, "apply the migrations")
	timers, err := saga.NewTimers(s.pool, saga.TimersConfig{})
	require.NoError(t, err)
	require.ErrorContains(t, timers.Run(t.Context()), "apply the migrations")
}

func TestOutageOfPostgresIsNoAttempt(t *testing.T) {
	t.Parallel()
	s := newService(t)
	gone, err := pgxpool.New(t.Context(), "postgres://streamkeel@127.0.0.1:1/none?connect_timeout=5")
	require.NoError(t, err)
	defer gone.Close()
	h, err := checkout(s.flow()).Handler(gone)
	require.NoError(t, err)
	require.Equal(t, consumergroup.UnavailableError, consumergroup.Classify(handle(h, place("o1"))))

	cut := s.flow()
	saga.Step(cut, "reserve", placed, func(ctx context.Context, tx *saga.Tx, _ stream.Event, _ order) error {
		_, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
		return saga.Refuse(errors.Join(errors.New("made of it what it is not"), err))
	})
	e := place("o2")
	require.Equal(t, consumergroup.UnavailableError, consumergroup.Classify(handle(s.handler(t, cut), e)))
	_, err = saga.Get(t.Context(), s.pool, flowName, e.ID)
	require.ErrorIs(t, err, saga.ErrNotFound)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = s.handler(t, checkout(s.flow())).Handle(ctx, place("o3"))
	require.ErrorIs(t, err, context.Canceled)
	require.NotEqual(t, consumergroup.UnavailableError, consumergroup.Classify(err))
}

// What a step meets elsewhere is its own failure: it would stop the consumer for ever as an
// outage of Postgres.
func TestFailureOfAnotherServiceIsAnAttemptOfTheStep(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for name, fail := range map[string]func(context.Context, *saga.Tx) error{
		"another service is away": func(context.Context, *saga.Tx) error {
			return &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		},
		"a statement takes longer than the step allows it": func(ctx context.Context, tx *saga.Tx) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			defer cancel()
			_, err := tx.Exec(ctx, `SELECT pg_sleep(60)`)
			return err
		},
	} {
		flow := s.flow()
		saga.Step(flow, "reserve", placed, func(ctx context.Context, tx *saga.Tx, _ stream.Event, _ order) error { return fail(ctx, tx) })
		err := handle(s.handler(t, flow), place("o1"))
		require.Error(t, err, name)
		require.Equal(t, consumergroup.Transient, consumergroup.Classify(err), "%s: %v", name, err)
	}
}

// Two steps that deadlock with each other are run again, by themselves.
func TestStepThatLosesAgainstAnotherIsRunAgain(t *testing.T) {
	t.Parallel()
	s := newService(t)
	runs := 0
	f := s.flow()
	saga.Step(f, "reserve", placed, func(ctx context.Context, tx *saga.Tx, e stream.Event, o order) error {
		if err := effect("reserve")(ctx, tx, e, o); err != nil {
			return err
		}
		if runs++; runs < 3 {
			_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40P01'; END $$`)
			return err
		}
		return nil
	})
	e := place("o1")
	require.NoError(t, handle(s.handler(t, f), e))
	require.Equal(t, 3, runs)
	require.Equal(t, []string{"reserve"}, s.effects(t, e.ID))
}

func TestTransactionIsAQuerier(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := saga.List(t.Context(), tx, saga.Filter{})
		return err
	}))
}
