package projection

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// Rebuild empties the read model and has it built again from the start of the streams: it
// runs truncate, and sets the checkpoints back, in one transaction. Runners that are at
// work, in any process, go on from there.
//
// It is ErrTrimmedUnread, and nothing is changed, if a stream does not have all that it was
// ever given, unless AllowPartial is set.
func (r *Runner) Rebuild(ctx context.Context, truncate func(ctx context.Context, tx pgx.Tx) error) error {
	return r.change(ctx, truncate, r.all(), func(p *partition, h *history) (Checkpoint, error) {
		gone := h.added - h.length
		if gone > 0 && !r.config.AllowPartial {
			return Checkpoint{}, fmt.Errorf("projection: rebuild %s: %s has %d entries of the %d that it was given: %w",
				r.config.Name, p.key, h.length, h.added, ErrTrimmedUnread)
		}
		return Checkpoint{Stream: p.key, version: p.at.version, EntriesRead: gone, deleted: h.deleted}, nil
	})
}

// Accept takes a stream as it stands, after ErrRewound or ErrTrimmedUnread: the projection
// goes on behind the last entry that is not beyond its checkpoint, or from the start where
// there is none. What was removed unread stays missing from the read model. The sequence
// stays, so that nothing that has one is applied twice.
func (r *Runner) Accept(ctx context.Context, streamKey string) error {
	for _, p := range r.all() {
		if p.key != streamKey {
			continue
		}
		return r.change(ctx, nil, []*partition{p}, func(p *partition, h *history) (Checkpoint, error) {
			to := h.start(p.at)
			last, err := r.lastUpTo(ctx, p.key, p.at.ID)
			if err != nil {
				return Checkpoint{}, err
			}
			if last != nil {
				to.ID, to.Event, to.EntriesRead = last.ID, nameOf(rawID(last)), -1
				to.EntriesRead = h.learn(&to)
			}
			return to, nil
		})
	}
	return fmt.Errorf("projection: %s: accept %.200q: %w: the projection does not read that stream", r.config.Name, streamKey, ErrInvalid)
}

// all returns every partition, as one that was not looked at yet.
func (r *Runner) all() []*partition {
	var all []*partition
	for _, l := range r.lanes {
		for _, p := range l.partitions {
			all = append(all, &partition{topic: p.topic, key: p.key})
		}
	}
	return all
}

const lockCheckpoints = `
SELECT FROM {schema}.projection_checkpoint
WHERE projection = $1 AND stream = ANY ($2)
ORDER BY stream
FOR UPDATE`

// change sets checkpoints to what next makes of them and of their streams, and runs also,
// in one transaction, while no runner can move them.
func (r *Runner) change(ctx context.Context, also func(context.Context, pgx.Tx) error, partitions []*partition, next func(*partition, *history) (Checkpoint, error)) error {
	l := &lane{r: r, partitions: partitions}
	missing, err := l.load(ctx)
	if err == nil && len(missing) > 0 {
		err = l.begin(ctx, missing)
	}
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		return l.changeIn(ctx, tx, also, next)
	})
	if err != nil {
		return err
	}
	return l.hold(ctx, partitions)
}

func (l *lane) changeIn(ctx context.Context, tx pgx.Tx, also func(context.Context, pgx.Tx) error, next func(*partition, *history) (Checkpoint, error)) error {
	keys := make([]string, len(l.partitions))
	for i, p := range l.partitions {
		keys[i] = p.key
	}
	if _, err := tx.Exec(ctx, l.r.schema.SQL(lockCheckpoints), l.r.config.Name, keys); err != nil {
		return l.r.postgresError("lock checkpoints", err)
	}
	if _, err := l.loadFrom(ctx, tx); err != nil {
		return err
	}
	_, histories, err := l.readAndInspect(ctx, nil, nil, l.partitions)
	if err != nil {
		return err
	}
	moves := make([]move, len(l.partitions))
	var faults []error
	for i, p := range l.partitions {
		moves[i].from = p.at
		if moves[i].to, err = next(p, &histories[i]); err != nil {
			faults = append(faults, err)
		}
		p.at = moves[i].to
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	// Before the commit already: what is to be read again must not be trimmed in between.
	if err := l.hold(ctx, l.partitions); err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, l.r.schema.SQL(moveCheckpoints), moveArgs(l.r.config.Name, moves)...)
	if err != nil {
		return l.r.postgresError("move checkpoints", err)
	}
	if tag.RowsAffected() != int64(len(moves)) {
		return errMoved
	}
	if also == nil {
		return nil
	}
	return also(ctx, tx)
}

// lastUpTo returns the last entry that is not beyond the checkpoint, or nil.
func (r *Runner) lastUpTo(ctx context.Context, streamKey string, id stream.ID) (*stream.Entry, error) {
	reply, err := redisx.Raw(ctx, r.rdb, "xrevrange", streamKey, id.String(), "-", "count", 1)
	if err != nil {
		return nil, r.redisError("read "+streamKey, err)
	}
	n, err := reply.Array()
	if err != nil || n < 1 {
		return nil, err
	}
	en, _, err := stream.DecodeEntry(&reply, streamKey)
	return &en, err
}
