package saga_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

// other is a test within a test, with a database of its own.
type other struct{ testing.TB }

var allSteps = []string{"reserve", "label", "charge", "confirm"}

// scenario is what happens to a saga besides the order of its events.
type scenario struct {
	t        *rapid.T
	services []*service
	refuses  string         // the step that refuses
	failures map[string]int // how often a step or compensation fails before it succeeds
	parallel bool           // "label" belongs to the second service, or else "charge" does
}

// step declares a step, if it is the service's.
func (sc *scenario) step(f *saga.Flow, here bool, name string, on stream.Definition[order], final bool, emits ...stream.Definition[order]) {
	if !here {
		return
	}
	fails := func(what string, fn func(context.Context, *saga.Tx, stream.Event, order) error) func(context.Context, *saga.Tx, stream.Event, order) error {
		return func(ctx context.Context, s *saga.Tx, e stream.Event, o order) error {
			err := fn(ctx, s, e, o)
			if sc.failures[what]--; err == nil && sc.failures[what] >= 0 {
				return errors.New("not now")
			}
			return err
		}
	}
	do := effect(name, emits...)
	if sc.refuses == name {
		do = refusal("refused by " + name)
	}
	saga.Step(f, name, on, fails(name, do), saga.StepConfig[order]{Compensate: fails("undo "+name, effect("undo "+name)), Final: final})
}

func (sc *scenario) handlers() []consumergroup.Handler {
	var all []consumergroup.Handler
	for i, s := range sc.services {
		f := s.flow()
		first, only := i == 0, len(sc.services) == 1
		sc.step(f, first, "reserve", placed, false, reserved)
		sc.step(f, only || sc.parallel != first, "label", placed, false)
		sc.step(f, only || sc.parallel == first, "charge", reserved, false, charged)
		sc.step(f, first, "confirm", charged, true)
		all = append(all, s.handler(sc.t, f))
	}
	return all
}

type delivery struct {
	to    int // which service
	event stream.Event
}

// TestEveryOrderOfEventsEndsTheSame delivers the events of a saga to one or two services in any order that
// their cause allows, again and again, with steps and compensations that fail, a step that refuses, and an
// operator who aborts. All services end alike: everything done once, or everything undone once,
// the last first.
func TestEveryOrderOfEventsEndsTheSame(t *testing.T) {
	t.Parallel()
	one, two := newService(t), newService(other{t})
	two.topic = one.topic
	ended := map[saga.State]int{}
	rapid.Check(t, func(t *rapid.T) {
		sc := &scenario{t: t, services: []*service{one}, failures: map[string]int{}}
		if rapid.Bool().Draw(t, "two services") {
			sc.services = []*service{one, two}
			sc.parallel = rapid.Bool().Draw(t, "parallel")
		}
		sc.refuses = rapid.SampledFrom(append([]string{"", ""}, allSteps...)).Draw(t, "refuses")
		for _, name := range allSteps {
			sc.failures[name] = rapid.IntRange(0, 1).Draw(t, name+" fails")
			sc.failures["undo "+name] = rapid.IntRange(0, 1).Draw(t, "undo "+name+" fails")
		}
		ended[sc.play(rapid.SampledFrom([]int{0, 0, 2, 4, 6, 9}).Draw(t, "abort at"))]++
	})
	require.NotZero(t, ended[saga.StateCompleted])
	require.NotZero(t, ended[saga.StateCompensated])
}

// play runs one saga to its end, and returns how it ended.
func (sc *scenario) play(abortAt int) saga.State {
	t, handlers := sc.t, sc.handlers()
	start := place("o1")
	var bag []delivery
	publish := func(events ...stream.Event) {
		for _, e := range events {
			for to := range handlers {
				bag = append(bag, delivery{to, e})
			}
		}
	}
	publish(start)
	aborted := false
	for n := 1; len(bag) > 0; n++ {
		if n == abortAt {
			err := sc.services[0].flow().Abort(t.Context(), sc.services[0].pool, start.ID, "by hand")
			aborted = err == nil
			if err != nil && !errors.Is(err, saga.ErrState) && !errors.Is(err, saga.ErrNotFound) {
				require.NoError(t, err)
			}
		}
		i := rapid.IntRange(0, len(bag)-1).Draw(t, "next")
		d := bag[i]
		err := handle(handlers[d.to], d.event)
		if err == nil && rapid.IntRange(0, 3).Draw(t, "again") > 0 {
			bag = slices.Delete(bag, i, i+1)
		}
		for _, s := range sc.services {
			publish(s.emitted(t)...)
		}
	}
	return sc.judge(start.ID, aborted)
}

func (sc *scenario) judge(id string, aborted bool) saga.State {
	t := sc.t
	state := sc.services[0].state(t, id)
	var done, undone []string
	for _, s := range sc.services {
		require.Equal(t, state, s.state(t, id), "every service ends alike")
		var doneHere, undoneHere []string
		for _, what := range s.effects(t, id) {
			if step, undo := strings.CutPrefix(what, "undo "); undo {
				undoneHere = append(undoneHere, step)
			} else {
				require.Empty(t, undoneHere, "nothing is done once undoing began")
				doneHere = append(doneHere, what)
			}
		}
		if state == saga.StateCompensated {
			slices.Reverse(undoneHere)
			require.Equal(t, doneHere, undoneHere, "what was done is undone, the last first")
		}
		done, undone = append(done, doneHere...), append(undone, undoneHere...)
	}
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(done))), len(done), "each once: %v", done)
	require.NotContains(t, done, sc.refuses)
	switch {
	case sc.refuses == "" && !aborted:
		require.Equal(t, saga.StateCompleted, state)
		require.ElementsMatch(t, allSteps, done)
	case aborted, sc.refuses != "label":
		require.Equal(t, saga.StateCompensated, state)
	}
	if state == saga.StateCompleted { // also where the label is refused too late
		require.Empty(t, undone)
		for _, step := range allSteps {
			require.True(t, slices.Contains(done, step) || step == sc.refuses, step)
		}
	}
	return state
}

func TestManyWorkersAtOnceDoEachStepOnce(t *testing.T) {
	t.Parallel()
	s := newService(t)
	decline := func(ctx context.Context, tx *saga.Tx, e stream.Event, o order) error {
		if strings.HasSuffix(o.ID, "3") {
			return saga.Refuse(errors.New("declined"))
		}
		return effect("charge", charged)(ctx, tx, e, o)
	}
	h := s.handler(t, checkout(s.flow(), decline))
	var starts, batch []stream.Event
	for i := range 20 {
		starts = append(starts, place(fmt.Sprint("o", i)))
	}
	for batch = starts; len(batch) > 0; batch = s.emitted(t) {
		thrice := slices.Concat(batch, batch, batch)
		rand.Shuffle(len(thrice), func(i, j int) { thrice[i], thrice[j] = thrice[j], thrice[i] })
		work := make(chan stream.Event, len(thrice))
		for _, e := range thrice {
			work <- e
		}
		close(work)
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				for e := range work {
					if err := handle(h, e); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	for i, e := range starts {
		if strings.HasSuffix(fmt.Sprint(i), "3") {
			require.Equal(t, saga.StateCompensated, s.state(t, e.ID))
			require.Equal(t, []string{"reserve", "undo reserve"}, s.effects(t, e.ID))
			continue
		}
		require.Equal(t, saga.StateCompleted, s.state(t, e.ID))
		require.Equal(t, []string{"reserve", "charge", "confirm"}, s.effects(t, e.ID))
	}
}

// An abort that comes while a step is in work waits for it, and undoes it.
func TestAbortWaitsForTheStepInWork(t *testing.T) {
	t.Parallel()
	s := newService(t)
	inWork, goOn := make(chan struct{}), make(chan struct{})
	f := checkout(s.flow(), func(ctx context.Context, tx *saga.Tx, e stream.Event, o order) error {
		close(inWork)
		<-goOn
		return effect("charge", charged)(ctx, tx, e, o)
	})
	h := s.handler(t, f)
	e := place("o1")
	require.NoError(t, handle(h, e))
	next := s.emitted(t)[0]
	stepped, aborted := make(chan error, 1), make(chan error, 1)
	go func() { stepped <- handle(h, next) }()
	<-inWork
	abort := f.Aborted().Event("o1", saga.Aborted{Flow: flowName, Saga: e.ID, Cause: "elsewhere"})
	abort.CorrelationID = e.ID
	go func() { aborted <- handle(h, abort) }()
	s.waiting(t, 1)
	close(goOn)
	require.NoError(t, <-stepped)
	require.NoError(t, <-aborted)
	s.run(t, h, s.emitted(t)...)
	require.Equal(t, []string{"reserve", "charge", "undo charge", "undo reserve"}, s.effects(t, e.ID))
	require.Equal(t, saga.StateCompensated, s.state(t, e.ID))
}

// An abort that comes before the events of its saga leaves nothing for them to do.
func TestAbortBeforeTheSagaIsKnown(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := checkout(s.flow())
	h := s.handler(t, f)
	e := place("o1")
	abort := f.Aborted().Event("o1", saga.Aborted{Flow: flowName, Saga: e.ID, Step: "pay", Cause: "elsewhere"})
	abort.CorrelationID = e.ID
	s.run(t, h, abort, e, abort)
	require.Empty(t, s.effects(t, e.ID))
	require.Empty(t, s.emitted(t))
	require.Equal(t, []string{"aborted pay", "compensated", "skipped reserve"}, history(s.get(t, e.ID)))
}

// waiting waits until n transactions wait for a lock.
func (s *service) waiting(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		var waiting int
		err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting)
		return err == nil && waiting == n
	}, patience, tick, "nobody waits")
}

// Another service may refuse when this one has come to its end already.
func TestAbortAfterTheSagaWasCompletedHere(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := checkout(s.flow())
	h := s.handler(t, f)
	e := place("o1")
	s.run(t, h, e)
	abort := f.Aborted().Event("o1", saga.Aborted{Flow: flowName, Saga: e.ID, Step: "ship", Cause: "elsewhere"})
	abort.CorrelationID = e.ID
	s.run(t, h, abort)
	require.Equal(t, []string{"reserve", "charge", "confirm", "undo charge", "undo reserve"}, s.effects(t, e.ID))
	require.Equal(t, saga.StateCompensated, s.state(t, e.ID))
	completed := f.Completed().Event("o1", saga.Completed{Flow: flowName, Saga: e.ID, Step: "confirm"})
	completed.CorrelationID = e.ID
	s.run(t, h, completed)
	require.Equal(t, saga.StateCompensated, s.state(t, e.ID), "who says so later changes nothing")
}
