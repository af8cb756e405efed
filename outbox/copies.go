package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// RepublishConfig chooses what [Republish] sends.
type RepublishConfig struct {
	// From and To bound when the rows were published: From included, To not. From is required; To is by default
	// now.
	From, To time.Time
	// Topic, Namespace and Key choose rows; empty chooses all.
	Topic, Namespace, Key string
	// Schema is where the tables are. Default "streamkeel".
	Schema string
	// DryRun only counts.
	DryRun bool
	// Progress is told after every page of rows how far it is. Default: nobody.
	Progress func(Republished)
}

// Republished is what Republish did, or would do.
type Republished struct {
	Batches, Rows, Bytes int64
	// Kept is when the oldest rows were published that are kept; zero if all are.
	Kept time.Time
}

// ErrNotKept says that rows are asked for that are not kept any more.
var ErrNotKept = errors.New("rows are not kept any more")

// Republish appends copies of published rows to their streams, for consumers that must have them again. A copy has the
// id and the sequence of the first one, and the time of this call as sk-republished (Unix ms). Projections have passed its
// sequence and leave it out, inboxes know its id: copies reach groups without an inbox, new groups, and those whose effects
// were undone together with their inbox rows.
//
// Copies of a key keep their order among themselves, and stand behind what is in the stream. If it fails or is ended on the way, what
// it appended stays; running it again appends it again. ErrNotKept says that From lies before what is kept; nothing was
// sent.
func Republish(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient, config RepublishConfig) (Republished, error) {
	schema, err := In(config.Schema)
	if err != nil {
		return Republished{}, err
	}
	if config.To.IsZero() {
		config.To = time.Now()
	}
	if config.From.IsZero() || !config.From.Before(config.To) {
		return Republished{}, fmt.Errorf("outbox: republish: From %s must be set, and lie before To %s",
			config.From.UTC().Format(time.RFC3339), config.To.UTC().Format(time.RFC3339))
	}
	c := copier{
		relay:  schema.operator(pool, rdb),
		config: config,
		stamp:  time.Now().UnixMilli(),
	}
	if err := c.run(ctx); err != nil {
		return c.sum, fmt.Errorf("outbox: republish: %w", err)
	}
	return c.sum, nil
}

// copier appends copies of rows.
type copier struct {
	relay  *Relay
	config RepublishConfig
	stamp  int64
	sum    Republished
}

const (
	// No row if nothing has gone yet. The log may reach further back than the row partitions, or less far.
	keptSinceSQL = `
SELECT greatest(max(oldest), (
	SELECT min(to_date(right(c.relname, 8), 'YYYYMMDD'))::timestamp AT TIME ZONE 'UTC'
	FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = '{schema}.outbox_row'::regclass))
FROM (SELECT min(frozen_at) AS oldest FROM {schema}.relay_batch GROUP BY shard HAVING min(batch) > 0) log
HAVING count(*) > 0`

	copiedSQL = `
SELECT ` + batchColumns + ` FROM {schema}.relay_batch
WHERE shard = $1::smallint AND batch > $2::bigint AND frozen_at >= $3::timestamptz AND frozen_at < $4::timestamptz
	AND batch <= (SELECT published FROM {schema}.relay_lease WHERE shard = $1::smallint)
ORDER BY batch LIMIT 500`
)

func (c *copier) run(ctx context.Context) error {
	if err := c.relay.topics.load(ctx); err != nil {
		return err
	}
	err := c.relay.db.QueryRow(ctx, keptSinceSQL).Scan(&c.sum.Kept)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if c.config.From.Before(c.sum.Kept) {
		return fmt.Errorf("%w: those from %s on are", ErrNotKept, c.sum.Kept.UTC().Format(time.RFC3339))
	}
	shards, err := readShards(ctx, c.relay.db)
	if err != nil {
		return err
	}
	for _, n := range shards {
		s := newShard(c.relay, n, 0)
		for after := int64(0); ; {
			batches, err := scanBatches(c.relay.db.Query(ctx, copiedSQL, n, after, c.config.From, c.config.To))
			if err != nil {
				return err
			}
			for i := range batches {
				if err := c.copy(ctx, s, &batches[i]); err != nil {
					return err
				}
				after = batches[i].number
			}
			if len(batches) == 0 {
				break
			}
		}
	}
	return nil
}

// copy appends the chosen rows of a batch, without those that were set aside.
func (c *copier) copy(ctx context.Context, s *shard, b *batch) error {
	if err := s.loadAsideRows(ctx, b.number); err != nil {
		return err
	}
	counted := false
	return c.relay.eachPage(ctx, s.number, b, 0, func(p *page) error {
		defer p.free()
		pipe := c.relay.rdb.Pipeline()
		for i := range p.rows {
			w := &p.rows[i]
			topic, ok := c.relay.topics.get(w.topic)
			if !ok || w.err != nil || w.partition >= topic.Count() || s.aside.rows[w.id] || !c.wants(w) {
				continue
			}
			if !counted {
				c.sum.Batches++
				counted = true
			}
			c.sum.Rows++
			c.sum.Bytes += int64(len(w.event.Data))
			if c.config.DryRun {
				continue
			}
			w.event.Sequence.Batch, w.event.Sequence.Row = b.number, w.id
			args := w.event.AppendFields([]any{"xadd", topic.StreamKey(w.partition), "*", "sk-republished", c.stamp})
			_ = pipe.Process(ctx, redisx.NewID(ctx, args...)) // only queues
		}
		if pipe.Len() > 0 {
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
		}
		if c.config.Progress != nil {
			c.config.Progress(c.sum)
		}
		return nil
	})
}

func (c *copier) wants(w *row) bool {
	return (c.config.Topic == "" || c.config.Topic == w.topic.name) &&
		(c.config.Namespace == "" || c.config.Namespace == w.topic.namespace) &&
		(c.config.Key == "" || c.config.Key == w.event.Key)
}
