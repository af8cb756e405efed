package saga

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/stream"
)

// Tx is the transaction of a step or a compensation: a pgx.Tx for what it writes, and the
// saga that it belongs to. The flow commits it and rolls it back.
type Tx struct {
	pgx.Tx
	flow      *Flow
	step      *step
	id        string
	event     stream.Event
	completed bool
}

// SagaID returns the saga's id.
func (s *Tx) SagaID() string { return s.id }

// Emit publishes events of the saga to the flow's topic, through the outbox: if and when the
// step commits.
func (s *Tx) Emit(ctx context.Context, events ...stream.Event) error {
	return s.EmitTo(ctx, s.flow.config.Topic, events...)
}

// EmitTo is Emit to another topic.
func (s *Tx) EmitTo(ctx context.Context, topic stream.Topic, events ...stream.Event) error {
	ours, err := s.ours(events)
	if err != nil {
		return err
	}
	return s.flow.outbox.Publish(ctx, s.Tx, topic, ours...)
}

// ours marks events as the saga's.
func (s *Tx) ours(events []stream.Event) ([]stream.Event, error) {
	ours := slices.Clone(events)
	for i := range ours {
		e := &ours[i]
		if len(s.step.emits) > 0 && !slices.Contains(s.step.emits, e.Type) {
			return nil, invalid("step %s of flow %s emits %s, which its Emits does not name", s.step.name, s.flow.name, e.Type)
		}
		if e.CorrelationID != "" && e.CorrelationID != s.id {
			return nil, invalid("event %s belongs to saga %s, not to %s; outbox.Publish publishes what is not the saga's", e.ID, e.CorrelationID, s.id)
		}
		e.CorrelationID = s.id
		if e.CausationID == "" {
			e.CausationID = s.event.ID
		}
	}
	return ours, nil
}

// Complete says that the saga reached its end with this step, as StepConfig.Final does.
func (s *Tx) Complete() { s.completed = true }

const setTimer = `
INSERT INTO {schema}.saga_timer (flow, saga_id, name, due_at, topic, event)
VALUES ($1, $2, $3, now() + $4::bigint * interval '1 microsecond', $5, $6)
ON CONFLICT (flow, saga_id, name) DO UPDATE
SET due_at = excluded.due_at, topic = excluded.topic, event = excluded.event, attempts = 0, error = ''`

// After publishes e to the flow's topic after d, counted by the clock of Postgres from the
// start of this transaction, unless a step cancels the timer or the saga ends before. The name is
// the timer's within the saga; setting it again puts the new one in place of the old. A
// [Timers] must run somewhere.
func (s *Tx) After(ctx context.Context, name string, d time.Duration, e stream.Event) error {
	if name == "" || len(name) > 200 || d < 0 {
		return invalid("timer %.210q after %s: it needs a name of 1 to 200 bytes and a time from now on", name, d)
	}
	ours, err := s.ours([]stream.Event{e})
	if err != nil {
		return err
	}
	e = ours[0]
	e.Stamp(ctx, s.flow.config.Topic)
	if err := e.Validate(); err != nil { // now, since nobody is there to tell when it fires
		return err
	}
	topic, event, err := pack(s.flow.config.Topic, e)
	if err != nil {
		return err
	}
	if _, err := s.Exec(ctx, s.flow.sql(setTimer), s.flow.name, s.id, name, d.Microseconds(), topic, event); err != nil {
		return fmt.Errorf("saga: set timer %s: %w", name, err)
	}
	return nil
}

const cancelTimer = `DELETE FROM {schema}.saga_timer WHERE flow = $1 AND saga_id = $2 AND name = $3`

// Cancel takes a timer back. One that fired already is not: its event is on the way, and
// the step that it is for must see for itself whether it still matters.
func (s *Tx) Cancel(ctx context.Context, name string) error {
	if _, err := s.Exec(ctx, s.flow.sql(cancelTimer), s.flow.name, s.id, name); err != nil {
		return fmt.Errorf("saga: cancel timer %s: %w", name, err)
	}
	return nil
}

var errNotYours = errors.New("saga: the flow commits and rolls back a step's transaction")

// Commit is refused: the flow commits.
func (s *Tx) Commit(context.Context) error { return errNotYours }

// Rollback is refused: return an error instead.
func (s *Tx) Rollback(context.Context) error { return errNotYours }
