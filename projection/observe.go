package projection

import (
	"context"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Moment is something that happens to a projection.
type Moment string

// The moments.
const (
	Applied   Moment = "applied"   // a transaction was committed; counts say what was in it
	Failed    Moment = "failed"    // an event failed, and is tried again later
	Malformed Moment = "malformed" // an entry that cannot be read was passed
	Rewound   Moment = "rewound"   // a stream is read again from its start, guarded by the sequence
	Halted    Moment = "halted"    // the runner stops with Err
	Waiting   Moment = "waiting"   // Postgres or Redis is away
)

// Observation is what an Observer is told.
type Observation struct {
	Moment     Moment
	Projection string
	// Stream, ID and Event name the entry, where the moment is about one.
	Stream string
	ID     stream.ID
	Event  stream.Event
	// Events and Skipped count a transaction's events: those that were applied, and those
	// that had been applied before.
	Events, Skipped int
	// Took is how long the transaction took.
	Took time.Duration
	// Attempt counts an event's failures, Err is the last.
	Attempt int
	Err     error
}

// Observer is told of every moment, in the way of the runner: it must be quick, and not block.
type Observer interface {
	Observe(ctx context.Context, o Observation)
}

func (r *Runner) observe(ctx context.Context, o Observation) {
	if r.config.Observer != nil {
		o.Projection = r.config.Name
		r.config.Observer.Observe(ctx, o)
	}
}
