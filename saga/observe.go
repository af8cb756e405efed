package saga

import (
	"context"

	"github.com/streamkeel/streamkeel/stream"
)

// Moment is something that happens to a saga. The saga's log has the same words.
type Moment string

// The moments.
const (
	StepDone           Moment = "done"                 // a step was done
	StepRefused        Moment = "refused"              // a step refused, and aborted the saga
	StepSkipped        Moment = "skipped"              // a step's event came after the abort
	StepRepeated       Moment = "repeated"             // a step's event came again; not in the log
	SagaCompleted      Moment = "completed"            // the saga reached its end
	SagaAborted        Moment = "aborted"              // the abort reached this database
	StepCompensated    Moment = "undone"               // a step was undone
	NothingToUndo      Moment = "nothing to undo"      // a step has no compensation
	CompensationFailed Moment = "compensation failed"  // and is tried again
	SagaParked         Moment = "parked"               // it waits for a person
	CompensationGiven  Moment = "compensation skipped" // by a person
	SagaCompensated    Moment = "compensated"          // everything that was done here is undone
	TimerFired         Moment = "timer fired"          // its event was published
)

// Observation is what an Observer is told, after the transaction committed.
type Observation struct {
	Moment     Moment
	Flow, Saga string
	Step       string
	Event      stream.Event
	// Attempt counts a compensation's failures, Err is the last, or why a step refused.
	Attempt int
	Err     error
}

// Observer is told of every moment, from many goroutines, in the way of the handler: it
// must be quick, and not block.
type Observer interface {
	Observe(ctx context.Context, o Observation)
}

func (f *Flow) observe(ctx context.Context, observations []Observation) {
	if f.config.Observer == nil {
		return
	}
	for _, o := range observations {
		o.Flow = f.name
		f.config.Observer.Observe(ctx, o)
	}
}
