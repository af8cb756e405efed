package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/stream"
)

const (
	minPostgres   = 140000
	layoutVersion = 1
)

// start checks what the relay stands on, and tells Redis the topics.
func (r *Relay) start(ctx context.Context) error {
	if err := r.checkPostgres(ctx); err != nil {
		return fmt.Errorf("outbox: check Postgres: %w", err)
	}
	if err := r.topics.load(ctx); err != nil {
		return fmt.Errorf("outbox: read topics: %w", err)
	}
	if err := stream.CheckServer(ctx, r.rdb, r.config.AllowEviction, r.topics.sampleKeys()...); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	if r.config.Fsync {
		if err := r.rdb.Do(ctx, "waitaof", 1, 0, 1).Err(); err != nil {
			return fmt.Errorf("outbox: Fsync needs Redis 7.2 with appendonly: %w", err)
		}
	}
	if err := stream.Declare(ctx, r.rdb, r.topics.all()...); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	r.warnOfTransactions(ctx)
	return nil
}

const (
	serverSQL = `
SELECT current_setting('server_version_num')::integer, current_setting('server_encoding'), pg_is_in_recovery(),
	to_regclass('{schema}.relay_batch') IS NOT NULL`

	layoutSQL = `
SELECT (SELECT version FROM {schema}.layout), (SELECT count(*) FROM {schema}.relay_lease),
	(SELECT seqcache FROM pg_sequence WHERE seqrelid = '{schema}.outbox_id'::regclass),
	to_regclass('{schema}.outbox_row_shard_xid') IS NOT NULL`

	// Another cluster's or database's rows carry transaction numbers that mean nothing here.
	systemSQL = `
SELECT (SELECT system_identifier FROM pg_control_system())::text || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())::text`

	foreignSQL = `
SELECT EXISTS (SELECT FROM {schema}.relay_lease l CROSS JOIN LATERAL (
		SELECT snap_to FROM {schema}.relay_batch b WHERE b.shard = l.shard ORDER BY batch DESC LIMIT 1) b
	WHERE pg_snapshot_xmax(b.snap_to) > pg_snapshot_xmax(pg_current_snapshot()))
OR EXISTS (SELECT FROM {schema}.relay_lease l, {schema}.outbox_row o
	WHERE o.shard = l.shard AND o.xid >= pg_snapshot_xmax(pg_current_snapshot()))`
)

func (r *Relay) checkPostgres(ctx context.Context) error {
	version, encodedIn := 0, ""
	var standby, migrated bool
	if err := r.db.QueryRow(ctx, serverSQL).Scan(&version, &encodedIn, &standby, &migrated); err != nil {
		return err
	}
	switch {
	case version < minPostgres:
		return fmt.Errorf("%w: version %d.%d; Streamkeel needs 14 at least", ErrUnsupportedPostgres, version/10000, version%10000)
	case encodedIn != "UTF8":
		return fmt.Errorf("%w: the database is encoded in %s; Streamkeel needs UTF8", ErrUnsupportedPostgres, encodedIn)
	case standby:
		return fmt.Errorf("%w: the server is a standby; connect to the primary", ErrUnsupportedPostgres)
	case !migrated:
		return fmt.Errorf("%w: run streamkeel migrate up", ErrNotMigrated)
	}
	var layout, shards, cache int
	var indexed bool
	if err := r.db.QueryRow(ctx, layoutSQL).Scan(&layout, &shards, &cache, &indexed); err != nil {
		if pgerr.IsNoTable(err) {
			return fmt.Errorf("%w: run streamkeel migrate up: %w", ErrNotMigrated, err)
		}
		return err
	}
	switch {
	case layout != layoutVersion:
		return fmt.Errorf("%w: they are of layout %d, this version knows %d", ErrNotMigrated, layout, layoutVersion)
	case cache != 1:
		return fmt.Errorf("%w: sequence outbox_id has CACHE %d, which loses the order of a key; ALTER SEQUENCE %s.outbox_id CACHE 1", ErrUnsupportedPostgres, cache, r.db.schema.Quoted())
	case !indexed:
		return fmt.Errorf("%w: index outbox_row_shard_xid; CREATE INDEX outbox_row_shard_xid ON %s.outbox_row (shard, xid)", ErrNotMigrated, r.db.schema.Quoted())
	case shards < 1 || shards > maxShards:
		return fmt.Errorf("%w: relay_lease has %d rows, 1 to %d are possible", ErrNotMigrated, shards, maxShards)
	}
	r.shards = shards
	var foreign bool
	if err := r.db.QueryRow(ctx, foreignSQL).Scan(&foreign); err != nil {
		return err
	}
	if foreign {
		return fmt.Errorf("%w: its transaction numbers lie beyond the present ones; run streamkeel outbox restamp", ErrForeign)
	}
	system, err := r.db.system(ctx)
	r.system = system
	return err
}

// system returns what tells the outbox from others, in the positions of streams.
func (d database) system(ctx context.Context) (system string, err error) {
	err = d.QueryRow(ctx, systemSQL).Scan(&system)
	if d.schema.String() != pgschema.Default {
		system += "/" + d.schema.String()
	}
	return system, err
}

const oldTransactionsSQL = `
SELECT 'prepared transaction ' || gid || ' in database ' || database, extract(epoch FROM clock_timestamp() - prepared)::bigint
FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - interval '1 minute'
UNION ALL (SELECT 'transaction of process ' || pid || ' in database ' || datname, extract(epoch FROM clock_timestamp() - xact_start)::bigint
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - interval '1 minute'
ORDER BY xact_start LIMIT 5)`

// warnOfTransactions tells of transactions that have been open for long: they hold back no event but their own,
// and keep vacuum from doing its work.
func (r *Relay) warnOfTransactions(ctx context.Context) {
	rows, err := r.db.Query(ctx, oldTransactionsSQL)
	if err != nil {
		r.failed(ctx, "looking for old transactions failed", -1, err)
		return
	}
	var what string
	var seconds int64
	_, err = pgx.ForEachRow(rows, []any{&what, &seconds}, func() error {
		r.log.Warn(ctx, "a transaction is open for long: its own events wait for its end", what, "open", time.Duration(seconds)*time.Second)
		return nil
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		r.failed(ctx, "looking for old transactions failed", -1, err)
	}
}
