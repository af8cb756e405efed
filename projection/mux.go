package projection

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/stream"
)

// Mux applies each event by its type. Types that it does not name are passed: a read model
// takes what it needs. Register everything before the runner is made; mistakes come out of
// [NewRunner], all at once.
type Mux struct {
	handlers map[string]applier
	faults   []error
}

// applier applies one event, through tx or by queueing statements that are sent later.
type applier func(ctx context.Context, tx pgx.Tx, queue *pgx.Batch, e stream.Event) error

// NewMux returns a Mux without handlers.
func NewMux() *Mux { return &Mux{handlers: map[string]applier{}} }

// Handle registers fn for the events of a definition. The payload is decoded and validated
// first; an event that fails goes to Config.OnMalformed, and fn does not run.
func Handle[T any](m *Mux, def stream.Definition[T], fn func(ctx context.Context, tx pgx.Tx, e stream.Event, v T) error) {
	register(m, def, fn == nil, func(ctx context.Context, tx pgx.Tx, queue *pgx.Batch, e stream.Event, v T) error {
		if err := flush(ctx, tx, queue); err != nil {
			return err
		}
		return fn(ctx, tx, e, v)
	})
}

// Queue is Handle for what needs no answer from Postgres: fn queues statements, and those of
// many events are sent in one round trip. It is several times faster. They run in the order
// of the events, also among those of Handle.
func Queue[T any](m *Mux, def stream.Definition[T], fn func(batch *pgx.Batch, e stream.Event, v T) error) {
	register(m, def, fn == nil, func(_ context.Context, _ pgx.Tx, queue *pgx.Batch, e stream.Event, v T) error {
		return fn(queue, e, v)
	})
}

func register[T any](m *Mux, def stream.Definition[T], isNil bool, fn func(context.Context, pgx.Tx, *pgx.Batch, stream.Event, T) error) {
	if err := def.Err(); err != nil {
		m.faults = append(m.faults, err)
	}
	switch {
	case isNil:
		m.faults = append(m.faults, fmt.Errorf("the handler of %s is nil", def.Type()))
	case m.handlers[def.Type()] != nil:
		m.faults = append(m.faults, fmt.Errorf("event type %s has two handlers", def.Type()))
	default:
		m.handlers[def.Type()] = func(ctx context.Context, tx pgx.Tx, queue *pgx.Batch, e stream.Event) error {
			v, err := def.Decode(e)
			if err != nil {
				return err
			}
			return fn(ctx, tx, queue, e, v)
		}
	}
}

// maxQueued bounds the statements of one round trip.
const maxQueued = 1000

// Apply applies the events in order; it is what Config.Mux puts in place of Config.Apply.
func (m *Mux) Apply(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
	queue := &pgx.Batch{}
	for _, e := range events {
		h := m.handlers[e.Type]
		if h == nil {
			continue
		}
		if err := h(ctx, tx, queue, e); err != nil {
			return fmt.Errorf("projection: apply %s %s: %w", e.Type, e.ID, err)
		}
		if queue.Len() >= maxQueued {
			if err := flush(ctx, tx, queue); err != nil {
				return err
			}
		}
	}
	return flush(ctx, tx, queue)
}

// flush sends what is queued.
func flush(ctx context.Context, tx pgx.Tx, queue *pgx.Batch) error {
	if queue.Len() == 0 {
		return nil
	}
	err := tx.SendBatch(ctx, queue).Close()
	*queue = pgx.Batch{}
	if err != nil {
		return fmt.Errorf("projection: send queued statements: %w", err)
	}
	return nil
}
