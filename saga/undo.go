package saga

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/stream"
)

// abortSaga makes the saga where it is new: steps whose events come later find it aborted.
// It answers nothing where the saga was aborted before.
const abortSaga = `
INSERT INTO {schema}.saga (flow, saga_id, state, cause, expected_by)
VALUES ($1, $2, 'aborting', $3, now() + $4::bigint * interval '1 microsecond')
ON CONFLICT (flow, saga_id) DO UPDATE
SET state = 'aborting', cause = excluded.cause, expected_by = excluded.expected_by, updated = now()
WHERE saga.state IN ('running', 'completed')
RETURNING state`

// onAborted undoes what was done here.
func (h *handler) onAborted(ctx context.Context, e stream.Event) error {
	a, err := h.f.aborted.Decode(e)
	if err != nil {
		return err
	}
	id := ID(e)
	ctx = stream.WithCause(ctx, e)
	err = h.f.inTx(ctx, h.pool, func(ctx context.Context, t *transaction) error {
		tag, err := t.tx.Exec(ctx, h.f.sql(abortSaga), h.f.name, id, a.Cause, h.f.config.AbortWithin.Microseconds())
		if err != nil {
			return fmt.Errorf("saga: abort: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return nil // by the step that refused, or by this event before
		}
		t.batch.Queue(h.f.sql(endTimers), h.f.name, id)
		t.log(h.f, Observation{Moment: SagaAborted, Saga: id, Step: a.Step, Event: e, Err: errors.New(a.Cause)}, a.Cause)
		return t.flush(ctx)
	})
	if err != nil {
		return err
	}
	return h.undoAll(ctx, id, h.f.config.MaxAttempts)
}

// undoAll undoes the steps that were done here, the last one first, each in a transaction
// of its own. After a compensation that failed for the last time it returns nil: the saga
// is parked, and for a person to see to.
func (h *handler) undoAll(ctx context.Context, id string, maxAttempts int) error {
	for {
		more, failed := false, error(nil)
		err := h.f.inTx(ctx, h.pool, func(ctx context.Context, t *transaction) (err error) {
			more, failed, err = h.undoNext(ctx, t, id, maxAttempts)
			return err
		})
		if err == nil {
			err = failed
		}
		if err != nil || !more {
			return err
		}
	}
}

const lockSaga = `SELECT state FROM {schema}.saga WHERE flow = $1 AND saga_id = $2 FOR NO KEY UPDATE`

// nextToUndo is the last step that was done and is not undone, of those that this service
// holds.
const nextToUndo = `
SELECT step, event FROM {schema}.saga_step a
WHERE flow = $1 AND saga_id = $2 AND op = 'action' AND outcome = 'done' AND step = ANY ($3)
	AND NOT EXISTS (
		SELECT FROM {schema}.saga_step c
		WHERE c.flow = a.flow AND c.saga_id = a.saga_id AND c.step = a.step AND c.op = 'compensation' AND c.outcome IN ('done', 'skipped'))
ORDER BY seq DESC
LIMIT 1`

// undoNext undoes one step. failed is the compensation's error, which is counted in the same
// transaction, and so does not roll it back.
func (h *handler) undoNext(ctx context.Context, t *transaction, id string, maxAttempts int) (more bool, failed, err error) {
	var state State
	if err := t.tx.QueryRow(ctx, h.f.sql(lockSaga), h.f.name, id).Scan(&state); err != nil {
		return false, nil, fmt.Errorf("saga: lock: %w", err)
	}
	if state != StateAborting {
		return false, nil, nil // somebody was faster, or it waits for a person
	}
	var name string
	var event []byte
	err = t.tx.QueryRow(ctx, h.f.sql(nextToUndo), h.f.name, id, h.f.stepNames()).Scan(&name, &event)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil, h.endUndoing(ctx, t, id)
	}
	if err != nil {
		return false, nil, fmt.Errorf("saga: find what to undo: %w", err)
	}
	st := h.f.byName[name]
	if st.undo == nil {
		return true, nil, h.nothingToUndo(ctx, t, id, st)
	}
	return h.undo(ctx, t, id, st, event, maxAttempts)
}

func (f *Flow) stepNames() []string {
	names := make([]string, len(f.steps))
	for i, s := range f.steps {
		names[i] = s.name
	}
	return names
}

// putCompensation puts up the compensation's barrier, or takes over that of attempts that failed.
const putCompensation = `
WITH s AS (
	UPDATE {schema}.saga SET steps = steps + 1, updated = now() WHERE flow = $1 AND saga_id = $2 RETURNING steps
)
INSERT INTO {schema}.saga_step (flow, saga_id, step, op, outcome, seq, error)
SELECT $1, $2, $3, 'compensation', $4, steps, $5 FROM s
ON CONFLICT (flow, saga_id, step, op) DO UPDATE
SET outcome = excluded.outcome, seq = excluded.seq, error = excluded.error, at = now()
WHERE saga_step.outcome = 'failed'`

// failCompensation answers how often this compensation failed, and how often all of the saga's did.
const failCompensation = `
WITH this AS (
	UPDATE {schema}.saga_step SET outcome = 'failed', attempts = attempts + 1, error = $4, at = now()
	WHERE flow = $1 AND saga_id = $2 AND step = $3 AND op = 'compensation'
	RETURNING attempts
)
SELECT attempts, attempts + (
	SELECT coalesce(sum(attempts), 0) FROM {schema}.saga_step
	WHERE flow = $1 AND saga_id = $2 AND step <> $3 AND op = 'compensation')
FROM this`

const parkSaga = `
UPDATE {schema}.saga SET state = 'parked', updated = now(), expected_by = NULL WHERE flow = $1 AND saga_id = $2`

func (h *handler) nothingToUndo(ctx context.Context, t *transaction, id string, st *step) error {
	t.batch.Queue(h.f.sql(putCompensation), h.f.name, id, st.name, "skipped", "the step has no compensation")
	t.log(h.f, Observation{Moment: NothingToUndo, Saga: id, Step: st.name}, "")
	return t.flush(ctx)
}

// undo runs a compensation within a savepoint, so that its failure can be written down in
// the same transaction that its success would have been.
func (h *handler) undo(ctx context.Context, t *transaction, id string, st *step, event []byte, maxAttempts int) (more bool, failed, err error) {
	if _, err := t.tx.Exec(ctx, h.f.sql(putCompensation), h.f.name, id, st.name, "done", ""); err != nil {
		return false, nil, fmt.Errorf("saga: put barrier: %w", err)
	}
	_, e, unpackErr := unpack(nil, event)
	s := &Tx{flow: h.f, step: st, id: id, event: e}
	failed = t.nested(ctx, s, guarded(func(ctx context.Context, s *Tx, e stream.Event) error {
		if unpackErr != nil {
			return consumergroup.Permanent(unpackErr)
		}
		return st.undo(ctx, s, e)
	}))
	if failed == nil {
		t.log(h.f, Observation{Moment: StepCompensated, Saga: id, Step: st.name, Event: e}, "")
		return true, nil, t.flush(ctx)
	}
	class := consumergroup.Classify(failed)
	if ctx.Err() != nil || t.tx.Conn().IsClosed() || class == consumergroup.UnavailableError || pgerr.IsConflict(failed) {
		return false, nil, failed // no attempt of the compensation: nothing of this stays
	}
	var attempts, all int
	if err := t.tx.QueryRow(ctx, h.f.sql(failCompensation), h.f.name, id, st.name, text(failed)).Scan(&attempts, &all); err != nil {
		return false, nil, fmt.Errorf("saga: count attempt: %w", err)
	}
	observation := Observation{Moment: CompensationFailed, Saga: id, Step: st.name, Event: e, Attempt: attempts, Err: failed}
	t.log(h.f, observation, text(failed))
	if all < maxAttempts && class != consumergroup.PermanentError {
		return false, fmt.Errorf("saga: compensation of step %s failed: %w", st.name, failed), t.flush(ctx)
	}
	observation.Moment = SagaParked
	t.batch.Queue(h.f.sql(parkSaga), h.f.name, id)
	t.log(h.f, observation, text(failed))
	h.f.log.Error(ctx, "saga is parked and waits for a person", "", failed, "saga", id, "step", st.name, "attempts", attempts)
	return false, nil, t.flush(ctx)
}

// compensated: services that share a database share the saga's row, and the last one that
// has nothing left to undo ends it.
const compensated = `
UPDATE {schema}.saga s SET state = 'compensated', updated = now(), expected_by = NULL
WHERE flow = $1 AND saga_id = $2 AND NOT EXISTS (
	SELECT FROM {schema}.saga_step a
	WHERE a.flow = $1 AND a.saga_id = $2 AND a.op = 'action' AND a.outcome = 'done' AND NOT EXISTS (
		SELECT FROM {schema}.saga_step c
		WHERE c.flow = $1 AND c.saga_id = $2 AND c.step = a.step AND c.op = 'compensation' AND c.outcome IN ('done', 'skipped')))`

func (h *handler) endUndoing(ctx context.Context, t *transaction, id string) error {
	tag, err := t.tx.Exec(ctx, h.f.sql(compensated), h.f.name, id)
	if err != nil {
		return fmt.Errorf("saga: end undoing: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return nil
	}
	t.log(h.f, Observation{Moment: SagaCompensated, Saga: id}, "")
	return t.flush(ctx)
}
