package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Status is how the outbox stands.
type Status struct {
	Shards []ShardStatus
	// Relays counts the relays that run.
	Relays int
	// Delayed and Failed count rows for later, and refused ones that wait for a person.
	Delayed, Failed int64
	// DaysAhead is how many days the row partitions reach ahead.
	DaysAhead int
}

// ShardStatus is how a shard stands.
type ShardStatus struct {
	Shard int
	// Owner is the relay whose lease lasts until LeaseUntil; "" if there is none.
	Owner      string
	Epoch      int64
	LeaseUntil time.Time
	// Batch is the last batch that was frozen, Published the last one that is known to be wholly in Redis. The latter is
	// written with the renewals of the lease, and up to a third of LeaseTTL late.
	Batch, Published int64
	// Unpublished counts committed rows that are in no batch yet, up to 10,000, and Oldest is the age of what
	// waits longest, rows of the batch in hand included.
	Unpublished int64
	Oldest      time.Duration
	// Stop is why the shard stands still, or nil.
	Stop *Stop
}

// Idle reports whether everything that was committed is in Redis.
func (s ShardStatus) Idle() bool { return s.Unpublished == 0 && s.Published == s.Batch }

// Stop is why a shard stands still, until somebody decides or mends it.
type Stop struct {
	Shard  int
	Reason Reason
	Detail string
	Since  time.Time
	// What publishing again would send (ReasonLoss): from FirstBatch on, which was frozen at Oldest. Of more than 500
	// batches it tells the size of the first.
	FirstBatch, Rows, Bytes int64
	Oldest                  time.Time
	// Decision is what was decided and is not carried out yet.
	Decision string
}

const (
	// The LIMIT within a LATERAL has each transaction looked up in the index; a plain join would be hashed, over all rows.
	shardStatusSQL = `
SELECT l.shard, CASE WHEN l.lease_until > clock_timestamp() THEN l.owner ELSE '' END, l.epoch,
	CASE WHEN isfinite(l.lease_until) THEN l.lease_until ELSE '1970-01-01 00:00:00+00' END, last.batch, l.published,
	w.waiting, greatest((extract(epoch FROM clock_timestamp() - w.oldest) * 1000000)::bigint,
		CASE WHEN l.published < last.batch THEN (extract(epoch FROM clock_timestamp() - last.frozen_at) * 1000000)::bigint END, 0)
FROM {schema}.relay_lease l
CROSS JOIN LATERAL (SELECT * FROM {schema}.relay_batch b WHERE b.shard = l.shard ORDER BY batch DESC LIMIT 1) last
CROSS JOIN LATERAL (SELECT count(*) AS waiting, min(created_at) AS oldest FROM (
	SELECT created_at FROM {schema}.outbox_row o WHERE o.shard = l.shard AND o.xid >= pg_snapshot_xmax(last.snap_to)
	UNION ALL SELECT o.created_at FROM pg_snapshot_xip(last.snap_to) AS x(xid)
		CROSS JOIN LATERAL (SELECT created_at FROM {schema}.outbox_row o WHERE o.shard = l.shard AND o.xid = x.xid LIMIT $1::bigint) o
	LIMIT $1::bigint) o) w
ORDER BY l.shard`

	countsSQL = `
SELECT (SELECT count(*) FROM {schema}.relay_instance WHERE lease_until > clock_timestamp()),
	(SELECT count(*) FROM {schema}.outbox_delayed), (SELECT count(*) FROM {schema}.outbox_failed WHERE retry_batch IS NULL)`

	stopsSQL = `
SELECT shard, reason, detail, stopped_at, coalesce(first_batch, 0), coalesce(rows_lost, 0), coalesce(bytes_lost, 0),
	coalesce(oldest_lost, '1970-01-01 00:00:00+00'), coalesce(decision, '')
FROM {schema}.relay_stop ORDER BY shard`
)

// ReadStatus reads how the outbox stands, from Postgres alone. It counts at most 10,000 rows of each shard.
func ReadStatus(ctx context.Context, pool *pgxpool.Pool) (Status, error) {
	return Schema{}.ReadStatus(ctx, pool)
}

// ReadStatus is the package's ReadStatus, for this schema.
func (s Schema) ReadStatus(ctx context.Context, pool *pgxpool.Pool) (Status, error) {
	db := s.database(pool)
	var status Status
	err := db.inTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx tables) error {
		if _, err := tx.Exec(ctx, `SET LOCAL jit = off`); err != nil { // which compiles for longer than the query takes
			return err
		}
		rows, err := tx.Query(ctx, shardStatusSQL, backlogRows)
		if err != nil {
			return err
		}
		status.Shards, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s ShardStatus, err error) {
			var micros int64
			err = row.Scan(&s.Shard, &s.Owner, &s.Epoch, &s.LeaseUntil, &s.Batch, &s.Published, &s.Unpublished, &micros)
			s.Oldest = time.Duration(micros) * time.Microsecond
			return s, err
		})
		return err
	})
	if err != nil {
		return status, fmt.Errorf("outbox: status: %w", err)
	}
	if err := db.QueryRow(ctx, countsSQL).Scan(&status.Relays, &status.Delayed, &status.Failed); err != nil {
		return status, fmt.Errorf("outbox: status: %w", err)
	}
	if err := db.QueryRow(ctx, aheadSQL).Scan(&status.DaysAhead); err != nil {
		return status, fmt.Errorf("outbox: status: %w", err)
	}
	stops, err := readStops(ctx, db)
	if err != nil {
		return status, err
	}
	for i := range status.Shards {
		status.Shards[i].Stop = stops[status.Shards[i].Shard]
	}
	return status, nil
}

func readStops(ctx context.Context, db database) (map[int]*Stop, error) {
	rows, err := db.Query(ctx, stopsSQL)
	if err != nil {
		return nil, fmt.Errorf("outbox: status: %w", err)
	}
	stops := map[int]*Stop{}
	var s Stop
	_, err = pgx.ForEachRow(rows, []any{&s.Shard, &s.Reason, &s.Detail, &s.Since, &s.FirstBatch, &s.Rows, &s.Bytes, &s.Oldest, &s.Decision}, func() error {
		one := s
		stops[s.Shard] = &one
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("outbox: status: %w", err)
	}
	return stops, nil
}
