package consumergroup

import (
	"context"
	"errors"
	"fmt"

	"github.com/streamkeel/streamkeel/stream"
)

// Mux calls the handler of an event's type. Register everything before the consumer
// starts; then it is safe for use by many goroutines. Mistakes in registering come out of
// [New], all at once.
type Mux struct {
	handlers   map[string]Handler
	middleware []Middleware
	faults     []error
}

// NewMux returns a Mux without handlers.
func NewMux() *Mux { return &Mux{handlers: map[string]Handler{}} }

// Handle registers fn for the events of a definition. The payload is decoded and
// validated first: an event that fails goes to the dead letters at once, with reason
// undecodable or invalid, and fn does not run.
func Handle[T any](m *Mux, def stream.Definition[T], fn func(ctx context.Context, e stream.Event, v T) error) {
	if err := def.Err(); err != nil {
		m.faults = append(m.faults, err)
	}
	if fn == nil {
		m.faults = append(m.faults, fmt.Errorf("consumergroup: the handler of %s is nil", def.Type()))
		return
	}
	m.HandleType(def.Type(), HandlerFunc(func(ctx context.Context, e stream.Event) error {
		v, err := def.Decode(e)
		if err != nil {
			return err
		}
		return fn(ctx, e, v)
	}))
}

// HandleType registers a handler for an event type, whose payload it decodes itself.
func (m *Mux) HandleType(eventType string, h Handler) {
	switch {
	case eventType == "" || h == nil:
		m.faults = append(m.faults, fmt.Errorf("consumergroup: HandleType(%q) needs a type and a handler", eventType))
	case m.handlers[eventType] != nil:
		m.faults = append(m.faults, fmt.Errorf("consumergroup: event type %s has two handlers", eventType))
	default:
		m.handlers[eventType] = h
	}
}

// Use wraps every handler, those registered before too, in the middleware; the first
// given is the outermost.
func (m *Mux) Use(middleware ...Middleware) { m.middleware = append(m.middleware, middleware...) }

// Handle calls the handler of the event's type, or returns ErrUnhandled.
func (m *Mux) Handle(ctx context.Context, e stream.Event) error {
	h := m.handlers[e.Type]
	if h == nil {
		return ErrUnhandled
	}
	return chain(h, m.middleware).Handle(ctx, e)
}

func (m *Mux) err() error {
	if len(m.handlers) == 0 {
		return errors.Join(append(m.faults, errors.New("consumergroup: the Mux has no handlers"))...)
	}
	return errors.Join(m.faults...)
}
