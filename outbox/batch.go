package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/stream"
)

// batch is a row of relay_batch: what a shard's rows were between two snapshots, or if retry is set, rows that had
// been refused.
type batch struct {
	number   int64
	tag      string
	from, to snapshot
	prev     map[string]string // by target, as text; what the row held
	complete bool
	retry    bool
	frozenAt time.Time
}

const batchColumns = `batch, tag, snap_from::text, snap_to::text, prev, complete, retry, frozen_at`

func scanBatches(rows pgx.Rows, err error) ([]batch, error) {
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (batch, error) {
		var b batch
		var from, to string
		var prev []byte
		err := row.Scan(&b.number, &b.tag, &from, &to, &prev, &b.complete, &b.retry, &b.frozenAt)
		if err != nil {
			return b, err
		}
		if b.from, err = parseSnapshot(from); err != nil {
			return b, err
		}
		if b.to, err = parseSnapshot(to); err != nil {
			return b, err
		}
		return b, json.Unmarshal(prev, &b.prev)
	})
}

// chain is what a shard's log says: its last batch, and the position of the last row before it in each stream.
type chain struct {
	last  batch
	known map[string]stream.Position // by target
	since int                        // batches since one that holds all positions
}

// completeEvery is how many rows of the log a takeover reads back at the most: so often one holds the positions in all
// streams.
const completeEvery = 128

const chainSQL = `
SELECT ` + batchColumns + ` FROM {schema}.relay_batch
WHERE shard = $1::smallint AND batch >= (
	SELECT batch FROM {schema}.relay_batch WHERE shard = $1::smallint AND complete ORDER BY batch DESC LIMIT 1)
ORDER BY batch`

// loadChain reads a shard's log, from the last row that holds all positions.
func (r *Relay) loadChain(ctx context.Context, shard int) (chain, error) {
	batches, err := scanBatches(r.db.Query(ctx, chainSQL, shard))
	if err != nil {
		return chain{}, fmt.Errorf("read the log: %w", err)
	}
	if len(batches) == 0 {
		return chain{}, fmt.Errorf("the log of shard %d is empty; it was deleted by hand", shard)
	}
	c := chain{last: batches[len(batches)-1], known: map[string]stream.Position{}, since: len(batches) - 1}
	for _, b := range batches {
		for name, text := range b.prev {
			p, err := stream.ParsePosition(text)
			if err != nil {
				return chain{}, fmt.Errorf("the log of shard %d, batch %d: %w", shard, b.number, err)
			}
			c.known[name] = p
		}
	}
	return c, nil
}

// frozen is a batch to be frozen: what its row will hold.
type frozen struct {
	shard    *shard
	number   int64
	tag      string
	from     snapshot
	prev     map[string]string
	complete bool
}

func (f *frozen) prevJSON() string {
	encoded, _ := json.Marshal(f.prev) // strings cannot fail
	return string(encoded)
}

// The batch is durable before anything of it is published: it is committed with synchronous_commit, which
// flushes what came before it, also the commits of transactions that did not wait for that themselves. A shard whose
// lease has another epoch, or whose batch another owner has frozen, is left out of the reply; and so are all where
// another server answers than the one whose log was read: it may lack the transactions that the snapshots speak of.
const freezeSQL = `
INSERT INTO {schema}.relay_batch AS b (shard, batch, tag, snap_from, snap_to, prev, complete)
SELECT f.shard, f.batch, f.tag, f.snap_from::pg_snapshot, pg_current_snapshot(), f.prev::jsonb, f.complete
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::boolean[], $8::timestamptz[])
	AS f(shard, epoch, batch, tag, snap_from, prev, complete, server)
JOIN {schema}.relay_lease l ON l.shard = f.shard AND l.epoch = f.epoch
WHERE set_config('synchronous_commit', CASE current_setting('synchronous_commit')
	WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true) IS NOT NULL AND f.server = ` + startedSQL + `
ON CONFLICT DO NOTHING
RETURNING b.shard, b.snap_to::text, b.frozen_at`

// freeze writes the batches into the log and returns those that were frozen, by shard.
func (r *Relay) freeze(ctx context.Context, batches []frozen) (map[int]batch, error) {
	var shards []int16
	var epochs, numbers []int64
	var tags, froms, prevs []string
	var complete []bool
	var servers []time.Time
	byShard := map[int]batch{}
	for _, f := range batches {
		shards = append(shards, int16(f.shard.number)) //nolint:gosec // at most maxShards
		epochs = append(epochs, f.shard.lease.epoch)
		numbers = append(numbers, f.number)
		tags = append(tags, f.tag)
		froms = append(froms, f.from.text)
		prevs = append(prevs, f.prevJSON())
		complete = append(complete, f.complete)
		servers = append(servers, f.shard.server)
		byShard[f.shard.number] = batch{number: f.number, tag: f.tag, from: f.from, prev: f.prev, complete: f.complete}
	}
	done := map[int]batch{}
	rows, err := r.db.Query(ctx, freezeSQL, shards, epochs, numbers, tags, froms, prevs, complete, servers)
	if err != nil {
		return nil, fmt.Errorf("freeze: %w", err)
	}
	var shard int
	var to string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&shard, &to, &at}, func() error {
		b := byShard[shard]
		b.frozenAt = at
		if b.to, err = parseSnapshot(to); err != nil {
			return err
		}
		done[shard] = b
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("freeze: %w", err)
	}
	return done, nil
}

// texts returns positions as the log holds them.
func texts(positions map[string]stream.Position) map[string]string {
	out := make(map[string]string, len(positions))
	for name, p := range maps.All(positions) {
		out[name] = p.String()
	}
	return out
}
