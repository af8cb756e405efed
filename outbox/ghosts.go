package outbox

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// Ghosts yields the entries of a shard's streams that the outbox knows nothing of, because Postgres lost them after they
// were published (ReasonAhead), stream by stream, oldest first. The shard must stand still, or entries that are
// published meanwhile are among them. It reads both servers while it is ranged over, holds a few entries at a time and the ids
// of the shard's last batch, and ends with the first error.
func Ghosts(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient, shard int) iter.Seq2[stream.Entry, error] {
	return Schema{}.Ghosts(ctx, pool, rdb, shard)
}

// Ghosts is the package's Ghosts, for this schema.
func (s Schema) Ghosts(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient, shard int) iter.Seq2[stream.Entry, error] {
	return func(yield func(stream.Entry, error) bool) {
		err := s.operator(pool, rdb).ghosts(ctx, shard, func(en stream.Entry) bool { return yield(en, nil) })
		if err != nil {
			yield(stream.Entry{}, fmt.Errorf("outbox: ghosts: %w", err))
		}
	}
}

// ghosts visits the ghosts until visit returns false.
func (r *Relay) ghosts(ctx context.Context, shard int, visit func(stream.Entry) bool) error {
	if err := r.topics.load(ctx); err != nil {
		return err
	}
	c, err := r.loadChain(ctx, shard)
	if err != nil {
		return err
	}
	shards, err := readShards(ctx, r.db)
	if err != nil {
		return err
	}
	own := map[rowEvent]bool{}
	err = r.eachPage(ctx, shard, &c.last, 0, func(p *page) error {
		defer p.free()
		for i := range p.rows {
			own[rowEvent{p.rows[i].id, strings.Clone(p.rows[i].event.ID)}] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, topic := range r.topics.placed() {
		for p := range topic.Count() {
			if (topic.firstShard+p)%len(shards) != shard {
				continue
			}
			for en, err := range entriesBehind(ctx, r.rdb, topic.StreamKey(p), c.known[targetName(topic, p)]) {
				if err != nil {
					return err
				}
				if !own[rowEvent{en.Event.Sequence.Row, en.Event.ID}] && !visit(en) {
					return nil
				}
			}
		}
	}
	return nil
}

// rowEvent tells a row from others that had its number: a Postgres that lost rows gives out their numbers again.
type rowEvent struct {
	row int64
	id  string // of the event
}

// entriesBehind yields the rows that a stream holds behind a position, oldest first. Streams have no index of positions: it
// looks from the end where they begin.
func entriesBehind(ctx context.Context, rdb redis.UniversalClient, key string, known stream.Position) iter.Seq2[stream.Entry, error] {
	return func(yield func(stream.Entry, error) bool) {
		first := ""
		for en, err := range rowEntries(ctx, rdb, key, "xrevrange", "+", "-") {
			if err != nil {
				yield(en, err)
				return
			}
			if en.Event.Sequence.Compare(known) <= 0 {
				break
			}
			first = en.ID.String()
		}
		if first != "" {
			rowEntries(ctx, rdb, key, "xrange", first, "+")(yield)
		}
	}
}

// entriesAtOnce is how many entries are read, and held, at a time. They may have 1 MiB each.
const entriesAtOnce = 20

// rowEntries yields the rows that a stream holds, in the order of the command: what others wrote is left out, and copies, which
// have the positions of earlier entries.
func rowEntries(ctx context.Context, rdb redis.UniversalClient, key, command, from, to string) iter.Seq2[stream.Entry, error] {
	return func(yield func(stream.Entry, error) bool) {
		fail := func(err error) { yield(stream.Entry{}, fmt.Errorf("read stream %s: %w", key, err)) }
		for {
			reply, err := redisx.Raw(ctx, rdb, command, key, from, to, "count", entriesAtOnce)
			if err != nil {
				fail(err)
				return
			}
			n, err := reply.Array()
			if err != nil {
				fail(err)
				return
			}
			for range n {
				en, _, err := stream.DecodeEntry(&reply, key)
				if err != nil {
					fail(err)
					return
				}
				from = "(" + en.ID.String()
				if _, isCopy := en.Book["republished"]; !isCopy && !en.Event.Sequence.IsZero() && !yield(en, nil) {
					return
				}
			}
			if n < entriesAtOnce {
				return
			}
		}
	}
}
