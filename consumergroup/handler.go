package consumergroup

import (
	"context"
	"fmt"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Handler handles one delivery of an event. What it returns says how the delivery ends:
//
//	nil                       acks it
//	an error                  retries it by the group's policy, up to MaxAttempts
//	Retry(d), RetryAfter(…)   retries it in d; an attempt like any other
//	Permanent(err)            makes it a letter at once
//	DeadLetter(text)          makes it a letter at once, with reason "manual"
//	Release(d)                gives it back, to be handled in d; nothing is counted
//	Unavailable(err)          gives it back and pauses the consumer; nothing is counted
//
// A panic is a failed attempt. A handler that needs longer than HandlerTimeout says so
// with [Extend].
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
	// Generation is that of the partition's lease in an ordered group, else 0. It only
	// grows: a row that stores the highest one seen refuses an owner that was replaced
	// (UPDATE … WHERE generation <= $1).
	Generation int64
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

// handlerContext is the context of one delivery's handler. What ends it is made when somebody
// first asks: a short handler does not pay for a context and a timer that it never looks at.
type handlerContext struct {
	parent   context.Context
	d        *delivery
	metadata Metadata

	// Under the delivery's lock.
	deadline time.Time
	ctx      context.Context // nil until somebody asks
	cancel   context.CancelCauseFunc
	timer    *time.Timer
	over     bool
	cause    error // why it is over; nil where the handler has returned
}

type handlerContextKey struct{}

// farOff is the deadline of a handler whose time has not begun.
var farOff = time.Now().Add(100 * 365 * 24 * time.Hour)

// ending returns the context that ends when this one does.
func (c *handlerContext) ending() context.Context {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.ctx != nil {
		return c.ctx
	}
	parent, left := c.parent, time.Until(c.deadline)
	if c.over || left <= 0 {
		parent = context.WithoutCancel(parent) // which may have ended later, for another reason
	}
	c.ctx, c.cancel = context.WithCancelCause(parent)
	switch {
	case c.over:
		c.cancel(c.cause)
	case left <= 0:
		c.cancel(ErrHandlerTimeout)
	default:
		c.timer = time.AfterFunc(left, func() { c.cancel(ErrHandlerTimeout) })
	}
	return c.ctx
}

// end ends the context, under the delivery's lock.
func (c *handlerContext) end(cause error) {
	if c.over {
		return
	}
	c.over, c.cause = true, cause
	if c.ctx != nil {
		c.cancel(cause)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
}

// limit lets the handler's time begin, or begin anew, and returns when that is.
func (c *handlerContext) limit(timeout time.Duration) time.Time {
	now := time.Now()
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.over {
		return now
	}
	c.deadline = now.Add(timeout)
	if c.timer != nil {
		c.timer.Reset(timeout)
	}
	return now
}

func (c *handlerContext) Deadline() (time.Time, bool) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	return c.deadline, true
}

func (c *handlerContext) Done() <-chan struct{} { return c.ending().Done() }

func (c *handlerContext) Err() error {
	ctx := c.ending()
	if err := ctx.Err(); err == nil || context.Cause(ctx) != ErrHandlerTimeout {
		return err
	}
	return context.DeadlineExceeded
}

func (c *handlerContext) Value(key any) any {
	switch key.(type) {
	case handlerContextKey:
		return c
	case metadataKey:
		return c.metadata
	}
	return c.ending().Value(key) // context.Cause asks in this way
}

// Extend gives the handler that ctx was made for d from now, instead of what is left of
// HandlerTimeout, and keeps its entry from being taken over meanwhile. The error is the
// reason why ctx ended, where it has, or says that ctx is none of a handler. A context that
// the handler itself derived with a deadline keeps that.
func Extend(ctx context.Context, d time.Duration) error {
	c, ok := ctx.Value(handlerContextKey{}).(*handlerContext)
	if !ok {
		return fmt.Errorf("consumergroup: Extend: %w context: it is none of a handler", ErrInvalid)
	}
	if d <= 0 {
		return fmt.Errorf("consumergroup: Extend: %w duration %s: it must be positive", ErrInvalid, d)
	}
	within := c.ending()
	if within.Err() == nil {
		c.limit(d)
	}
	if within.Err() != nil { // it may have ended meanwhile
		return fmt.Errorf("consumergroup: Extend: %w", context.Cause(within))
	}
	return nil
}
