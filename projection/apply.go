package projection

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/stream"
)

// reading is what was read of one partition and is not applied yet.
type reading struct {
	p       *partition
	entries []stream.Entry
}

// rest drops the entries that the checkpoint has passed.
func (r *reading) rest() []stream.Entry {
	for len(r.entries) > 0 && r.entries[0].ID.Compare(r.p.at.ID) <= 0 {
		r.entries = r.entries[1:]
	}
	return r.entries
}

// part is what one transaction does to one partition: it passes entries, of which the
// events are new.
type part struct {
	p      *partition
	passed int
	events []stream.Event
	to     Checkpoint
}

// newPart takes the entries up to the first malformed one.
func newPart(p *partition, entries []stream.Entry) part {
	t := part{p: p, to: p.at, events: make([]stream.Event, 0, len(entries))}
	for i := range entries {
		en := &entries[i]
		if !t.to.has(en) {
			if en.Err != nil {
				break
			}
			t.events = append(t.events, en.Event)
		}
		t.to.pass(en)
		t.passed++
	}
	return t
}

// applyFailed is an error of Apply, or of what it wrote, which Postgres is there to give.
type applyFailed struct{ err error }

func (f applyFailed) Error() string { return f.err.Error() }
func (f applyFailed) Unwrap() error { return f.err }

// apply applies what was read: all partitions' events in one transaction, as long as that
// goes well, and else entry by entry, so that the one that fails stands alone.
func (l *lane) apply(ctx context.Context, reads []reading) (Result, error) {
	l.r.applying.Lock()
	defer l.r.applying.Unlock()
	var total Result
	if len(reads) == 1 && len(reads[0].entries) == 1 {
		err := l.applySingly(ctx, reads, &total)
		return total, err
	}
	for {
		var parts []part
		for i := range reads {
			if t := newPart(reads[i].p, reads[i].rest()); t.passed > 0 {
				parts = append(parts, t)
			}
		}
		if len(parts) > 0 {
			result, err := l.commit(ctx, parts)
			total.add(result)
			if failed := (applyFailed{}); errors.As(err, &failed) {
				err = l.applySingly(ctx, reads, &total)
				return total, err
			}
			if err != nil {
				return total, err
			}
		}
		malformed := 0
		for i := range reads {
			if rest := reads[i].rest(); len(rest) > 0 {
				malformed++
				if err := l.passMalformed(ctx, reads[i].p, &rest[0], rest[0].Err, &total); err != nil {
					return total, err
				}
			}
		}
		if malformed == 0 {
			return total, nil
		}
	}
}

// applySingly applies each entry in a transaction of its own, in each partition up to the
// first that fails.
func (l *lane) applySingly(ctx context.Context, reads []reading, total *Result) error {
	for i := range reads {
		p := reads[i].p
		for _, en := range reads[i].rest() {
			err := l.applyOne(ctx, p, &en, total)
			if failed := (applyFailed{}); errors.As(err, &failed) {
				if err := l.failed(ctx, p, &en, failed.err); err != nil {
					return err
				}
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lane) applyOne(ctx context.Context, p *partition, en *stream.Entry, total *Result) error {
	t := newPart(p, []stream.Entry{*en})
	cause := en.Err
	if t.passed > 0 {
		result, err := l.commit(ctx, []part{t})
		total.add(result)
		failed := applyFailed{}
		if !errors.As(err, &failed) || !errors.Is(err, stream.ErrUndecodable) && !errors.Is(err, stream.ErrInvalid) {
			return err
		}
		cause = failed.err
	}
	return l.passMalformed(ctx, p, en, cause, total)
}

// passMalformed leaves an entry that cannot be read to Config.OnMalformed.
func (l *lane) passMalformed(ctx context.Context, p *partition, en *stream.Entry, cause error, total *Result) error {
	if l.r.config.OnMalformed == nil {
		return l.r.eventError(p, en, cause)
	}
	t := part{p: p, to: p.at}
	t.to.pass(en)
	err := l.transact(ctx, []part{t}, func(ctx context.Context, tx pgx.Tx) error {
		return l.r.config.OnMalformed(ctx, tx, *en, cause)
	})
	if failed := (applyFailed{}); errors.As(err, &failed) {
		return l.r.eventError(p, en, failed.err)
	}
	if err != nil {
		return err
	}
	total.Malformed++
	l.r.log.Warn(ctx, "malformed entry passed", p.key, "id", en.ID.String(), "err", cause)
	l.r.observe(ctx, Observation{Moment: Malformed, Stream: p.key, ID: en.ID, Event: en.Event, Err: cause})
	return nil
}

// failed counts a failed attempt, and returns an error if it was the last one.
func (l *lane) failed(ctx context.Context, p *partition, en *stream.Entry, cause error) error {
	p.failures++
	l.r.observe(ctx, Observation{Moment: Failed, Stream: p.key, ID: en.ID, Event: en.Event, Attempt: p.failures, Err: cause})
	if p.failures >= l.r.config.MaxAttempts {
		err := l.r.eventError(p, en, cause)
		p.failures = 0 // the next run starts anew
		return err
	}
	delay := l.r.config.MinBackoff
	for i := 1; i < p.failures && delay < l.r.config.MaxBackoff; i++ {
		delay *= 2
	}
	delay = min(delay, l.r.config.MaxBackoff)
	delay = delay/2 + rand.N(delay/2+1)
	p.retryAt = time.Now().Add(delay)
	l.r.log.Error(ctx, "event failed", p.key, cause, "id", en.ID.String(), "event", en.Event.ID, "type", en.Event.Type,
		"attempt", p.failures, "retry_in", delay)
	return nil
}

func (r *Runner) eventError(p *partition, en *stream.Entry, cause error) error {
	return &EventError{Projection: r.config.Name, Stream: p.key, ID: en.ID, Event: en.Event.ID, Type: en.Event.Type, Attempts: max(p.failures, 1), Err: cause}
}

// commit applies the parts' events and moves their checkpoints, in one transaction.
func (l *lane) commit(ctx context.Context, parts []part) (Result, error) {
	events := parts[0].events
	passed := parts[0].passed
	for _, t := range parts[1:] {
		events = append(events, t.events...)
		passed += t.passed
	}
	started := time.Now()
	err := l.transact(ctx, parts, func(ctx context.Context, tx pgx.Tx) error {
		if len(events) == 0 {
			return nil
		}
		return l.r.config.Apply(ctx, tx, events)
	})
	if err != nil {
		return Result{}, err
	}
	result := Result{Events: len(events), Skipped: passed - len(events)}
	l.r.observe(ctx, Observation{Moment: Applied, Events: result.Events, Skipped: result.Skipped, Took: time.Since(started)})
	return result, nil
}

// transact moves the parts' checkpoints, runs fn, and commits.
func (l *lane) transact(ctx context.Context, parts []part, fn func(context.Context, pgx.Tx) error) error {
	moves := make([]move, len(parts))
	for i, t := range parts {
		moves[i] = move{t.p.at, t.to}
	}
	if err := l.inTx(ctx, moves, fn); err != nil {
		return err
	}
	for _, t := range parts {
		t.to.version++
		t.p.at, t.p.failures = t.to, 0
	}
	return nil
}

const limitIdling = `SELECT set_config('idle_in_transaction_session_timeout', $1, true)`

// inTx moves checkpoints and runs fn in one transaction. The checkpoints come first: a
// runner that lost the race waits there, and does nothing in vain.
func (l *lane) inTx(ctx context.Context, moves []move, fn func(context.Context, pgx.Tx) error) (err error) {
	limit := l.r.config.ApplyTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrApplyTimeout)
	defer cancel()
	tx, err := l.r.pool.Begin(ctx)
	if err != nil {
		return l.r.postgresError("begin", err)
	}
	defer func() {
		if err != nil {
			rollback, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
			defer cancel()
			_ = tx.Rollback(rollback) // what it says is less than err does
		}
	}()
	batch := &pgx.Batch{}
	batch.Queue(limitIdling, fmt.Sprint(limit.Milliseconds()))
	batch.Queue(l.r.schema.SQL(moveCheckpoints), moveArgs(l.r.config.Name, moves)...)
	results := tx.SendBatch(ctx, batch)
	_, err = results.Exec()
	if err == nil {
		tag, moveErr := results.Exec()
		if err = moveErr; err == nil && tag.RowsAffected() != int64(len(moves)) {
			err = errMoved
		}
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return l.r.postgresError("move checkpoint", err)
	}
	if err := guarded(ctx, tx, fn); err != nil {
		return l.r.applyError(ctx, tx, err)
	}
	if err := tx.Commit(ctx); err != nil {
		return l.r.applyError(ctx, tx, err)
	}
	return nil
}

const rollbackTimeout = 5 * time.Second

// guarded makes a panic an error.
func guarded(ctx context.Context, tx pgx.Tx, fn func(context.Context, pgx.Tx) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("projection: apply panicked: %v", v)
		}
	}()
	return fn(ctx, tx)
}

// applyError tells an outage from an error of Apply. A connection that broke is an outage,
// whatever Apply made of it, unless it broke because time was up.
func (r *Runner) applyError(ctx context.Context, tx pgx.Tx, err error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, ErrApplyTimeout):
		return applyFailed{fmt.Errorf("projection: %w after %s: %w", ErrApplyTimeout, r.config.ApplyTimeout, err)}
	case cause != nil:
		return fmt.Errorf("projection: %s: apply: %w: %w", r.config.Name, cause, context.Canceled)
	case tx.Conn().IsClosed(), pgerr.IsUnavailable(err), pgerr.IsConflict(err):
		return outage{fmt.Errorf("projection: %s: apply: %w", r.config.Name, err)}
	}
	return applyFailed{err}
}
