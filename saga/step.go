package saga

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// StepConfig says more about a step; the zero value is a step that cannot be undone.
type StepConfig[T any] struct {
	// Compensate undoes the step, in a transaction of its own, with the event that the step
	// was done for. It must not refuse: an error is another attempt, by the consumer group's
	// policy, and after Config.MaxAttempts failures the saga is parked for a person. It runs only if
	// the step was done, and takes effect once.
	Compensate func(ctx context.Context, s *Tx, e stream.Event, v T) error
	// NothingToUndo says that the step needs no compensation, and silences the warning.
	NothingToUndo bool
	// Final completes the saga with this step: a step that refuses later in this database no
	// longer aborts it. Declare it where all branches of the flow have come together.
	Final bool
	// Within is how long after this step the next one that this database sees, or the end of
	// the saga, may take before the saga counts as stuck. Default Config.Within.
	Within time.Duration
	// Emits names the types of events that the step emits; another one is an error, which
	// keeps the declaration true.
	Emits []string
}

// step is a step without its type.
type step struct {
	name, on      string
	do, undo      func(ctx context.Context, s *Tx, e stream.Event) error // undo is nil for none
	nothingToUndo bool
	final         bool
	within        time.Duration
	emits         []string
}

// Step declares a step of the flow: fn runs when an event of the definition comes, in one
// transaction with its barrier, once for each saga, whatever number of such events come.
//
// A nil error commits. [Refuse] aborts the saga. Any other error rolls everything back, and
// is another attempt by the consumer group's policy; an undecodable payload, or an error marked
// consumergroup.Permanent, is dead-lettered, and the saga waits, stuck, until the letter is
// redriven or [Flow.Abort] ends it. fn may run again whenever its transaction did not commit: what it
// does outside of s may happen twice. At most one config may follow.
func Step[T any](f *Flow, name string, on stream.Definition[T], fn func(ctx context.Context, s *Tx, e stream.Event, v T) error, config ...StepConfig[T]) {
	fault := func(format string, args ...any) {
		f.faults = append(f.faults, fmt.Errorf("step %.140q: "+format, append([]any{name}, args...)...))
	}
	var c StepConfig[T]
	switch len(config) {
	case 0:
	case 1:
		c = config[0]
	default:
		fault("%d configs", len(config))
	}
	if !stream.ValidName(name) {
		fault("the name is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}")
	}
	if f.byName[name] != nil {
		fault("the name is taken by another step")
		return
	}
	if err := on.Err(); err != nil {
		fault("%w", err)
	}
	if fn == nil {
		fault("the function is nil")
	}
	if c.Within < 0 {
		fault("Within %s is negative", c.Within)
	}
	if c.Compensate != nil && c.NothingToUndo {
		fault("Compensate and NothingToUndo exclude each other")
	}
	if c.Within == 0 {
		c.Within = f.config.Within
	}
	typed := func(fn func(context.Context, *Tx, stream.Event, T) error) func(context.Context, *Tx, stream.Event) error {
		if fn == nil {
			return nil
		}
		return func(ctx context.Context, s *Tx, e stream.Event) error {
			v, err := on.Decode(e)
			if err != nil {
				return err
			}
			return fn(ctx, s, e, v)
		}
	}
	s := &step{
		name: name, on: on.Type(), do: typed(fn), undo: typed(c.Compensate),
		nothingToUndo: c.NothingToUndo, final: c.Final, within: c.Within, emits: slices.Clone(c.Emits),
	}
	f.steps = append(f.steps, s)
	f.byName[name] = s
	f.byType[s.on] = append(f.byType[s.on], s)
}

// Start makes e the first event of a saga of its own, also where it is published while
// another event is handled, whose correlation id it would take over.
func Start(e stream.Event) stream.Event {
	e.CorrelationID = e.ID
	return e
}

// ID returns the id of the saga that an event belongs to: its correlation id, or where it
// has none its own id.
func ID(e stream.Event) string {
	if e.CorrelationID != "" {
		return e.CorrelationID
	}
	return e.ID
}
