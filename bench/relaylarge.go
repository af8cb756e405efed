package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// What rows that are kept cost the relay: it drains one large batch, and then small ones, over days of rows that were published
// before.
const (
	keptDays   = 26
	keptRows   = 10_000_000
	largeBatch = 1_000_000
	smallBatch = 50
	smallTimes = 100 // small batches, one after another
)

const (
	// The row partition of a day, if there is none.
	pastDay = `
DO $$ DECLARE day date := (clock_timestamp() AT TIME ZONE 'UTC')::date - %d; name text := 'outbox_' || to_char(day, 'YYYYMMDD');
BEGIN
	IF to_regclass('streamkeel.' || name) IS NULL THEN
		EXECUTE format('CREATE TABLE streamkeel.%%I PARTITION OF streamkeel.outbox_row FOR VALUES FROM (%%L) TO (%%L)',
			name, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
	END IF;
END $$`

	// The events are like those of makeEvents.
	fillRows = `
INSERT INTO streamkeel.outbox_row (created_at, shard, partition, namespace, topic, key, event_id, type, source, time, content_type, correlation_id, causation_id, data)
SELECT clock_timestamp() - $1 * interval '1 day', t.first_shard, 0, t.namespace, t.name, 'customer-' || i % 1000,
	'0192d7a5-0000-7000-8000-' || lpad(i::text, 12, '0'), 'order.placed', 'bench', clock_timestamp(), 'application/msgpack',
	'0192d7a5-0000-7000-8000-000000000000', '0192d7a5-0000-7000-8000-000000000001', convert_to(repeat('abcdefgh', 32), 'UTF8')
FROM streamkeel.topic t, generate_series(1, $2::integer) i WHERE t.namespace = $3 AND t.name = $4`

	// The log says that all rows were published: a batch has them, and an empty one follows, which a takeover reads.
	allPublished = `
INSERT INTO streamkeel.relay_batch (shard, batch, tag, snap_from, snap_to, prev, complete)
SELECT shard, n, 'kept', CASE n WHEN 1 THEN snap_to ELSE pg_current_snapshot() END, pg_current_snapshot(), '{}', true
FROM streamkeel.relay_batch, generate_series(1, 2) n`
)

// batches passes on what a relay published.
type batches chan outbox.Observation

func (b batches) Observe(ctx context.Context, o outbox.Observation) {
	if o.Moment != outbox.Published || o.Rows == 0 {
		return
	}
	select {
	case b <- o:
	case <-ctx.Done(): // nobody waits any more
	}
}

// await waits until n rows were published, and returns how long the last batch took.
func (b batches) await(ctx context.Context, n int) (time.Duration, error) {
	timeout := time.After(5 * time.Minute)
	for {
		select {
		case o := <-b:
			if n -= int(o.Rows); n <= 0 {
				return o.Took, nil
			}
		case <-timeout:
			return 0, errors.New("not every row was published within 5 minutes")
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// fill writes rows of a day in one transaction.
func fill(ctx context.Context, pool *pgxpool.Pool, topic stream.Topic, daysAgo, rows int) error {
	_, err := pool.Exec(ctx, fillRows, daysAgo, rows, topic.NamespaceName(), topic.Name)
	return err
}

func keep(ctx context.Context, pool *pgxpool.Pool, topic stream.Topic, rows int) error {
	if err := outbox.Declare(ctx, pool, topic); err != nil {
		return err
	}
	for day := range keptDays {
		if _, err := pool.Exec(ctx, fmt.Sprintf(pastDay, day)); err != nil {
			return err
		}
		if err := fill(ctx, pool, topic, day, rows/keptDays); err != nil {
			return err
		}
	}
	// They were vacuumed and written to disk when they were new.
	for _, sql := range []string{allPublished, `VACUUM (ANALYZE) streamkeel.outbox_row`, `CHECKPOINT`} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// ourRelayOverKept drains the large batch; how long a small one takes is its remark.
func ourRelayOverKept(ctx context.Context, e *env) (float64, error) {
	return withDatabase(ctx, func(pool *pgxpool.Pool) (v float64, err error) {
		topic, n := e.topic(), e.n(largeBatch)
		if err := keep(ctx, pool, topic, e.n(keptRows)); err != nil {
			return 0, err
		}
		if err := fill(ctx, pool, topic, 0, n); err != nil {
			return 0, err
		}
		if _, err := pool.Exec(ctx, `ANALYZE streamkeel.outbox_row`); err != nil {
			return 0, err
		}
		seen := make(batches, 100)
		relay, err := relayOn(pool, e, seen)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		stop := running(ctx, relay.Run)
		defer func() { err = errors.Join(err, stop()) }()
		if _, err := seen.await(ctx, n); err != nil {
			return 0, err
		}
		v = rate(n, began)
		var took []float64
		for range smallTimes {
			if err := fill(ctx, pool, topic, 0, smallBatch); err != nil {
				return 0, err
			}
			t, err := seen.await(ctx, smallBatch)
			if err != nil {
				return 0, err
			}
			took = append(took, float64(t.Microseconds())/1000)
		}
		e.remark = fmt.Sprintf(" (then %d rows in %.1f ms)", smallBatch, median(took))
		return v, nil
	})
}
