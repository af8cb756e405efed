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

func (s Schema) database(pool *pgxpool.Pool) database { return newDatabase(pool, s.name) }

// operator returns as much of a relay as reads and mends what relays left.
func (s Schema) operator(pool *pgxpool.Pool, rdb redis.UniversalClient) *Relay {
	db := s.database(pool)
	return &Relay{db: db, rdb: rdb, topics: newTopics(db)}
}
