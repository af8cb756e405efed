package projection

import (
	"errors"
	"fmt"

	"github.com/streamkeel/streamkeel/stream"
)

var (
	// ErrInvalid says that a config breaks a rule.
	ErrInvalid = errors.New("invalid")
	// ErrRewound is stream.ErrRewound: a stream does not continue what was read of it. It was
	// deleted, filled anew, or lost its tail in a failover, and the checkpoint has no sequence
	// with which to tell what was applied. [Runner.Accept] or [Runner.Rebuild] goes on from there.
	ErrRewound = stream.ErrRewound
	// ErrTrimmedUnread is stream.ErrTrimmedUnread: entries were removed from a stream before the
	// projection read them, or before it read the stream for the first time. [Runner.Accept]
	// goes on without them.
	ErrTrimmedUnread = stream.ErrTrimmedUnread
	// ErrStopped is the cause of Apply's context when the runner stopped and
	// ShutdownTimeout passed; the transaction is rolled back.
	ErrStopped = errors.New("projection stopped")
	// ErrApplyTimeout is the cause of Apply's context when ApplyTimeout passed.
	ErrApplyTimeout = errors.New("apply timeout")
	// ErrRunning says that the runner is at work already.
	ErrRunning = errors.New("the runner is running")
)

// errMoved says that somebody else moved a checkpoint: another runner of the projection,
// or a rebuild.
var errMoved = errors.New("projection: the checkpoint was moved by another runner")

// EventError says which event halted a projection. A projection never skips one: after
// whatever makes Apply fail was mended, the next run goes on with this event.
type EventError struct {
	Projection string
	// Stream and ID name the entry, Event and Type the event as far as it could be read.
	Stream      string
	ID          stream.ID
	Event, Type string
	// Attempts is how often it was tried in vain.
	Attempts int
	// Err is the last attempt's error.
	Err error
}

func (e *EventError) Error() string {
	return fmt.Sprintf("projection: %s halts at event %.200s of type %.200s (%s in %s) after %d attempts: %v",
		e.Projection, e.Event, e.Type, e.ID, e.Stream, e.Attempts, e.Err)
}

func (e *EventError) Unwrap() error { return e.Err }
