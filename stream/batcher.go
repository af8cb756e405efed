package stream

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// BatcherConfig configures a [Batcher].
type BatcherConfig struct {
	// MaxEvents is how many events one pipeline carries at the most. Default 256.
	MaxEvents int
	// Linger is how long an event waits at the most for others to come along, while four
	// pipelines before it are under way; otherwise it goes at once. Default and most:
	// 1 millisecond.
	Linger time.Duration
}

// Batcher publishes events of many goroutines together: each calls Publish and waits, and
// one pipeline carries what has gathered. It has no goroutine of its own and needs no
// closing. Events of one goroutine, which waits for each, keep their order.
type Batcher struct {
	publisher *Publisher
	config    BatcherConfig
	turns     chan struct{} // held by the flights that set out without lingering

	mu       sync.Mutex
	boarding map[Topic]*flight
}

// turns is how many flights are under way before the next one lingers: the server has one to do
// while others are on their way, and the passengers of one board anew.
const turns = 4

// passengers is memory of flights that have landed.
var passengers = sync.Pool{New: func() any { return new([]Event) }}

// flight is a pipeline that gathers events, and then carries them.
type flight struct {
	events  *[]Event
	results []Result
	full    chan struct{} // closed when no more fit
	landed  chan struct{} // closed when the results are there
}

// NewBatcher returns a batcher that writes through the publisher.
func NewBatcher(p *Publisher, config BatcherConfig) (*Batcher, error) {
	if config.MaxEvents == 0 {
		config.MaxEvents = 256
	}
	if config.Linger == 0 {
		config.Linger = time.Millisecond
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if p == nil {
		fault("the publisher is nil")
	}
	if config.MaxEvents < 1 || config.MaxEvents > pipelineEvents {
		fault("MaxEvents %d is not 1 to %d", config.MaxEvents, pipelineEvents)
	}
	if config.Linger < 0 || config.Linger > time.Millisecond {
		fault("Linger %s is not 0 to 1ms", config.Linger)
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("stream: %w batcher: %w", ErrInvalid, errors.Join(faults...))
	}
	return &Batcher{publisher: p, config: config, turns: make(chan struct{}, turns), boarding: map[Topic]*flight{}}, nil
}

// Publish writes one event, as [Publisher.Publish] does. If ctx ends while the event is
// under way the outcome is ErrUnknown.
func (b *Batcher) Publish(ctx context.Context, topic Topic, e Event) (Result, error) {
	if err := b.publisher.prepare(ctx, topic); err != nil {
		return Result{}, err
	}
	e.Stamp(ctx, topic)
	if err := e.Validate(); err != nil {
		return Result{}, err
	}
	f, seat, first := b.board(topic, &e)
	if first {
		b.fly(context.WithoutCancel(ctx), topic, f)
	}
	select {
	case <-f.landed:
		return f.results[seat], f.results[seat].Err
	case <-ctx.Done():
		return Result{}, fmt.Errorf("stream: publish to topic %s: %w: %w", topic.Name, ErrUnknown, context.Cause(ctx))
	}
}

// board puts the event on the flight that gathers; the first on board flies it.
func (b *Batcher) board(topic Topic, e *Event) (f *flight, seat int, first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f = b.boarding[topic]
	if first = f == nil; first {
		f = &flight{events: passengers.Get().(*[]Event), full: make(chan struct{}), landed: make(chan struct{})}
		b.boarding[topic] = f
	}
	seat = len(*f.events)
	if *f.events = append(*f.events, *e); seat+1 == b.config.MaxEvents {
		delete(b.boarding, topic)
		close(f.full)
	}
	return f, seat, first
}

func (b *Batcher) fly(ctx context.Context, topic Topic, f *flight) {
	defer close(f.landed)
	timer := time.NewTimer(b.config.Linger)
	defer timer.Stop()
	select {
	case b.turns <- struct{}{}:
		defer func() { <-b.turns }()
		runtime.Gosched() // those whose flight has just landed come along
	case <-f.full:
	case <-timer.C:
	}
	b.mu.Lock()
	if b.boarding[topic] == f {
		delete(b.boarding, topic)
	}
	b.mu.Unlock()
	events := *f.events
	f.results = make([]Result, len(events))
	for i := range events {
		f.results[i].Stream = topic.StreamKey(topic.Partition(&events[i]))
	}
	b.publisher.send(ctx, topic, events, f.results)
	clear(events)
	*f.events = events[:0]
	passengers.Put(f.events)
}
