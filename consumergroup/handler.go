package consumergroup

import (
	"context"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Handler handles one delivery of an event. Nil acks it. An error retries it by the
// group's policy, unless it is [Permanent], [RetryAfter] or [Unavailable]. A panic is a
// failed attempt.
//
// The context carries the delivery's [Metadata], makes events that are published with it
// caused by this one, and ends when HandlerTimeout passes, when the consumer is told to
// stop at once, or when the entry was lost to another consumer (context.Cause says which).
type Handler interface {
	Handle(ctx context.Context, e stream.Event) error
}

// HandlerFunc makes a function a Handler.
type HandlerFunc func(ctx context.Context, e stream.Event) error

// Handle calls the function.
func (f HandlerFunc) Handle(ctx context.Context, e stream.Event) error { return f(ctx, e) }

// Middleware wraps a handler in another.
type Middleware func(Handler) Handler

// Metadata tells where and how often an event was delivered.
type Metadata struct {
	// Topic and Group are the names, Stream and ID the entry as it was first read:
	// a retried event keeps those of the topic's stream.
	Topic, Group, Consumer string
	Stream                 string
	ID                     stream.ID
	// Attempt counts handler runs, this one included; Deliveries counts hand-overs,
	// those to processes that died included.
	Attempt, Deliveries int
	// FirstSeen is when the group first got the event.
	FirstSeen time.Time
}

type metadataKey struct{}

// MetadataFrom returns the metadata of the delivery that ctx was made for.
func MetadataFrom(ctx context.Context) (Metadata, bool) {
	m, ok := ctx.Value(metadataKey{}).(Metadata)
	return m, ok
}

// WithMetadata returns a context with the metadata, for tests of handlers.
func WithMetadata(ctx context.Context, m Metadata) context.Context {
	return context.WithValue(ctx, metadataKey{}, m)
}
