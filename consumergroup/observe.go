package consumergroup

import (
	"context"
	"time"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/stream"
)

// Moment is something that happens to a delivery.
type Moment string

// The moments.
const (
	Delivered    Moment = "delivered"     // it was read, and waits for a worker
	Handled      Moment = "handled"       // its handler returned nil; the ack follows
	Retried      Moment = "retried"       // its handler failed, and it is due again later
	DeadLettered Moment = "dead_lettered" // it became a letter
	Parked       Moment = "parked"        // it cannot be handled, and its key waits for a person (ordered groups)
	Released     Moment = "released"      // it was given back, nothing counted
	Skipped      Moment = "skipped"       // no handler for its type; acked
	Reclaimed    Moment = "reclaimed"     // upkeep took it from a silent consumer
	Trimmed      Moment = "trimmed"       // it was gone from the stream while it was pending
	LostEntry    Moment = "lost"          // another consumer had it when it was to be settled
)

// Observation is what an Observer is told.
type Observation struct {
	Moment       Moment
	Topic, Group string
	// Stream and ID name the entry, Event is the event where it is known.
	Stream string
	ID     stream.ID
	Event  stream.Event
	// Attempt and Deliveries are its counts so far.
	Attempt, Deliveries int
	// Took is how long the handler ran (Handled, Retried, DeadLettered).
	Took time.Duration
	// Err is the handler's error, Reason why it became a letter, Delay until its retry.
	Err    error
	Reason dlq.Reason
	Delay  time.Duration
}

// Observer is told of every moment of every delivery, from many goroutines, in the way of
// the delivery: it must be quick, and not block.
type Observer interface {
	Observe(ctx context.Context, o Observation)
}
