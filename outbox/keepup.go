package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// How often the relay looks after what is not publishing.
const (
	delayedEvery = time.Second
	backlogEvery = 10 * time.Second
	upkeepEvery  = time.Minute
)

// keepUp moves delayed rows, has refused rows retried, tells the backlog, and does the upkeep, until ctx ends. Of
// several relays, the owner of shard 0 does what is not about a shard of its own.
func (r *Relay) keepUp(ctx context.Context) {
	ticker := time.NewTicker(delayedEvery)
	defer ticker.Stop()
	var told, upkept time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if r.leads() {
			if err := r.moveDue(ctx); err != nil {
				r.failed(ctx, "moving delayed rows failed", -1, err)
			}
			if !r.config.DisableUpkeep && time.Since(upkept) > upkeepEvery {
				upkept = time.Now()
				r.upkeep(ctx)
			}
		}
		if r.config.Observer != nil && time.Since(told) > backlogEvery {
			told = time.Now()
			if err := r.tellBacklog(ctx); err != nil {
				r.failed(ctx, "counting the backlog failed", -1, err)
			}
		}
	}
}

func (r *Relay) leads() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := r.owned[0]
	return first != nil && first.lease.held()
}

func (r *Relay) upkeep(ctx context.Context) {
	report, err := upkeep(ctx, r.db, UpkeepConfig{Retention: r.config.Retention, DaysAhead: r.config.DaysAhead})
	if err != nil {
		r.failed(ctx, "upkeep could not do all, and tries again", -1, err)
		r.observe(ctx, Observation{Moment: Deferred, Shard: -1, Err: err})
	}
	r.observe(ctx, Observation{Moment: Upkept, Shard: -1, DaysAhead: report.DaysAhead})
	if len(report.Dropped) > 0 {
		r.log.Info(ctx, "row partitions were dropped", "tables", report.Dropped)
	}
	r.warnOfTransactions(ctx)
}

// delayedRows is how many delayed rows one statement moves.
const delayedRows = 500

// Delayed rows are moved by one relay of a schema at a time, so that those of a key come in the order of their times.
const moveDueSQL = `
WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(723683716, '{schema}.outbox_delayed'::regclass::oid::integer) AS mine),
due AS (
	DELETE FROM {schema}.outbox_delayed d
	USING (SELECT p.ctid FROM {schema}.outbox_delayed p, turn WHERE turn.mine AND p.due_at <= statement_timestamp()
		ORDER BY p.due_at, p.id LIMIT $1::bigint FOR UPDATE OF p SKIP LOCKED) p
	WHERE d.ctid = p.ctid RETURNING d.*)
INSERT INTO {schema}.outbox_row (shard, ` + eventColumns + `)
SELECT shard, ` + eventColumns + ` FROM due ORDER BY due_at, id`

func (r *Relay) moveDue(ctx context.Context) error {
	for {
		tag, err := r.db.Exec(ctx, moveDueSQL, delayedRows)
		if err != nil {
			return err
		}
		if tag.RowsAffected() > 0 {
			Wake()
		}
		if tag.RowsAffected() < delayedRows {
			return nil
		}
	}
}

// backlogRows is how far rows that wait are counted, for each shard.
const backlogRows = 10_000

const backlogSQL = `
SELECT l.shard, w.waiting, (extract(epoch FROM clock_timestamp() - coalesce(w.oldest, clock_timestamp())) * 1000000)::bigint, last.batch,
	(extract(epoch FROM clock_timestamp() - last.frozen_at) * 1000000)::bigint
FROM {schema}.relay_lease l
CROSS JOIN LATERAL (SELECT * FROM {schema}.relay_batch b WHERE b.shard = l.shard ORDER BY batch DESC LIMIT 1) last
CROSS JOIN LATERAL (SELECT count(*) AS waiting, min(created_at) AS oldest FROM (SELECT created_at FROM {schema}.outbox_row o
	WHERE o.shard = l.shard AND o.xid >= pg_snapshot_xmax(last.snap_to) LIMIT $2::bigint) o) w
WHERE l.shard = ANY ($1::smallint[])`

// tellBacklog tells the observer how many rows of each shard wait, and for how long the oldest has.
func (r *Relay) tellBacklog(ctx context.Context) error {
	held := r.held()
	byNumber := map[int]*shard{}
	for _, s := range held {
		byNumber[s.number] = s
	}
	rows, err := r.db.Query(ctx, backlogSQL, numbersOf(held), backlogRows)
	if err != nil {
		return fmt.Errorf("backlog: %w", err)
	}
	var shard int
	var waiting, micros, last, sinceFrozen int64
	_, err = pgx.ForEachRow(rows, []any{&shard, &waiting, &micros, &last, &sinceFrozen}, func() error {
		if byNumber[shard].published.Load() < last { // a batch is in hand
			micros = max(micros, sinceFrozen)
		}
		r.observe(ctx, Observation{Moment: Backlog, Shard: shard, Rows: waiting, Age: time.Duration(micros) * time.Microsecond})
		return nil
	})
	return err
}
