package saga_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

// checkout declares reserve, charge and confirm. charge may be replaced.
func checkout(f *saga.Flow, charge ...func(context.Context, *saga.Tx, stream.Event, order) error) *saga.Flow {
	do := effect("charge", charged)
	if len(charge) > 0 {
		do = charge[0]
	}
	saga.Step(f, "reserve", placed, effect("reserve", reserved), undoable("reserve"))
	saga.Step(f, "charge", reserved, do, undoable("charge"))
	saga.Step(f, "confirm", charged, effect("confirm"), saga.StepConfig[order]{Final: true})
	return f
}

func TestSagaRunsToItsEnd(t *testing.T) {
	t.Parallel()
	s := newService(t)
	h := s.handler(t, checkout(s.flow()))
	e := place("o1")
	s.run(t, h, e)
	require.Equal(t, []string{"reserve", "charge", "confirm"}, s.effects(t, e.ID))
	got := s.get(t, e.ID)
	require.Equal(t, saga.StateCompleted, got.State)
	require.Equal(t, "confirm", got.LastStep)
	require.Zero(t, got.ExpectedBy)
	require.False(t, got.Stuck)
	require.Equal(t, []string{"done reserve", "done charge", "done confirm", "completed confirm"}, history(got))
	for i, step := range []string{"reserve", "charge", "confirm"} {
		require.Equal(t, step, got.Steps[i].Step)
		require.Equal(t, "action", got.Steps[i].Op)
		require.Equal(t, "done", got.Steps[i].Outcome)
	}
	require.Equal(t, e.ID, got.Steps[0].EventID)
}

func TestEventsOfASagaCarryItsIDAndTheirCause(t *testing.T) {
	t.Parallel()
	s := newService(t)
	h := s.handler(t, checkout(s.flow()))
	e := place("o1")
	require.NoError(t, handle(h, e))
	out := s.emitted(t)
	require.Len(t, out, 1)
	require.Equal(t, e.ID, out[0].CorrelationID)
	require.Equal(t, e.ID, out[0].CausationID)
	require.Equal(t, "o1", out[0].Key)
	require.NoError(t, handle(h, out[0]))
	next := s.emitted(t)
	require.Equal(t, e.ID, next[0].CorrelationID)
	require.Equal(t, out[0].ID, next[0].CausationID)
	require.NoError(t, handle(h, next[0]))
	end := s.emitted(t)
	require.Len(t, end, 1)
	require.Equal(t, "checkout.completed", end[0].Type)
	c, err := checkout(s.flow()).Completed().Decode(end[0])
	require.NoError(t, err)
	require.Equal(t, saga.Completed{Flow: flowName, Saga: e.ID, Step: "confirm"}, c)
}

func TestRefusalUndoesWhatWasDoneLastFirstAndNeverTheRefusedStep(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := s.flow()
	saga.Step(f, "reserve", placed, effect("reserve", reserved), undoable("reserve"))
	saga.Step(f, "charge", reserved, effect("charge", charged), undoable("charge"))
	saga.Step(f, "confirm", charged, refusal("nobody delivers there"), saga.StepConfig[order]{Final: true, Compensate: effect("undo confirm")})
	h := s.handler(t, f)
	e := place("o1")
	s.run(t, h, e)
	require.Equal(t, []string{"reserve", "charge", "undo charge", "undo reserve"}, s.effects(t, e.ID), "what the refused step wrote is gone")
	got := s.get(t, e.ID)
	require.Equal(t, saga.StateCompensated, got.State)
	require.Equal(t, "nobody delivers there", got.Cause)
	require.Equal(t, []string{"done reserve", "done charge", "refused confirm", "undone charge", "undone reserve", "compensated"}, history(got))
	require.Equal(t, "refused", got.Steps[2].Outcome)
	require.Equal(t, "nobody delivers there", got.Steps[2].Error)
}

func TestStepsThatCannotBeUndoneAreSaidToBe(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := s.flow()
	saga.Step(f, "reserve", placed, effect("reserve", reserved), saga.StepConfig[order]{NothingToUndo: true})
	saga.Step(f, "charge", reserved, refusal("declined"))
	e := place("o1")
	s.run(t, s.handler(t, f), e)
	require.Equal(t, []string{"reserve"}, s.effects(t, e.ID))
	require.Equal(t, []string{"done reserve", "refused charge", "nothing to undo reserve", "compensated"}, history(s.get(t, e.ID)))
}

func TestFailedStepLeavesNothingAndIsTriedAgain(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]func(context.Context, *saga.Tx) error{
		"an error":           func(context.Context, *saga.Tx) error { return errors.New("no answer") },
		"a swallowed error":  func(ctx context.Context, s *saga.Tx) error { _, _ = s.Exec(ctx, `SELECT 1/0`); return nil },
		"a forbidden commit": func(ctx context.Context, s *saga.Tx) error { return s.Commit(ctx) },
		"a rollback":         func(ctx context.Context, s *saga.Tx) error { return s.Rollback(ctx) },
		"a forbidden emit":   func(ctx context.Context, s *saga.Tx) error { return s.Emit(ctx, place("o2")) },
		"a foreign event": func(ctx context.Context, s *saga.Tx) error {
			return s.Emit(ctx, saga.Start(charged.Event("k", order{})))
		},
		"a timer without one": func(ctx context.Context, s *saga.Tx) error {
			return s.After(ctx, "", time.Second, charged.Event("k", order{}))
		},
		"a timer in the past": func(ctx context.Context, s *saga.Tx) error { return s.After(ctx, "t", -1, charged.Event("k", order{})) },
		"an invalid timer": func(ctx context.Context, s *saga.Tx) error {
			return s.After(ctx, "t", 1, stream.NewEvent(charged.Type(), "\xff", "", nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			failures := 2
			f := s.flow(func(c *saga.Config) { c.Starts = []string{placed.Type()} })
			saga.Step(f, "reserve", placed, func(ctx context.Context, tx *saga.Tx, e stream.Event, o order) error {
				if err := effect("reserve", charged)(ctx, tx, e, o); err != nil {
					return err
				}
				if failures--; failures >= 0 {
					return broken(ctx, tx)
				}
				return nil
			}, saga.StepConfig[order]{Emits: []string{charged.Type()}, NothingToUndo: true})
			h := s.handler(t, f)
			e := place("o1")
			for range 2 {
				require.Error(t, handle(h, e))
				require.Empty(t, s.effects(t, e.ID))
				require.Empty(t, s.emitted(t))
				_, err := saga.Get(t.Context(), s.pool, flowName, e.ID)
				require.ErrorIs(t, err, saga.ErrNotFound)
			}
			require.NoError(t, handle(h, e))
			require.Equal(t, []string{"reserve"}, s.effects(t, e.ID))
			require.Len(t, s.emitted(t), 1)
		})
	}
}

func TestPanickingStepLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := s.flow()
	saga.Step(f, "reserve", placed, func(ctx context.Context, tx *saga.Tx, _ stream.Event, _ order) error {
		_ = write(ctx, tx, "reserve")
		panic("oh")
	})
	h := s.handler(t, f)
	e := place("o1")
	require.Panics(t, func() { _ = handle(h, e) })
	require.Empty(t, s.effects(t, e.ID))
	require.EqualValues(t, 0, s.pool.Stat().AcquiredConns(), "its connection is given back")
}

func TestOneStepThatFailsDoesNotKeepOthersOfTheEventFromBeingDone(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := s.flow()
	broken := func(context.Context, *saga.Tx, stream.Event, order) error {
		return consumergroup.Permanent(errors.New("never"))
	}
	again := errors.New("again")
	late := again
	saga.Step(f, "broken", placed, broken)
	saga.Step(f, "late", placed, func(ctx context.Context, tx *saga.Tx, e stream.Event, o order) error {
		if late != nil {
			return late
		}
		return effect("late")(ctx, tx, e, o)
	})
	saga.Step(f, "fine", placed, effect("fine"))
	h := s.handler(t, f)
	e := place("o1")
	require.Equal(t, consumergroup.Transient, consumergroup.Classify(handle(h, e)), "it is not dead-lettered while a step still wants it")
	late = nil
	require.Equal(t, consumergroup.PermanentError, consumergroup.Classify(handle(h, e)))
	require.Equal(t, []string{"fine", "late"}, s.effects(t, e.ID))
}

func TestUndecodablePayloadIsPermanent(t *testing.T) {
	t.Parallel()
	s := newService(t)
	h := s.handler(t, checkout(s.flow()))
	e := place("o1")
	e.Data = []byte{0xdd, 0xff, 0xff, 0xff, 0xff}
	require.Equal(t, consumergroup.PermanentError, consumergroup.Classify(handle(h, e)))
	for _, own := range []string{"checkout.aborted", "checkout.completed"} {
		require.Equal(t, consumergroup.PermanentError, consumergroup.Classify(handle(h, stream.NewEvent(own, "k", "", e.Data))))
	}
}

func TestOtherTypesAreUnhandled(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := checkout(s.flow())
	require.ErrorIs(t, s.handler(t, f).Handle(t.Context(), overdue.Event("k", order{})), consumergroup.ErrUnhandled)
	require.ElementsMatch(t, []string{"checkout.aborted", "checkout.completed", "order.placed", "stock.reserved", "money.charged"}, f.Types())
}

func TestLateRefusalDoesNotUndoACompletedSaga(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := checkout(s.flow())
	saga.Step(f, "expire", overdue, refusal("nobody paid in time"))
	h := s.handler(t, f)
	e := place("o1")
	s.run(t, h, e)
	late := overdue.Event("o1", order{ID: "o1"})
	late.CorrelationID = e.ID
	s.run(t, h, late)
	require.Equal(t, saga.StateCompleted, s.state(t, e.ID))
	require.Equal(t, []string{"reserve", "charge", "confirm"}, s.effects(t, e.ID))
}

func TestStepMayCompleteTheSagaItself(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := s.flow()
	saga.Step(f, "reserve", placed, func(_ context.Context, tx *saga.Tx, _ stream.Event, _ order) error { tx.Complete(); return nil })
	e := place("o1")
	require.NoError(t, handle(s.handler(t, f), e))
	require.Equal(t, saga.StateCompleted, s.state(t, e.ID))
}

func TestStartMakesASagaOfItsOwnWithinAConversation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	ctx := stream.WithCause(t.Context(), stream.Event{ID: "import-1"})
	one, two := saga.Start(place("o1")), saga.Start(place("o2"))
	require.NoError(t, outbox.Publish(ctx, s.pool, s.topic, one, two))
	out := s.emitted(t)
	require.Equal(t, "import-1", out[0].CausationID)
	require.Equal(t, one.ID, saga.ID(out[0]))
	require.Equal(t, two.ID, saga.ID(out[1]))
	s.run(t, s.handler(t, checkout(s.flow())), out...)
	require.Equal(t, saga.StateCompleted, s.state(t, one.ID))
	require.Equal(t, saga.StateCompleted, s.state(t, two.ID))
}

func TestFaultsOfAFlowAreToldAtOnce(t *testing.T) {
	t.Parallel()
	step := func(context.Context, *saga.Tx, stream.Event, order) error { return nil }
	f := saga.New("bad name", saga.Config{Topic: stream.Topic{Name: "a:b"}, Within: -1, AbortWithin: -2, MaxAttempts: -3, Starts: []string{placed.Type()}})
	saga.Step(f, "reserve", placed, step)
	saga.Step(f, "reserve", placed, step)
	saga.Step(f, "", placed, nil, saga.StepConfig[order]{Within: -4})
	saga.Step(f, "both", placed, step, saga.StepConfig[order]{Compensate: step, NothingToUndo: true})
	saga.Step(f, "two", placed, step, saga.StepConfig[order]{}, saga.StepConfig[order]{})
	saga.Step(f, "untyped", stream.Define[order](""), step)
	saga.Step(f, "lost", charged, step)
	saga.Step(f, "own", f.Aborted(), func(context.Context, *saga.Tx, stream.Event, saga.Aborted) error { return nil })
	_, err := f.Handler(nil)
	require.ErrorIs(t, err, saga.ErrInvalid)
	for _, part := range []string{
		`"bad name"`, `"a:b"`, "Within -1ns", "AbortWithin -2ns", "MaxAttempts -3", "is taken by another step", "the function is nil",
		"Within -4ns", "Compensate and NothingToUndo", "2 configs", "step lost waits for money.charged", "which is the flow's own", "pool is nil",
	} {
		require.ErrorContains(t, err, part)
	}
	_, err = saga.New("empty", saga.Config{Topic: stream.Topic{Name: "t"}}).Handler(nil)
	require.ErrorContains(t, err, "it has no steps")
}
