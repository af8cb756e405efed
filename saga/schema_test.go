package saga_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

func TestSagasOfAnotherSchemaNeedNoOther(t *testing.T) {
	t.Parallel()
	s := newService(t)
	testenv.MigrateIn(t, testenv.PostgresURL(t), "billing")
	_, err := s.pool.Exec(t.Context(), `DROP SCHEMA streamkeel CASCADE`)
	require.NoError(t, err)

	f := s.flow(func(c *saga.Config) { c.Schema = "billing" })
	saga.Step(f, "reserve", placed, func(ctx context.Context, tx *saga.Tx, _ stream.Event, o order) error {
		if err := tx.After(ctx, "overdue", time.Millisecond, overdue.Event(o.ID, o)); err != nil {
			return err
		}
		return tx.Emit(ctx, reserved.Event(o.ID, o))
	}, saga.StepConfig[order]{Compensate: func(context.Context, *saga.Tx, stream.Event, order) error { return nil }})
	e := saga.Start(placed.Event("o1", order{"o1"}))
	require.NoError(t, s.handler(t, f).Handle(t.Context(), e))
	timers, err := saga.NewTimers(s.pool, saga.TimersConfig{Schema: "billing"})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		n, err := timers.RunOnce(t.Context())
		require.NoError(t, err)
		return n == 1
	}, 30*time.Second, 5*time.Millisecond)
	require.NoError(t, f.Abort(t.Context(), s.pool, saga.ID(e), "enough"))
	require.NoError(t, f.RetryCompensation(t.Context(), s.pool, saga.ID(e)))
	sagas, err := saga.In("billing")
	require.NoError(t, err)
	found, err := sagas.List(t.Context(), s.pool, saga.Filter{})
	require.NoError(t, err)
	require.Len(t, found, 1)
	one, err := sagas.Get(t.Context(), s.pool, flowName, saga.ID(e))
	require.NoError(t, err)
	require.Equal(t, saga.StateCompensated, one.State)
	var events int
	require.NoError(t, s.pool.QueryRow(t.Context(), `SELECT count(*) FROM billing.outbox WHERE type IN ('stock.reserved', 'payment.overdue', 'checkout.aborted')`).Scan(&events))
	require.Equal(t, 3, events)
}

func TestNamesThatAreNoSchemasAreRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, err := s.flow(func(c *saga.Config) { c.Schema = "a.b" }).Handler(s.pool)
	require.ErrorContains(t, err, `Schema: schema "a.b" is not [a-z_]`)
	_, err = saga.NewTimers(s.pool, saga.TimersConfig{Schema: "a.b"})
	require.ErrorContains(t, err, `Schema: schema "a.b" is not [a-z_]`)
	_, err = saga.In("a.b")
	require.ErrorContains(t, err, "is not [a-z_]")
}
