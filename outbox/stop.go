package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// Reason says why a shard stands still.
type Reason string

// The reasons.
const (
	// ReasonLoss: Redis lost more than RewindMax, or rows that are not kept any more, or everything. [Republish] or
	// [AcceptLoss] decides.
	ReasonLoss Reason = "loss"
	// ReasonAhead: Redis holds rows that Postgres lost, after a failover to a standby or a restored backup. [Resync]
	// goes on above them.
	ReasonAhead Reason = "ahead"
	// ReasonForeign: Redis holds rows of another database. [Restamp] says that this one stands in its place.
	ReasonForeign Reason = "foreign"
	// ReasonRefused: Redis will never take a row. Mend the cause; nothing needs to be decided.
	ReasonRefused Reason = "refused"
)

// decision is what an operator said about a shard that stands still.
type decision string

const (
	undecided          decision = ""
	decisionRepublish  decision = "republish"
	decisionAcceptLoss decision = "accept-loss"
	decisionResync     decision = "resync"
)

// fits reports whether the decision answers the reason.
func (d decision) fits(r Reason) bool {
	switch d {
	case decisionRepublish, decisionAcceptLoss:
		return r == ReasonLoss
	case decisionResync:
		return r == ReasonAhead
	}
	return false
}

// stop is why a shard stands still, as relay_stop holds it.
type stop struct {
	reason Reason
	detail string
	stream string
	err    error
	lost   loss
}

func stopOf(f *fault) stop {
	st := stop{detail: f.Error(), err: f}
	switch f.kind {
	case faultAhead:
		st.reason = ReasonAhead
	case faultForeign:
		st.reason = ReasonForeign
	default:
		st.reason = ReasonRefused
	}
	if f.target != nil {
		st.stream = f.target.stream
	}
	return st
}

// recheckEvery is how often a shard that stands still looks whether it may go on.
const recheckEvery = 2 * time.Second

const (
	stopSQL = `
INSERT INTO {schema}.relay_stop AS s (shard, reason, detail, first_batch, rows_lost, bytes_lost, oldest_lost)
VALUES ($1::smallint, $2::text, $3::text, $4::bigint, $5::bigint, $6::bigint, $7::timestamptz)
ON CONFLICT (shard) DO UPDATE SET reason = excluded.reason, detail = excluded.detail, first_batch = excluded.first_batch,
	rows_lost = excluded.rows_lost, bytes_lost = excluded.bytes_lost, oldest_lost = excluded.oldest_lost,
	stopped_at = CASE WHEN s.reason = excluded.reason THEN s.stopped_at ELSE excluded.stopped_at END
WHERE (s.reason, s.detail, s.rows_lost) IS DISTINCT FROM (excluded.reason, excluded.detail, excluded.rows_lost)`

	// A decision holds for one time.
	decisionSQL = `
UPDATE {schema}.relay_stop s SET decision = NULL
FROM (SELECT shard, decision FROM {schema}.relay_stop WHERE shard = $1::smallint FOR UPDATE) old
WHERE s.shard = old.shard AND old.decision IS NOT NULL
RETURNING old.decision`

	resumeSQL = `DELETE FROM {schema}.relay_stop WHERE shard = $1::smallint`
	haltedSQL = `SELECT EXISTS (SELECT FROM {schema}.relay_stop WHERE shard = $1::smallint)`
)

// halt records why the shard stands still, and waits for a while, or for a decision, which it carries out. Then the
// caller tries again: what was wrong may have passed.
func (s *shard) halt(ctx context.Context, b *batch, st stop) error {
	d, err := s.await(ctx, b, st)
	if err != nil {
		return err
	}
	if d == decisionResync {
		return s.resync(ctx, b)
	}
	return nil
}

// askAboutLoss halts because of a loss, and returns what was decided, if it was. A loss that was accepted is
// accepted when it returns.
func (s *shard) askAboutLoss(ctx context.Context, b *batch, f *fault, lost loss) (decision, error) {
	st := stop{reason: ReasonLoss, detail: f.Error(), stream: f.target.stream, err: f, lost: lost}
	if lost.missing {
		st.detail += "; some of it is not kept any more"
	}
	d, err := s.await(ctx, b, st)
	if err == nil && d == decisionAcceptLoss {
		err = s.insist(ctx, "accepting a loss failed", func() error { return s.acceptLoss(ctx, lost) })
	}
	return d, err
}

func (s *shard) await(ctx context.Context, b *batch, st stop) (decision, error) {
	size, err := s.sizeOf(ctx, st.lost)
	if err != nil {
		return undecided, err
	}
	d := undecided
	err = s.insist(ctx, "recording a stop failed", func() error {
		if err := s.checkLease(ctx); err != nil {
			return err
		}
		_, err := s.relay.db.Exec(ctx, stopSQL, s.number, string(st.reason), st.detail, size.first, size.rows, size.bytes, size.oldest)
		if err != nil {
			return err
		}
		d, err = s.takeDecision(ctx, st.reason)
		return err
	})
	if err != nil || d != undecided {
		return d, err
	}
	if !s.halted {
		s.halted = true
		s.relay.observe(ctx, Observation{Moment: Stopped, Shard: s.number, Stream: st.stream, Batch: b.number, Rows: size.rows, Bytes: size.bytes, Err: st.err})
	}
	s.relay.log.Error(ctx, "a shard stands still: see streamkeel outbox status", fmt.Sprintf("shard %d", s.number), st.err, "reason", string(st.reason))
	if !redisx.Pause(ctx, recheckEvery) {
		return undecided, ctx.Err()
	}
	return undecided, nil
}

func (s *shard) takeDecision(ctx context.Context, reason Reason) (decision, error) {
	var text string
	err := s.relay.db.QueryRow(ctx, decisionSQL, s.number).Scan(&text)
	if err == pgx.ErrNoRows {
		return undecided, nil
	}
	if d := decision(text); err == nil && d.fits(reason) {
		return d, nil
	}
	return undecided, err
}

// resume takes the shard's stop back, once it has gone on.
func (s *shard) resume(ctx context.Context) error {
	if !s.halted {
		return nil
	}
	err := s.insist(ctx, "recording that a shard goes on failed", func() error {
		_, err := s.relay.db.Exec(ctx, resumeSQL, s.number)
		return err
	})
	if err == nil {
		s.halted = false
		s.relay.observe(ctx, Observation{Moment: Resumed, Shard: s.number})
	}
	return err
}

// lossSize is what publishing a loss again would send.
type lossSize struct {
	first, rows, bytes int64
	oldest             *time.Time // when the first of them was frozen
	batches            int
}

// sizeBatches bounds how many batches are read to tell the operator: of more it tells the size of the first ones.
const sizeBatches = 500

// sizeOf reads the rows that a loss is about, unless it did so before.
func (s *shard) sizeOf(ctx context.Context, lost loss) (lossSize, error) {
	if len(lost.batches) == 0 {
		return lossSize{}, nil
	}
	if s.size.first == lost.batches[0] && s.size.batches == len(lost.batches) {
		return s.size, nil
	}
	size := lossSize{first: lost.batches[0], batches: len(lost.batches)}
	names := map[place]bool{}
	for _, t := range lost.targets {
		names[t.place] = true
	}
	for _, number := range lost.batches[:min(len(lost.batches), sizeBatches)] {
		b, err := s.readBatch(ctx, number)
		if err != nil {
			return size, err
		}
		if size.oldest == nil {
			size.oldest = &b.frozenAt
		}
		err = s.insist(ctx, "counting what Redis lost failed", func() error {
			rows, bytes := int64(0), int64(0)
			err := s.eachPage(ctx, &b, 0, func(p *page) error {
				defer p.free()
				for i := range p.rows {
					if w := &p.rows[i]; names[place{w.topic, w.partition}] {
						rows, bytes = rows+1, bytes+int64(len(w.event.Data))
					}
				}
				return nil
			})
			if err == nil {
				size.rows, size.bytes = size.rows+rows, size.bytes+bytes
			}
			return err
		})
		if err != nil {
			return size, err
		}
	}
	s.size = size
	return size, nil
}
