package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// UpkeepConfig says what Upkeep keeps. Retention and DaysAhead are those of [RelayConfig].
type UpkeepConfig struct {
	Retention time.Duration
	DaysAhead int
	// Schema is where the tables are. Default "streamkeel".
	Schema string
}

// UpkeepReport is what Upkeep did.
type UpkeepReport struct {
	// Made counts new row partitions, Dropped names those that went.
	Made    int
	Dropped []string
	// Log counts the rows of the batch log that went, Failed those of outbox_failed that were published again.
	Log, Failed int64
	// DaysAhead is how many days the row partitions reach ahead.
	DaysAhead int
}

// Upkeep makes row partitions for the days ahead, and drops those whose rows were all published longer than
// Retention ago, with what the log says of them. A relay does it every minute unless DisableUpkeep is set.
//
// It holds up no publishing: it waits for locks that conflict with none of publishing's, and drops a row partition only
// after it was detached concurrently. What cannot be done within seconds, because of a transaction that has been open for
// long, is an error, and done by a later call. The role must own the tables.
func Upkeep(ctx context.Context, pool *pgxpool.Pool, config UpkeepConfig) (UpkeepReport, error) {
	schema, err := In(config.Schema)
	if err != nil {
		return UpkeepReport{}, err
	}
	return upkeep(ctx, schema.database(pool), config)
}

func upkeep(ctx context.Context, db database, config UpkeepConfig) (UpkeepReport, error) {
	var report UpkeepReport
	var faults []error
	note := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	note(addPartitions(ctx, db, config.DaysAhead, &report))
	note(trimLog(ctx, db, config.Retention, &report))
	note(dropPartitions(ctx, db, config.Retention, &report))
	if err := errors.Join(faults...); err != nil {
		return report, fmt.Errorf("outbox: upkeep: %w", err)
	}
	return report, nil
}

// How long DDL waits for a lock, and how long a detach may wait for older transactions. Neither keeps an
// insert waiting.
const (
	lockTimeout   = "2s"
	detachTimeout = 5 * time.Second
)

const (
	addSQL   = `SELECT {schema}.outbox_add_partitions($1::integer)`
	aheadSQL = `
SELECT coalesce(max(to_date(right(c.relname, 8), 'YYYYMMDD')) - (clock_timestamp() AT TIME ZONE 'UTC')::date, 0)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = '{schema}.outbox_row'::regclass`
)

func addPartitions(ctx context.Context, db database, days int, report *UpkeepReport) error {
	err := db.inShortTx(ctx, func(tx tables) error {
		return tx.QueryRow(ctx, addSQL, days).Scan(&report.Made)
	})
	if err != nil {
		return fmt.Errorf("make row partitions: %w", err)
	}
	return db.QueryRow(ctx, aheadSQL).Scan(&report.DaysAhead)
}

// inShortTx runs fn in a transaction that waits for no lock for longer than lockTimeout.
func (d database) inShortTx(ctx context.Context, fn func(tx tables) error) error {
	return d.inTx(ctx, pgx.TxOptions{}, func(tx tables) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '"+lockTimeout+"'"); err != nil {
			return err
		}
		return fn(tx)
	})
}

// trimRows is how many rows of the log one statement removes.
const trimRows = 5000

const (
	shardsSQL = `SELECT shard FROM {schema}.relay_lease ORDER BY shard`

	// What goes lies before the newest row that holds all positions and is old enough itself; the last rows stay
	// in any case.
	trimSQL = `
DELETE FROM {schema}.relay_batch WHERE shard = $1::smallint AND batch < (
	SELECT max(batch) FROM (
		SELECT batch, complete, frozen_at FROM {schema}.relay_batch WHERE shard = $1::smallint ORDER BY batch LIMIT $3::bigint) b
	WHERE complete AND frozen_at < clock_timestamp() - $2::bigint * interval '1 microsecond')`

	trimFailedSQL = `
DELETE FROM {schema}.outbox_failed WHERE seq IN (
	SELECT seq FROM {schema}.outbox_failed WHERE retried_at < clock_timestamp() - $1::bigint * interval '1 microsecond' LIMIT $2::bigint)`
)

func readShards(ctx context.Context, db database) ([]int, error) {
	rows, err := db.Query(ctx, shardsSQL)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int])
}

func trimLog(ctx context.Context, db database, retention time.Duration, report *UpkeepReport) error {
	shards, err := readShards(ctx, db)
	if err != nil {
		return fmt.Errorf("trim the log: %w", err)
	}
	trim := func(count *int64, statement string, args ...any) error {
		for {
			tag, err := db.Exec(ctx, statement, args...)
			if err != nil {
				return fmt.Errorf("trim the log: %w", err)
			}
			if *count += tag.RowsAffected(); tag.RowsAffected() == 0 {
				return nil
			}
		}
	}
	for _, shard := range shards {
		if err := trim(&report.Log, trimSQL, shard, retention.Microseconds(), trimRows); err != nil {
			return err
		}
	}
	return trim(&report.Failed, trimFailedSQL, retention.Microseconds(), trimRows)
}

const (
	// Row partitions whose time was over a Retention ago, and tables that were detached and not dropped. A detach that was
	// cut off comes first: Postgres begins no other before it is finished.
	oldSQL = `
SELECT c.relname, i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false)
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = '{schema}.outbox_row'::regclass
WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^outbox_[0-9]{8}$'
	AND (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' < clock_timestamp() - $1::bigint * interval '1 microsecond'
ORDER BY coalesce(i.inhdetachpending, false) DESC, c.relname`

	// A row partition may go if nobody writes to it any more, and every row in it was in a batch before one that was frozen
	// a Retention ago, or before the last one, which a takeover reads. done is, for each shard, the snapshot up to which that
	// holds. Whoever wrote to it had a transaction number when its time was over, and so below the end of every
	// snapshot taken later: if all transactions below one of those are over, all writers are. (A batch of retries has an older
	// snapshot, the first row of a log has none.)
	finishedSQL = `
WITH done AS (
	SELECT l.shard, coalesce(kept.frozen_at, last.frozen_at) AS frozen_at, coalesce(kept.snap_to, last.snap_to) AS snap_to,
		coalesce(kept.batch > 0 AND NOT kept.retry, last.batch > 0 AND NOT last.retry) AS taken_then,
		coalesce(kept.snap_from, last.snap_from) AS snap
	FROM {schema}.relay_lease l
	CROSS JOIN LATERAL (SELECT * FROM {schema}.relay_batch b WHERE b.shard = l.shard ORDER BY batch DESC LIMIT 1) last
	LEFT JOIN LATERAL (SELECT * FROM {schema}.relay_batch b
		WHERE b.shard = l.shard AND frozen_at >= clock_timestamp() - $1::bigint * interval '1 microsecond' ORDER BY batch LIMIT 1) kept ON true
)
SELECT EXISTS (SELECT FROM done WHERE taken_then AND frozen_at > (to_date($2::text, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' + interval '1 minute'
		AND pg_snapshot_xmax(snap_to) <= pg_snapshot_xmin(pg_current_snapshot())),
	NOT EXISTS (SELECT FROM done d, {schema}.{table} o WHERE o.shard = d.shard AND o.xid >= pg_snapshot_xmax(d.snap))
	AND NOT EXISTS (SELECT FROM done d CROSS JOIN LATERAL pg_snapshot_xip(d.snap) AS x(xid)
		CROSS JOIN LATERAL (SELECT FROM {schema}.{table} o WHERE o.shard = d.shard AND o.xid = x.xid LIMIT 1) o)`
)

func dropPartitions(ctx context.Context, db database, retention time.Duration, report *UpkeepReport) error {
	rows, err := db.Query(ctx, oldSQL, retention.Microseconds())
	if err != nil {
		return fmt.Errorf("look for old row partitions: %w", err)
	}
	candidates, err := pgx.CollectRows(rows, pgx.RowToStructByPos[oldPartition])
	if err != nil {
		return fmt.Errorf("look for old row partitions: %w", err)
	}
	var faults []error
	for _, c := range candidates {
		dropped, err := c.drop(ctx, db, retention)
		if dropped {
			report.Dropped = append(report.Dropped, c.Name)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("drop row partition %s: %w", c.Name, err))
		}
		if errors.Is(err, errDetach) {
			break // another would fail, too
		}
	}
	return errors.Join(faults...)
}

var errDetach = errors.New("detach")

// oldPartition is a row partition whose time was over a Retention ago, or a table that was one.
type oldPartition struct {
	Name     string
	Attached bool
	Pending  bool // a detach was cut off
}

func (c oldPartition) drop(ctx context.Context, db database, retention time.Duration) (bool, error) {
	table := pgx.Identifier{c.Name}.Sanitize()
	finished := func() (idle, published bool, err error) {
		statement := strings.ReplaceAll(finishedSQL, "{table}", table)
		err = db.QueryRow(ctx, statement, retention.Microseconds(), strings.TrimPrefix(c.Name, "outbox_")).Scan(&idle, &published)
		return idle, published, err
	}
	if c.Attached && !c.Pending {
		if idle, published, err := finished(); err != nil || !idle || !published {
			return false, err
		}
	}
	if c.Attached {
		how := "CONCURRENTLY"
		if c.Pending {
			how = "FINALIZE"
		}
		if err := db.runFor(ctx, detachTimeout, "ALTER TABLE {schema}.outbox_row DETACH PARTITION {schema}."+table+" "+how); err != nil {
			return false, fmt.Errorf("%w: %w", errDetach, err)
		}
	}
	// Nobody can write to it now. Had somebody done so since, with a time set by hand, it would be lost here.
	if _, published, err := finished(); err != nil || !published {
		return false, errors.Join(err, errors.New("it holds rows that were written late and never published"))
	}
	err := db.inShortTx(ctx, func(tx tables) error {
		_, err := tx.Exec(ctx, "DROP TABLE {schema}."+table)
		return err
	})
	return err == nil, err
}

// runFor runs a statement outside a transaction, and has the server cancel it when it takes longer than limit. A setting
// of the session would do it too, but belongs to somebody else behind a pooler.
func (d database) runFor(ctx context.Context, limit time.Duration, statement string) error {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	done := make(chan struct{})
	timer := time.AfterFunc(limit, func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		_ = conn.Conn().PgConn().CancelRequest(ctx) // else it goes on waiting, and keeps nobody else from working
	})
	_, err = conn.Exec(ctx, d.schema.SQL(statement), pgx.QueryExecModeExec)
	if !timer.Stop() {
		<-done
	}
	return err
}
