package outbox

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/stream"
)

// topics holds the topics as the database has them.
type topics struct {
	db database

	mu     sync.RWMutex
	byName map[topicName]placed
}

type topicName struct{ namespace, name string }

// placed is a topic and the shard of its partition 0.
type placed struct {
	stream.Topic
	firstShard int
}

// targetName names a partition as the log does.
func targetName(topic placed, partition int) string {
	return topic.Namespace + "/" + topic.Name + "/" + strconv.Itoa(partition)
}

func newTopics(db database) *topics { return &topics{db: db} }

const topicsSQL = `
SELECT namespace, name, partitions, coalesce(stream_key, ''), first_shard FROM {schema}.topic ORDER BY namespace, name`

func (t *topics) load(ctx context.Context) error {
	rows, err := t.db.Query(ctx, topicsSQL)
	if err != nil {
		return err
	}
	byName := map[topicName]placed{}
	var p placed
	_, err = pgx.ForEachRow(rows, []any{&p.Namespace, &p.Name, &p.Partitions, &p.Stream, &p.firstShard}, func() error {
		byName[topicName{p.Namespace, p.Name}] = p
		return nil
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byName = byName
	return nil
}

func (t *topics) get(name topicName) (placed, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p, ok := t.byName[name]
	return p, ok
}

func (t *topics) all() []stream.Topic {
	var all []stream.Topic
	for _, p := range t.placed() {
		all = append(all, p.Topic)
	}
	return all
}

// placed returns the topics by name.
func (t *topics) placed() []placed {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.SortedFunc(maps.Values(t.byName), func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// sampleKeys returns some of the streams, by which the servers of a Cluster are found.
func (t *topics) sampleKeys() (keys []string) {
	for _, topic := range t.all() {
		if keys = append(keys, topic.StreamKeys()...); len(keys) > 64 {
			return keys[:64]
		}
	}
	return keys
}

// declareEvery is how often the topics are written into Redis.
const declareEvery = time.Minute

// keepDeclared writes the topics into Redis, so that one that was flushed knows them again.
func (r *Relay) keepDeclared(ctx context.Context) {
	ticker := time.NewTicker(declareEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-r.healed:
		}
		r.declareAll(ctx)
	}
}

func (r *Relay) declareAll(ctx context.Context) {
	if err := r.topics.load(ctx); err != nil {
		r.failed(ctx, "reading the topics failed", -1, err)
		return
	}
	for _, topic := range r.topics.all() {
		err := stream.Declare(ctx, r.rdb, topic)
		if errors.Is(err, stream.ErrPartitionMismatch) {
			r.observe(ctx, Observation{Moment: Mismatch, Shard: -1, Err: err})
		}
		if err != nil {
			r.failed(ctx, "declaring a topic in Redis failed", -1, err)
		}
	}
}
