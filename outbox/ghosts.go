package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// ghostsAtOnce is how many entries of a stream are read at a time, from its end.
const ghostsAtOnce = 100

// Ghosts lists the entries of a shard's streams that the outbox knows nothing of, because Postgres lost them after they
// were published (ReasonAhead), stream by stream, oldest first. The shard must stand still, or entries that are
// published meanwhile are listed too.
func Ghosts(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient, shard int) ([]stream.Entry, error) {
	return Schema{}.Ghosts(ctx, pool, rdb, shard)
}

func ghosts(ctx context.Context, r *Relay, shard int) ([]stream.Entry, error) {
	if err := r.topics.load(ctx); err != nil {
		return nil, fmt.Errorf("outbox: ghosts: %w", err)
	}
	c, err := r.loadChain(ctx, shard)
	if err != nil {
		return nil, fmt.Errorf("outbox: ghosts: %w", err)
	}
	if err := r.db.QueryRow(ctx, `SELECT count(*) FROM {schema}.relay_lease`).Scan(&r.shards); err != nil {
		return nil, fmt.Errorf("outbox: ghosts: %w", err)
	}
	own, err := r.idsOf(ctx, shard, &c.last)
	if err != nil {
		return nil, fmt.Errorf("outbox: ghosts: %w", err)
	}
	var all []stream.Entry
	for _, topic := range r.topics.placed() {
		for p := range topic.Count() {
			if (topic.firstShard+p)%r.shards != shard {
				continue
			}
			known := c.known[targetName(topic, p)]
			ghosts, _, err := entriesBehind(ctx, r.rdb, topic.StreamKey(p), known, 0, own)
			if err != nil {
				return nil, fmt.Errorf("outbox: ghosts in %s: %w", topic.StreamKey(p), err)
			}
			all = append(all, ghosts...)
		}
	}
	return all, nil
}

// idsOf returns the ids of a batch's events, by row.
func (r *Relay) idsOf(ctx context.Context, shard int, b *batch) (map[int64]string, error) {
	ids := map[int64]string{}
	err := r.eachPage(ctx, shard, b, 0, func(p *page) error {
		for i := range p.rows {
			ids[p.rows[i].id] = strings.Clone(p.rows[i].event.ID)
		}
		return nil
	})
	return ids, err
}

// entriesBehind reads a stream from its end back to the last row that is known before a batch. It returns the entries that
// the outbox knows nothing of, oldest first, and which rows of the batch the stream holds; own are the batch's
// events. With a number they count only if they were published in the batch of that number.
func entriesBehind(ctx context.Context, rdb redis.UniversalClient, key string, known stream.Position, number int64, own map[int64]string) (ghosts []stream.Entry, present map[int64]bool, err error) {
	present = map[int64]bool{}
	for end := "+"; ; {
		reply, err := redisx.Raw(ctx, rdb, "xrevrange", key, end, "-", "count", ghostsAtOnce)
		if err != nil {
			return nil, nil, err
		}
		n, err := reply.Array()
		if err != nil {
			return nil, nil, err
		}
		for range n {
			en, ok, err := stream.DecodeEntry(&reply, key)
			if err != nil {
				return nil, nil, err
			}
			end = "(" + en.ID.String()
			sequence := en.Event.Sequence
			if !ok || sequence.IsZero() {
				continue // somebody else's
			}
			if sequence.Compare(known) <= 0 {
				slices.Reverse(ghosts)
				return ghosts, present, nil
			}
			if id, ok := own[sequence.Row]; ok && id == en.Event.ID && (number == 0 || sequence.Batch == number) {
				present[sequence.Row] = true
				continue
			}
			ghosts = append(ghosts, en)
		}
		if n < ghostsAtOnce {
			slices.Reverse(ghosts)
			return ghosts, present, nil
		}
	}
}
