package stream

import "context"

type (
	causeKey       struct{}
	traceParentKey struct{}
)

// cause is what an event published while handling another takes from it.
type cause struct{ id, correlation, traceParent string }

// WithCause returns a context in which publishing is caused by e: events published
// with it carry e's id as causation id and e's correlation id (or, where e starts the
// conversation, its id). Consumers call their handlers with such a context.
func WithCause(ctx context.Context, e Event) context.Context {
	c := cause{id: e.ID, correlation: e.CorrelationID, traceParent: e.TraceParent}
	if c.correlation == "" {
		c.correlation = e.ID
	}
	return context.WithValue(ctx, causeKey{}, c)
}

// WithTraceParent returns a context in which published events carry this W3C
// traceparent; it goes before the one of the causing event.
func WithTraceParent(ctx context.Context, traceParent string) context.Context {
	return context.WithValue(ctx, traceParentKey{}, traceParent)
}

// Stamp fills what the event takes from the topic and the context where it is empty:
// source, correlation, causation and trace. Publishing does it; it changes nothing that is set.
func (e *Event) Stamp(ctx context.Context, topic Topic) {
	if e.Source == "" {
		e.Source = topic.source()
	}
	c, _ := ctx.Value(causeKey{}).(cause)
	if e.CausationID == "" {
		e.CausationID = c.id
	}
	if e.CorrelationID == "" {
		e.CorrelationID = c.correlation
	}
	if e.TraceParent == "" {
		if e.TraceParent, _ = ctx.Value(traceParentKey{}).(string); e.TraceParent == "" {
			e.TraceParent = c.traceParent
		}
	}
}
