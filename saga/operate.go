package saga

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Abort aborts a saga that no step will end, such as one that List finds stuck: what was done is
// undone, in every service, as if a step had refused. ErrState says that it is not running any more.
func (f *Flow) Abort(ctx context.Context, pool *pgxpool.Pool, sagaID, cause string) error {
	return f.inTx(ctx, pool, func(ctx context.Context, t *transaction) error {
		if err := f.lockIn(ctx, t.tx, sagaID, StateRunning); err != nil {
			return err
		}
		cause := text(errors.New(cause))
		t.batch.Queue(f.sql(beginAbort), f.name, sagaID, cause, f.config.AbortWithin.Microseconds())
		t.batch.Queue(f.sql(endTimers), f.name, sagaID)
		t.log(f, Observation{Moment: SagaAborted, Saga: sagaID, Err: errors.New(cause)}, cause)
		if err := t.flush(ctx); err != nil {
			return err
		}
		return f.say(ctx, t.tx, "", sagaID, f.aborted.Event("", Aborted{Flow: f.name, Saga: sagaID, Cause: cause}))
	})
}

const unpark = `
UPDATE {schema}.saga SET state = 'aborting', updated = now(), expected_by = now() + $3::bigint * interval '1 microsecond'
WHERE flow = $1 AND saga_id = $2`

// RetryCompensation goes on undoing a parked saga, after a person mended what made its
// compensation fail, or one that is stuck while it is undone, because the event that aborted it
// was dead-lettered. The saga is parked again, and the error returned, if a compensation fails.
// It undoes the steps of this Flow: a service that shares the database calls it for its own.
func (f *Flow) RetryCompensation(ctx context.Context, pool *pgxpool.Pool, sagaID string) error {
	err := f.inTx(ctx, pool, func(ctx context.Context, t *transaction) error {
		if err := f.lockIn(ctx, t.tx, sagaID, StateParked, StateAborting); err != nil {
			return err
		}
		_, err := t.tx.Exec(ctx, f.sql(unpark), f.name, sagaID, f.config.AbortWithin.Microseconds())
		return err
	})
	if err != nil {
		return err
	}
	return f.goOnUndoing(ctx, pool, sagaID)
}

const giveUpCompensation = `
UPDATE {schema}.saga_step SET outcome = 'skipped', error = $3, at = now()
WHERE flow = $1 AND saga_id = $2 AND step = $4 AND op = 'compensation' AND outcome = 'failed'`

// SkipCompensation goes on undoing a parked saga without the compensation that failed, which
// a person did by other means, or gave up for a reason that the log keeps. ErrNotFound says
// that no compensation of that step failed.
func (f *Flow) SkipCompensation(ctx context.Context, pool *pgxpool.Pool, sagaID, step, reason string) error {
	err := f.inTx(ctx, pool, func(ctx context.Context, t *transaction) error {
		if err := f.lockIn(ctx, t.tx, sagaID, StateParked); err != nil {
			return err
		}
		reason := text(errors.New(reason))
		tag, err := t.tx.Exec(ctx, f.sql(giveUpCompensation), f.name, sagaID, reason, step)
		if err != nil {
			return fmt.Errorf("saga: skip compensation: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return fmt.Errorf("saga: failed compensation of step %.140s of saga %.200s: %w", step, sagaID, ErrNotFound)
		}
		t.batch.Queue(f.sql(unpark), f.name, sagaID, f.config.AbortWithin.Microseconds())
		t.log(f, Observation{Moment: CompensationGiven, Saga: sagaID, Step: step}, reason)
		return t.flush(ctx)
	})
	if err != nil {
		return err
	}
	return f.goOnUndoing(ctx, pool, sagaID)
}

// goOnUndoing undoes what is left, and parks the saga at the first failure: no event is
// there to bring another attempt.
func (f *Flow) goOnUndoing(ctx context.Context, pool *pgxpool.Pool, sagaID string) error {
	h := &handler{f: f, pool: pool}
	if err := h.undoAll(ctx, sagaID, 1); err != nil {
		return err
	}
	s, err := Schema{f.schema}.Get(ctx, pool, f.name, sagaID)
	if err != nil {
		return err
	}
	if s.State == StateParked {
		return fmt.Errorf("saga: %s is parked again: %s", sagaID, s.failure())
	}
	return nil
}

// lockIn locks a saga that must be in one of some states.
func (f *Flow) lockIn(ctx context.Context, tx pgx.Tx, sagaID string, want ...State) error {
	var state State
	err := tx.QueryRow(ctx, f.sql(lockSaga), f.name, sagaID).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("saga: %.200s of flow %s: %w", sagaID, f.name, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("saga: lock %.200s: %w", sagaID, err)
	}
	if !slices.Contains(want, state) {
		return fmt.Errorf("saga: %.200s of flow %s is %s, not %s: %w", sagaID, f.name, state, want[0], ErrState)
	}
	return nil
}

const purgeSagas = `
DELETE FROM {schema}.saga s USING (
	SELECT flow, saga_id FROM {schema}.saga
	WHERE flow = $1 AND state IN ('completed', 'compensated') AND updated < now() - $2::bigint * interval '1 microsecond'
	LIMIT 1000
	FOR UPDATE SKIP LOCKED
) old
WHERE s.flow = old.flow AND s.saga_id = old.saga_id`

// Purge deletes the flow's sagas that ended, and that nothing touched for age, with their steps, log and
// timers, a thousand a transaction, and returns how many. With them goes the memory of what was done: an event
// of such a saga that comes again, by a redrive or a rewound stream, does its step again. Keep them for as long as that
// may happen. Sagas that run, are being undone or are parked stay.
func (f *Flow) Purge(ctx context.Context, pool *pgxpool.Pool, age time.Duration) (purged int64, err error) {
	if age <= 0 {
		return 0, invalid("age %s of the sagas to purge must be positive", age)
	}
	for {
		tag, err := pool.Exec(ctx, f.sql(purgeSagas), f.name, age.Microseconds())
		if err != nil {
			return purged, fmt.Errorf("saga: purge flow %s: %w", f.name, err)
		}
		if tag.RowsAffected() == 0 {
			return purged, nil
		}
		purged += tag.RowsAffected()
	}
}
