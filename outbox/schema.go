package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/stream"
)

// Schema is an outbox in a schema of its own, beside others in the same database: its methods are the package's functions
// on its tables; Republish and Upkeep have Schema in their configs. Those functions themselves, and the zero value, work in the
// schema "streamkeel". Outboxes of one database know nothing of each other; where they share a Redis, their topics need
// namespaces of their own.
type Schema struct{ name pgschema.Name }

// In returns the outbox in a schema, which migrations.In(schema).Up makes. The name must be
// [a-z_][a-z0-9_]{0,62} and none of Postgres's own; an empty one is "streamkeel".
func In(schema string) (Schema, error) {
	name, err := pgschema.Parse(schema)
	if err != nil {
		return Schema{}, fmt.Errorf("outbox: %w", err)
	}
	return Schema{name}, nil
}

// Publish is the package's Publish.
func (s Schema) Publish(ctx context.Context, tx Tx, topic stream.Topic, events ...stream.Event) error {
	return s.insertAll(ctx, tx, atOnce, topic, events)
}

// PublishAt is the package's PublishAt.
func (s Schema) PublishAt(ctx context.Context, tx Tx, topic stream.Topic, at time.Time, events ...stream.Event) error {
	return s.insertAll(ctx, tx, due{at: at}, topic, events)
}

// PublishAfter is the package's PublishAfter.
func (s Schema) PublishAfter(ctx context.Context, tx Tx, topic stream.Topic, delay time.Duration, events ...stream.Event) error {
	return s.insertAll(ctx, tx, due{after: max(delay, time.Microsecond)}, topic, events)
}

// Declare is the package's Declare.
func (s Schema) Declare(ctx context.Context, db Tx, topics ...stream.Topic) error {
	return s.declareAll(ctx, db, topics)
}

// ReadStatus is the package's ReadStatus.
func (s Schema) ReadStatus(ctx context.Context, pool *pgxpool.Pool) (Status, error) {
	return readStatus(ctx, s.database(pool))
}

// RepublishLost is the package's RepublishLost.
func (s Schema) RepublishLost(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return decide(ctx, s.database(pool), shard, decisionRepublish, ReasonLoss)
}

// AcceptLoss is the package's AcceptLoss.
func (s Schema) AcceptLoss(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return decide(ctx, s.database(pool), shard, decisionAcceptLoss, ReasonLoss)
}

// Resync is the package's Resync.
func (s Schema) Resync(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return decide(ctx, s.database(pool), shard, decisionResync, ReasonAhead)
}

// Ghosts is the package's Ghosts.
func (s Schema) Ghosts(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient, shard int) ([]stream.Entry, error) {
	return ghosts(ctx, newOperator(s.database(pool), rdb), shard)
}

// Restamp is the package's Restamp.
func (s Schema) Restamp(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient, dryRun bool) (Restamped, error) {
	return restamp(ctx, newOperator(s.database(pool), rdb), dryRun)
}

// ListFailed is the package's ListFailed.
func (s Schema) ListFailed(ctx context.Context, pool *pgxpool.Pool, filter FailedFilter) ([]Failed, error) {
	return listFailed(ctx, s.database(pool), filter)
}

// RetryFailed is the package's RetryFailed.
func (s Schema) RetryFailed(ctx context.Context, pool *pgxpool.Pool, filter FailedFilter) (int64, error) {
	return retryFailed(ctx, s.database(pool), filter)
}

func (s Schema) database(pool *pgxpool.Pool) database { return newDatabase(pool, s.name) }

// newOperator returns as much of a relay as reads and mends what relays left.
func newOperator(db database, rdb redis.UniversalClient) *Relay {
	return &Relay{db: db, rdb: rdb, topics: newTopics(db)}
}
