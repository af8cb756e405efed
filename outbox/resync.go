package outbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

//go:embed lua/accept.lua
var acceptText string

var acceptScript = redisx.NewScript(acceptText)

// acceptLoss moves the positions of what Redis lost on, without the rows.
func (s *shard) acceptLoss(ctx context.Context, lost loss) error {
	for _, t := range lost.targets {
		from, to := lost.from[t], lost.known[t]
		moved, err := acceptScript.Run(ctx, s.relay.rdb, []string{t.stream, t.relay}, s.relay.system, from.Batch, from.Row, to.Batch, to.Row).Int()
		if err != nil {
			return err
		}
		if moved == 0 { // it was moved before the reply was lost, or something else happened: the script finds out
			continue
		}
		t.known, t.held = to, to
	}
	return nil
}

// resync goes on above what Redis holds of rows that Postgres lost. The rows of the batch in hand for these streams
// would count as there already: those that are not are set aside, and come again in a batch whose number lies above. It remembers
// what the streams hold, about 100 bytes for each row behind what Postgres knows, until the batch is done.
func (s *shard) resync(ctx context.Context, b *batch) error {
	return s.insist(ctx, "resyncing failed", func() error {
		all, err := s.relay.positions(ctx, s.writtenTargets())
		if err != nil {
			return err
		}
		for t, held := range all {
			if held.Compare(t.known) <= 0 || held.tag == b.tag && held.Batch == b.number {
				continue
			}
			for en, err := range entriesBehind(ctx, s.relay.rdb, t.stream, t.known) {
				if err != nil {
					return err
				}
				s.aside.present[rowEvent{en.Event.Sequence.Row, strings.Clone(en.Event.ID)}] = true
			}
			t.known, t.held = held.Position, stream.Position{}
			s.above = max(s.above, held.Batch+1)
			s.aside.streams[t] = reasonResync
			s.lookedAt = time.Time{}
			s.since = completeEvery // the next batch's row tells where all streams are
		}
		s.relay.log.Info(ctx, "going on above rows that Postgres lost", "shard", s.number, "batch", s.above)
		return nil
	})
}

// wasPublished reports whether a stream that is ahead has all rows of the batch, which then was published before Postgres lost
// what came after it, and is done. The next batch holds every row that Postgres still has and that no batch had; what became of
// these in Redis can only be told with all of them in hand.
//
// What a stream lacks it goes on to lack while the shard stands still, so a batch's rows are looked for once.
func (s *shard) wasPublished(ctx context.Context, b *batch, at *progress, t *target) (done bool, err error) {
	if at.lacking == t {
		return false, nil
	}
	err = s.insist(ctx, "looking for what Postgres lost failed", func() error {
		last, err := s.findRows(ctx, b, t)
		switch {
		case err == nil:
			done = true
			t.known = last
			s.touch(t)
		case errors.Is(err, errLacking):
			at.lacking = t
			return nil
		}
		return err
	})
	return done, err
}

// errLacking says that a stream lacks a row of a batch.
var errLacking = errors.New("the stream lacks a row")

// findRows looks for the batch's rows of a stream in it, page by page beside entry by entry, both in the order of
// positions. It returns the last one's position, or errLacking.
func (s *shard) findRows(ctx context.Context, b *batch, t *target) (last stream.Position, err error) {
	next, stop := iter.Pull2(entriesBehind(ctx, s.relay.rdb, t.stream, t.known))
	defer stop()
	last = t.known
	err = s.eachPage(ctx, b, 0, func(p *page) error {
		defer p.free()
		for i := range p.rows {
			w := &p.rows[i]
			pos := stream.Position{Batch: b.number, Row: w.id}
			if (place{w.topic, w.partition}) != t.place || s.aside.rows[w.id] || pos.Compare(t.known) <= 0 {
				continue
			}
			for last.Compare(pos) < 0 {
				en, err, more := next()
				switch last = en.Event.Sequence; {
				case err != nil:
					return err
				case !more, last.Compare(pos) > 0, last == pos && en.Event.ID != w.event.ID:
					return errLacking
				}
			}
		}
		return nil
	})
	return last, err
}

// reasonResync marks rows that come again in the next batch.
const reasonResync = "comes again with a higher number"

// writtenTargets returns the streams of the shard, also those that should be empty.
func (s *shard) writtenTargets() []*target {
	var all []*target
	for _, t := range s.targets {
		if t.stream != "" {
			all = append(all, t)
		}
	}
	return all
}

const (
	wantedSQL = `
SELECT DISTINCT shard FROM {schema}.outbox_failed WHERE shard = ANY ($1::smallint[]) AND retry_wanted AND retry_batch IS NULL`

	// Of a parked key all rows come, in their order, also those that were parked after somebody asked.
	freezeRetrySQL = `
WITH owner AS (
	SELECT shard FROM {schema}.relay_lease
	WHERE shard = $1::smallint AND epoch = $2::bigint AND $8::timestamptz = ` + startedSQL + `
), frozen AS (
	INSERT INTO {schema}.relay_batch (shard, batch, tag, snap_from, snap_to, prev, complete, retry)
	SELECT shard, $3::bigint, $4::text, $5::pg_snapshot, $5::pg_snapshot, $6::jsonb, $7::boolean, true FROM owner
	ON CONFLICT DO NOTHING RETURNING shard
), retried AS (
	UPDATE {schema}.outbox_failed f SET retry_batch = $3::bigint, retried_at = clock_timestamp()
	FROM frozen WHERE f.shard = frozen.shard AND f.retry_batch IS NULL AND (f.retry_wanted
		OR f.parked AND EXISTS (SELECT FROM {schema}.outbox_failed w WHERE w.shard = f.shard AND w.parked AND w.retry_wanted
			AND w.retry_batch IS NULL AND w.namespace = f.namespace AND w.topic = f.topic AND w.key = f.key))
)
SELECT (SELECT count(*) FROM frozen)`
)

// freezeRetries freezes batches of the rows that are wanted again, for idle shards that have such rows.
func (r *Relay) freezeRetries(ctx context.Context, idle []*shard) (done []*shard, err error) {
	if len(idle) == 0 {
		return nil, nil
	}
	rows, err := r.db.Query(ctx, wantedSQL, numbersOf(idle))
	if err != nil {
		return nil, fmt.Errorf("look for rows to retry: %w", err)
	}
	wanted, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return nil, fmt.Errorf("look for rows to retry: %w", err)
	}
	for _, s := range idle {
		if !slices.Contains(wanted, s.number) {
			continue
		}
		done = append(done, s)
		f := s.next()
		b := batch{number: f.number, tag: f.tag, from: f.from, to: f.from, prev: f.prev, complete: f.complete, retry: true}
		var frozen int
		err := r.db.QueryRow(ctx, freezeRetrySQL, s.number, s.lease.epoch, f.number, f.tag, f.from.text, f.prevJSON(), f.complete, s.server).Scan(&frozen)
		if err != nil || frozen == 0 {
			b = batch{} // the lease is lost, or it was frozen and the reply is lost: the log tells
		}
		s.work <- b
		if err != nil {
			return done, fmt.Errorf("freeze: %w", err)
		}
	}
	return done, nil
}
