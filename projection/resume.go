package projection

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/inspect.lua
	inspectText   string
	inspectScript = redisx.NewScript(inspectText)
)

// resume loads the checkpoints, begins those that are missing, and compares every stream
// with its own.
func (l *lane) resume(ctx context.Context) error {
	missing, err := l.load(ctx)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		if err := l.begin(ctx, missing); err != nil {
			return err
		}
		if missing, err = l.load(ctx); err != nil {
			return err
		}
		if len(missing) > 0 {
			return fmt.Errorf("projection: %s: the checkpoint of %s was deleted: %w", l.r.config.Name, missing[0].key, errMoved)
		}
	}
	_, histories, err := l.readAndInspect(ctx, nil, nil, l.partitions)
	if err != nil {
		return err
	}
	_, err = l.compare(ctx, l.partitions, histories)
	return err
}

// load reads the lane's checkpoints and returns the partitions that have none.
func (l *lane) load(ctx context.Context) ([]*partition, error) {
	return l.loadFrom(ctx, l.r.pool)
}

func (l *lane) loadFrom(ctx context.Context, db querier) ([]*partition, error) {
	all, err := checkpoints(ctx, db, l.r.schema, l.r.config.Name)
	if err != nil {
		return nil, l.r.postgresError("load", err)
	}
	byStream := make(map[string]Checkpoint, len(all))
	for _, c := range all {
		byStream[c.Stream] = c
	}
	var missing []*partition
	for _, p := range l.partitions {
		c, found := byStream[p.key]
		if !found {
			missing = append(missing, p)
		}
		if c.version != p.at.version || c.ID != p.at.ID {
			p.failures, p.retryAt = 0, time.Time{}
		}
		p.at, p.more = c, false
	}
	return missing, nil
}

// begin writes the first checkpoints. A stream must still have all that it was ever given,
// or else the read model would lack it.
func (l *lane) begin(ctx context.Context, missing []*partition) error {
	_, histories, err := l.readAndInspect(ctx, nil, nil, missing)
	if err != nil {
		return err
	}
	var faults []error
	for i, p := range missing {
		h := &histories[i]
		if gone := h.added - h.length; gone > 0 {
			if !l.r.config.AllowPartial {
				faults = append(faults, fmt.Errorf("projection: %s: %s has %d entries of the %d that it was given: %w; AllowPartial begins without them",
					l.r.config.Name, p.key, h.length, h.added, ErrTrimmedUnread))
				continue
			}
			l.r.log.Info(ctx, "projection begins on a trimmed stream", "stream", p.key, "missing", gone)
		}
		_, err := l.r.pool.Exec(ctx, l.r.schema.SQL(beginCheckpoint), l.r.config.Name, p.key, h.added-h.length, h.deleted.String())
		if err != nil {
			return l.r.postgresError("begin "+p.key, err)
		}
	}
	return errors.Join(faults...)
}

// compare judges what the streams said, and returns of which a read may be applied: a
// stream that was rewound is set back to its start, or is an error.
func (l *lane) compare(ctx context.Context, partitions []*partition, histories []history) (map[*partition]bool, error) {
	usable := make(map[*partition]bool, len(partitions))
	var behind []*partition
	for i, p := range partitions {
		h := &histories[i]
		found, reason := h.judge(&p.at)
		p.seen = ""
		switch {
		case found == intact:
			usable[p] = true
			if h.grouped && h.group.Compare(p.at.ID) >= 0 {
				p.seen = h.group.String()
			}
		case found == rewound && h.replayable(&p.at):
			if err := l.rewind(ctx, p, h, reason); err != nil {
				return nil, err
			}
		default:
			return nil, l.r.discontinued(p, found, reason)
		}
		p.inspected = time.Now()
		learnt := h.learn(&p.at)
		if !h.grouped || h.group != p.at.ID || learnt != p.at.EntriesRead {
			behind = append(behind, p)
		}
		p.at.EntriesRead = learnt
	}
	return usable, l.hold(ctx, behind)
}

// discontinued is the error for a stream that does not continue its checkpoint.
func (r *Runner) discontinued(p *partition, found finding, reason string) error {
	err := ErrTrimmedUnread
	if found == rewound {
		err = ErrRewound
		if !p.at.Sequence.IsZero() { // it would be read again, had it not been trimmed as well
			err = fmt.Errorf("%w, and %w", ErrRewound, ErrTrimmedUnread)
		}
	}
	return fmt.Errorf("projection: %s: %s behind checkpoint %s: %w: %s", r.config.Name, p.key, p.at.ID, err, reason)
}

// rewind sets the checkpoint back to the start of a stream that is another one than was
// read. The sequence stays: what was applied is known by it, and skipped.
func (l *lane) rewind(ctx context.Context, p *partition, h *history, reason string) error {
	to := h.start(p.at)
	tag, err := l.r.pool.Exec(ctx, l.r.schema.SQL(moveCheckpoints), moveArgs(l.r.config.Name, []move{{p.at, to}})...)
	if err != nil {
		return l.r.postgresError("rewind "+p.key, err)
	}
	if tag.RowsAffected() != 1 {
		return errMoved
	}
	l.r.log.Info(ctx, "stream was rewound and is read again from its start",
		"stream", p.key, "checkpoint", p.at.ID.String(), "sequence", p.at.Sequence.String(), "found", reason)
	l.r.observe(ctx, Observation{Moment: Rewound, Stream: p.key, ID: p.at.ID, Err: fmt.Errorf("%w: %s", ErrRewound, reason)})
	to.version++
	p.at, p.failures, p.retryAt = to, 0, time.Time{}
	return nil
}

// start returns the checkpoint from which a stream is read from its start, by a projection
// that has applied what c says.
func (h *history) start(c Checkpoint) Checkpoint {
	if c.ID.Compare(c.guard) > 0 {
		c.guard = c.ID
	}
	c.ID, c.Event = stream.ID{}, ""
	c.EntriesRead, c.deleted = h.added-h.length, h.deleted
	return c
}
