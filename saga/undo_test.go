package saga_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

const (
	patience = 30 * time.Second
	tick     = 10 * time.Millisecond
)

// seen is an Observer that keeps what it is told.
type seen struct {
	mu  sync.Mutex
	all []saga.Observation
}

func (s *seen) Observe(_ context.Context, o saga.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, o)
}

func (s *seen) count(m saga.Moment) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.all {
		if o.Moment == m {
			n++
		}
	}
	return n
}

// faulty is a service whose step confirm refuses, and whose refund may be broken.
type faulty struct {
	*service
	flow    *saga.Flow
	handler consumergroup.Handler
	seen    *seen
	broken  map[string]func() error // by step, what its compensation returns after it wrote
}

func newFaulty(t *testing.T, edit ...func(*saga.Config)) *faulty {
	t.Parallel()
	f := &faulty{service: newService(t), seen: &seen{}, broken: map[string]func() error{}}
	f.flow = f.service.flow(append(edit, func(c *saga.Config) { c.Observer = f.seen })...)
	saga.Step(f.flow, "reserve", placed, effect("reserve", reserved), saga.StepConfig[order]{Compensate: f.undo("reserve")})
	saga.Step(f.flow, "charge", reserved, effect("charge", charged), saga.StepConfig[order]{Compensate: f.undo("charge")})
	saga.Step(f.flow, "confirm", charged, refusal("nobody delivers there"), saga.StepConfig[order]{Final: true})
	f.handler = f.service.handler(t, f.flow)
	return f
}

func (f *faulty) undo(step string) func(context.Context, *saga.Tx, stream.Event, order) error {
	return func(ctx context.Context, s *saga.Tx, e stream.Event, o order) error {
		if err := effect("undo "+step)(ctx, s, e, o); err != nil {
			return err
		}
		if fn := f.broken[step]; fn != nil {
			return fn()
		}
		return nil
	}
}

// abort runs a saga until it is aborted, and returns its id and the event that says so.
func (f *faulty) abort(t *testing.T) (string, stream.Event) {
	t.Helper()
	e := place("o1")
	next := []stream.Event{e}
	for next[0].Type != f.flow.Aborted().Type() {
		require.NoError(t, handle(f.handler, next[0]))
		next = f.emitted(t)
		require.Len(t, next, 1)
	}
	require.Equal(t, saga.StateAborting, f.state(t, e.ID))
	return e.ID, next[0]
}

// times returns an error n times, and then nil.
func times(n int, err error) func() error {
	return func() error {
		if n--; n >= 0 {
			return err
		}
		return nil
	}
}

var errRefund = errors.New("the bank does not answer")

func TestFailedCompensationIsTriedAgainAndTakesEffectOnce(t *testing.T) {
	f := newFaulty(t)
	id, aborted := f.abort(t)
	f.broken["charge"] = times(3, errRefund)
	for i := range 3 {
		require.ErrorIs(t, handle(f.handler, aborted), errRefund)
		require.Equal(t, []string{"reserve", "charge"}, f.effects(t, id), "nothing before it is undone out of turn")
		got := f.get(t, id)
		last := got.Steps[len(got.Steps)-1]
		require.Equal(t, saga.StepRecord{Step: "charge", Op: "compensation", Outcome: "failed", Attempts: i + 1, Error: errRefund.Error(), At: last.At}, last)
	}
	for range 2 {
		require.NoError(t, handle(f.handler, aborted))
		require.Equal(t, []string{"reserve", "charge", "undo charge", "undo reserve"}, f.effects(t, id))
	}
	require.Equal(t, saga.StateCompensated, f.state(t, id))
	require.Equal(t, 3, f.seen.count(saga.CompensationFailed))
	require.Equal(t, 2, f.seen.count(saga.StepCompensated))
	require.Equal(t, 1, f.seen.count(saga.SagaCompensated))
}

func TestSagaIsParkedAfterTooManyFailuresOfAllItsCompensations(t *testing.T) {
	f := newFaulty(t, func(c *saga.Config) { c.MaxAttempts = 3 })
	id, aborted := f.abort(t)
	f.broken["charge"], f.broken["reserve"] = times(2, errRefund), times(99, errRefund)
	require.Error(t, handle(f.handler, aborted))
	require.Error(t, handle(f.handler, aborted))
	require.NoError(t, handle(f.handler, aborted), "it is for a person to see to, and not for the dead letters")
	got := f.get(t, id)
	require.Equal(t, saga.StateParked, got.State)
	require.Equal(t, []string{"reserve", "charge", "undo charge"}, f.effects(t, id))
	require.Equal(t, "parked reserve", history(got)[len(got.Log)-1])
	require.NoError(t, handle(f.handler, aborted), "nothing more is tried")
	require.Equal(t, 3, f.seen.count(saga.CompensationFailed))
	require.Equal(t, 1, f.seen.count(saga.SagaParked))
}

func TestPermanentFailureAndPanicOfACompensation(t *testing.T) {
	f := newFaulty(t)
	id, aborted := f.abort(t)
	f.broken["charge"] = func() error { panic("oh") }
	require.ErrorContains(t, handle(f.handler, aborted), "panicked: oh")
	f.broken["charge"] = times(1, consumergroup.Permanent(errRefund))
	require.NoError(t, handle(f.handler, aborted))
	require.Equal(t, saga.StateParked, f.state(t, id), "another attempt would give the same")
}

func TestOutageIsNoAttemptOfACompensation(t *testing.T) {
	f := newFaulty(t, func(c *saga.Config) { c.MaxAttempts = 1 })
	id, aborted := f.abort(t)
	f.broken["charge"] = times(5, consumergroup.Unavailable(errRefund))
	for range 5 {
		require.Equal(t, consumergroup.UnavailableError, consumergroup.Classify(handle(f.handler, aborted)))
	}
	require.Equal(t, saga.StateAborting, f.state(t, id))
	require.NoError(t, handle(f.handler, aborted))
	require.Equal(t, saga.StateCompensated, f.state(t, id))
}

func TestParkedSagaGoesOnWhenAPersonSaysSo(t *testing.T) {
	f := newFaulty(t, func(c *saga.Config) { c.MaxAttempts = 1 })
	id, aborted := f.abort(t)
	f.broken["charge"] = times(2, errRefund)
	require.NoError(t, handle(f.handler, aborted))
	require.Equal(t, saga.StateParked, f.state(t, id))
	require.ErrorContains(t, f.flow.RetryCompensation(t.Context(), f.pool, id), errRefund.Error())
	require.Equal(t, saga.StateParked, f.state(t, id))
	require.NoError(t, f.flow.RetryCompensation(t.Context(), f.pool, id))
	require.Equal(t, []string{"reserve", "charge", "undo charge", "undo reserve"}, f.effects(t, id))
	require.Equal(t, saga.StateCompensated, f.state(t, id))
	require.ErrorIs(t, f.flow.RetryCompensation(t.Context(), f.pool, id), saga.ErrState)
	require.ErrorIs(t, f.flow.RetryCompensation(t.Context(), f.pool, "unknown"), saga.ErrNotFound)
}

func TestPersonMaySkipACompensation(t *testing.T) {
	f := newFaulty(t, func(c *saga.Config) { c.MaxAttempts = 1 })
	id, aborted := f.abort(t)
	require.ErrorIs(t, f.flow.SkipCompensation(t.Context(), f.pool, id, "charge", "early"), saga.ErrState)
	f.broken["charge"] = times(99, errRefund)
	require.NoError(t, handle(f.handler, aborted))
	require.ErrorIs(t, f.flow.SkipCompensation(t.Context(), f.pool, id, "reserve", "wrong step"), saga.ErrNotFound)
	require.NoError(t, f.flow.SkipCompensation(t.Context(), f.pool, id, "charge", "paid back in cash"))
	require.Equal(t, []string{"reserve", "charge", "undo reserve"}, f.effects(t, id))
	got := f.get(t, id)
	require.Equal(t, saga.StateCompensated, got.State)
	i := slices.IndexFunc(got.Log, func(r saga.LogRecord) bool { return r.What == saga.CompensationGiven })
	require.Equal(t, "paid back in cash", got.Log[i].Detail)
}

// Where the event that aborted a saga was dead-lettered, nothing comes to undo it.
func TestSagaThatIsStuckWhileItIsUndoneGoesOnWhenAPersonSaysSo(t *testing.T) {
	f := newFaulty(t, func(c *saga.Config) { c.AbortWithin = time.Microsecond })
	id, _ := f.abort(t)
	stuck, err := saga.List(t.Context(), f.pool, saga.Filter{Flow: flowName, Stuck: true})
	require.NoError(t, err)
	require.Equal(t, []string{id}, ids(stuck))
	require.NoError(t, f.flow.RetryCompensation(t.Context(), f.pool, id))
	require.Equal(t, saga.StateCompensated, f.state(t, id))
}

func TestPersonMayAbortARunningSaga(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := checkout(s.flow())
	h := s.handler(t, f)
	e := place("o1")
	require.NoError(t, handle(h, e))
	require.ErrorIs(t, f.Abort(t.Context(), s.pool, "unknown", ""), saga.ErrNotFound)
	require.NoError(t, f.Abort(t.Context(), s.pool, e.ID, "customer called"))
	require.ErrorIs(t, f.Abort(t.Context(), s.pool, e.ID, "again"), saga.ErrState)
	s.run(t, h, s.emitted(t)...)
	got := s.get(t, e.ID)
	require.Equal(t, saga.StateCompensated, got.State)
	require.Equal(t, "customer called", got.Cause)
	require.Equal(t, []string{"reserve", "undo reserve"}, s.effects(t, e.ID), "the step whose event was on the way was skipped")
}

func TestCompensationGetsTheEventOfItsStep(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var got stream.Event
	f := s.flow()
	saga.Step(f, "reserve", placed, effect("reserve", reserved), saga.StepConfig[order]{
		Compensate: func(_ context.Context, _ *saga.Tx, e stream.Event, o order) error {
			got = e
			require.Equal(t, "o1", o.ID)
			return nil
		},
	})
	saga.Step(f, "charge", reserved, refusal("declined"))
	e := place("o1")
	e.Source, e.Expires, e.Attributes = "shop", time.Now().Add(time.Hour).UTC().Truncate(time.Second), map[string]string{"tenant": "acme"}
	e.Data = append(e.Data, 0xc0)[:len(e.Data)]
	s.run(t, s.handler(t, f), e)
	require.Equal(t, e, got)
}

func ids(sagas []saga.Saga) (all []string) {
	for _, s := range sagas {
		all = append(all, s.ID)
	}
	return all
}
