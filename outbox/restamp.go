package outbox

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

//go:embed lua/restamp.lua
var restampText string

var restampScript = redisx.NewScript(restampText)

// ErrRelayRuns says that a relay runs that must be stopped first.
var ErrRelayRuns = errors.New("a relay runs")

// Restamped is what Restamp did, or would do.
type Restamped struct {
	// System is the database, as streams name it.
	System string
	// Rows counts rows whose transaction numbers were written anew: all of them if they came from another database
	// cluster, else none.
	Rows int64
	// Streams are those that named another database, and which.
	Streams map[string]string
}

// Restamp makes the outbox go on in another database than the one that it was written in: a dump that was restored, an
// upgraded cluster (ErrForeign, ReasonForeign). Rows that were published stay so, those that were not follow, and streams
// that name the other database name this one. It must be the only heir: if the old database still has a relay, both
// would write the same streams. Stop all relays first; otherwise it is ErrRelayRuns, and nothing was done.
//
// Rows that the old database published after the dump are in Redis and not here: the relay then finds Redis
// ahead, and stops for [Resync]. Of what was published before, nothing can be published again any more.
//
// With dryRun it only tells. What failed on the way is done by the next call.
func Restamp(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient, dryRun bool) (Restamped, error) {
	return Schema{}.Restamp(ctx, pool, rdb, dryRun)
}

const (
	relayRunsSQL = `SELECT EXISTS (SELECT FROM {schema}.relay_lease WHERE lease_until > clock_timestamp())`

	countRowsSQL = `SELECT count(*) FROM {schema}.outbox_row`

	// The last batch may have been under way, and must be what it was when it is read again: three numbers tell the rows
	// before it, its own, and those after it. Whatever is written from now on has a higher number.
	restampRowsSQL = `
UPDATE {schema}.outbox_row o
SET xid = (CASE WHEN pg_visible_in_snapshot(o.xid, b.snap_from) THEN '3' WHEN pg_visible_in_snapshot(o.xid, b.snap_to) THEN '4' ELSE '5' END)::xid8
FROM {schema}.relay_lease l
CROSS JOIN LATERAL (SELECT snap_from, snap_to FROM {schema}.relay_batch b WHERE b.shard = l.shard ORDER BY batch DESC LIMIT 1) b
WHERE o.shard = l.shard`

	restampBatchSQL = `
UPDATE {schema}.relay_batch SET snap_from = '4:4:', snap_to = '5:5:', prev = $3::jsonb, complete = true
WHERE shard = $1::smallint AND batch = $2::bigint`

	forgetBatchesSQL = `DELETE FROM {schema}.relay_batch WHERE shard = $1::smallint AND batch < $2::bigint`
)

// Restamp is the package's Restamp, for this schema.
func (s Schema) Restamp(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient, dryRun bool) (Restamped, error) {
	done, err := s.operator(pool, rdb).restamp(ctx, dryRun)
	if err != nil {
		return done, fmt.Errorf("outbox: restamp: %w", err)
	}
	return done, nil
}

func (r *Relay) restamp(ctx context.Context, dryRun bool) (done Restamped, err error) {
	if err := r.topics.load(ctx); err != nil {
		return done, err
	}
	err = r.db.inTx(ctx, pgx.TxOptions{}, func(tx tables) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE {schema}.relay_lease IN EXCLUSIVE MODE`); err != nil { // no relay begins
			return err
		}
		var runs, foreign bool
		if err := tx.QueryRow(ctx, relayRunsSQL).Scan(&runs); err != nil {
			return err
		}
		if runs {
			return fmt.Errorf("%w; stop all of them, and wait until their leases end", ErrRelayRuns)
		}
		if err := tx.QueryRow(ctx, foreignSQL).Scan(&foreign); err != nil || !foreign {
			return err
		}
		if dryRun {
			return tx.QueryRow(ctx, countRowsSQL).Scan(&done.Rows)
		}
		done.Rows, err = restampRows(ctx, database{tx, r.db.pool})
		return err
	})
	if err != nil {
		return done, err
	}
	if done.System, err = r.db.system(ctx); err != nil {
		return done, err
	}
	done.Streams, err = r.restampStreams(ctx, done.System, dryRun)
	return done, err
}

func restampRows(ctx context.Context, tx database) (int64, error) {
	tag, err := tx.Exec(ctx, restampRowsSQL)
	if err != nil {
		return 0, err
	}
	shards, err := readShards(ctx, tx)
	if err != nil {
		return 0, err
	}
	for _, n := range shards {
		c, err := (&Relay{db: tx}).loadChain(ctx, n)
		if err != nil {
			return 0, err
		}
		prev, err := json.Marshal(texts(c.known))
		if err != nil {
			return 0, err
		}
		if _, err := tx.Exec(ctx, restampBatchSQL, n, c.last.number, prev); err != nil {
			return 0, err
		}
		if _, err := tx.Exec(ctx, forgetBatchesSQL, n, c.last.number); err != nil {
			return 0, err
		}
	}
	return tag.RowsAffected(), nil
}

// restampStreams puts the system into the streams' positions, and returns those that named another one.
func (r *Relay) restampStreams(ctx context.Context, system string, dryRun bool) (map[string]string, error) {
	others := map[string]string{}
	for _, topic := range r.topics.all() {
		for _, key := range topic.StreamKeys() {
			relay := stream.KeyRelay.Key(key, "")
			var was string
			var err error
			if dryRun {
				if was, err = r.rdb.HGet(ctx, relay, "system").Result(); redisx.IsNil(err) {
					err = nil
				}
			} else {
				was, err = restampScript.Run(ctx, r.rdb, []string{relay}, system).Text()
			}
			if err != nil {
				return others, fmt.Errorf("stream %s: %w", key, err)
			}
			if was != "" && was != system {
				others[key] = was
			}
		}
	}
	return others, nil
}
