package saga

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

// Handler returns what handles the flow's events, for a consumergroup.Consumer that reads
// the topics of all of them, the flow's own included. The group may be unordered. It needs
// no inbox: a step's barrier row, in the step's transaction, is its record of being done.
// The error has every fault of the flow. The caller keeps pool: each handler that runs holds one of its
// connections, and a step that takes another one besides may wait for it for ever.
//
// Where Postgres is away the handler says consumergroup.Unavailable, so that no attempt is
// counted. Events of other types are consumergroup.ErrUnhandled.
func (f *Flow) Handler(pool *pgxpool.Pool) (consumergroup.Handler, error) {
	err := f.Err()
	if pool == nil {
		err = errors.Join(err, invalid("flow %s: the Postgres pool is nil", f.name))
	}
	if err != nil {
		return nil, err
	}
	f.warnUncompensated()
	return &handler{f: f, pool: pool}, nil
}

type handler struct {
	f    *Flow
	pool *pgxpool.Pool
}

// Handle handles one event. Several steps may wait for it: each is a transaction of its own,
// and one that fails does not keep the others from being done.
func (h *handler) Handle(ctx context.Context, e stream.Event) error {
	switch e.Type {
	case h.f.aborted.Type():
		return h.onAborted(ctx, e)
	case h.f.completed.Type():
		return h.onCompleted(ctx, e)
	}
	steps := h.f.byType[e.Type]
	if len(steps) == 0 {
		return consumergroup.ErrUnhandled
	}
	ctx = stream.WithCause(ctx, e)
	var failed error
	for _, s := range steps {
		err := h.onStep(ctx, s, e)
		// What may mend comes before what will not: the event must not be dead-lettered for one
		// step while another still wants it.
		if err != nil && (failed == nil || consumergroup.Classify(failed) == consumergroup.PermanentError) {
			failed = err
		}
	}
	return failed
}

// enterStep locks the saga, making it where it is new, and puts up the step's barrier. It
// answers NULL where the barrier stood already.
const enterStep = `
WITH s AS (
	INSERT INTO {schema}.saga (flow, saga_id) VALUES ($1, $2)
	ON CONFLICT (flow, saga_id) DO UPDATE SET updated = now()
	RETURNING state, steps
), barrier AS (
	INSERT INTO {schema}.saga_step (flow, saga_id, step, op, outcome, seq, event_id, event)
	SELECT $1, $2, $3, 'action', CASE WHEN state IN ('running', 'completed') THEN 'done' ELSE 'skipped' END, steps + 1, $4, $5
	FROM s
	ON CONFLICT (flow, saga_id, step, op) DO NOTHING
	RETURNING outcome
)
SELECT state, (SELECT outcome FROM barrier) FROM s`

// leaveStep counts the step. What the step declared decides when the saga counts as stuck.
const leaveStep = `
UPDATE {schema}.saga
SET steps = steps + 1, updated = now(), last_step = $3,
	state = CASE WHEN $5 AND state = 'running' THEN 'completed' ELSE state END,
	expected_by = CASE WHEN state <> 'running' THEN expected_by WHEN $5 OR $4::bigint = 0 THEN NULL ELSE now() + $4 * interval '1 microsecond' END
WHERE flow = $1 AND saga_id = $2`

const skipStep = `UPDATE {schema}.saga SET steps = steps + 1 WHERE flow = $1 AND saga_id = $2`

const endTimers = `DELETE FROM {schema}.saga_timer WHERE flow = $1 AND saga_id = $2`

const writeLog = `INSERT INTO {schema}.saga_log (flow, saga_id, what, step, event_id, detail) VALUES ($1, $2, $3, $4, $5, $6)`

func (h *handler) onStep(ctx context.Context, st *step, e stream.Event) error {
	id := ID(e)
	var event []byte
	if st.undo != nil {
		var err error
		if event, err = packEvent(e); err != nil {
			return err
		}
	}
	return h.f.inTx(ctx, h.pool, func(ctx context.Context, t *transaction) error {
		var state State
		var outcome *string
		if err := t.tx.QueryRow(ctx, h.f.sql(enterStep), h.f.name, id, st.name, e.ID, event).Scan(&state, &outcome); err != nil {
			return fmt.Errorf("saga: enter step %s: %w", st.name, err)
		}
		switch {
		case outcome == nil:
			t.observations = append(t.observations, Observation{Moment: StepRepeated, Saga: id, Step: st.name, Event: e})
			return nil
		case *outcome == "skipped":
			t.batch.Queue(h.f.sql(skipStep), h.f.name, id)
			t.log(h.f, Observation{Moment: StepSkipped, Saga: id, Step: st.name, Event: e}, "the saga is "+string(state))
			return t.flush(ctx)
		}
		return h.doStep(ctx, t, st, id, state, e)
	})
}

// doStep runs the step within a savepoint, to which a refusal goes back.
func (h *handler) doStep(ctx context.Context, t *transaction, st *step, id string, state State, e stream.Event) error {
	s := &Tx{flow: h.f, step: st, id: id, event: e, completed: st.final}
	err := t.nested(ctx, s, st.do)
	if refused := (refusal{}); errors.As(err, &refused) {
		return h.refuse(ctx, t, st, id, state, e, refused)
	}
	if err != nil {
		return err
	}
	t.batch.Queue(h.f.sql(leaveStep), h.f.name, id, st.name, st.within.Microseconds(), s.completed)
	t.log(h.f, Observation{Moment: StepDone, Saga: id, Step: st.name, Event: e}, "")
	if s.completed && state == StateRunning {
		t.batch.Queue(h.f.sql(endTimers), h.f.name, id)
		t.log(h.f, Observation{Moment: SagaCompleted, Saga: id, Step: st.name, Event: e}, "")
	}
	if err := t.flush(ctx); err != nil {
		return err
	}
	if s.completed && state == StateRunning {
		return h.f.say(ctx, t.tx, e.Key, id, h.f.completed.Event("", Completed{Flow: h.f.name, Saga: id, Step: st.name}))
	}
	return nil
}

const refuseStep = `
UPDATE {schema}.saga_step SET outcome = 'refused', event = NULL, error = $4
WHERE flow = $1 AND saga_id = $2 AND step = $3 AND op = 'action'`

const beginAbort = `
UPDATE {schema}.saga
SET state = 'aborting', cause = $3, updated = now(), expected_by = now() + $4::bigint * interval '1 microsecond'
WHERE flow = $1 AND saga_id = $2`

// refuse aborts the saga, unless it has reached its end: then, a timer that fired just
// before comes too late to undo it.
func (h *handler) refuse(ctx context.Context, t *transaction, st *step, id string, state State, e stream.Event, refused refusal) error {
	cause := text(refused)
	refusedNow := Observation{Moment: StepRefused, Saga: id, Step: st.name, Event: e, Err: refused.err}
	if state != StateRunning {
		t.batch.Queue(h.f.sql(refuseStep), h.f.name, id, st.name, cause)
		t.batch.Queue(h.f.sql(skipStep), h.f.name, id)
		t.log(h.f, refusedNow, "too late, the saga is "+string(state)+": "+cause)
		return t.flush(ctx)
	}
	t.batch.Queue(h.f.sql(refuseStep), h.f.name, id, st.name, cause)
	t.batch.Queue(h.f.sql(leaveStep), h.f.name, id, st.name, int64(0), false)
	t.batch.Queue(h.f.sql(beginAbort), h.f.name, id, cause, h.f.config.AbortWithin.Microseconds())
	t.batch.Queue(h.f.sql(endTimers), h.f.name, id)
	t.log(h.f, refusedNow, cause)
	if err := t.flush(ctx); err != nil {
		return err
	}
	return h.f.say(ctx, t.tx, e.Key, id, h.f.aborted.Event("", Aborted{Flow: h.f.name, Saga: id, Step: st.name, Cause: cause}))
}

// say publishes one of the flow's own events, about the same key as the event that led to it.
func (f *Flow) say(ctx context.Context, tx pgx.Tx, key, id string, e stream.Event) error {
	if e.Key = key; key == "" {
		e.Key = id
	}
	e.CorrelationID = id
	return f.outbox.Publish(ctx, tx, f.config.Topic, e)
}

const completeSaga = `
INSERT INTO {schema}.saga (flow, saga_id, state) VALUES ($1, $2, 'completed')
ON CONFLICT (flow, saga_id) DO UPDATE SET state = 'completed', updated = now(), expected_by = NULL
WHERE saga.state = 'running'
RETURNING state`

// onCompleted closes the saga in this database; where it was aborted, that stays.
func (h *handler) onCompleted(ctx context.Context, e stream.Event) error {
	c, err := h.f.completed.Decode(e)
	if err != nil {
		return err
	}
	id := ID(e)
	return h.f.inTx(ctx, h.pool, func(ctx context.Context, t *transaction) error {
		tag, err := t.tx.Exec(ctx, h.f.sql(completeSaga), h.f.name, id)
		if err != nil {
			return fmt.Errorf("saga: complete: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return nil
		}
		t.batch.Queue(h.f.sql(endTimers), h.f.name, id)
		t.log(h.f, Observation{Moment: SagaCompleted, Saga: id, Step: c.Step, Event: e}, "")
		return t.flush(ctx)
	})
}
