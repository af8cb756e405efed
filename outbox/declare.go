package outbox

import (
	"context"
	"fmt"

	"github.com/streamkeel/streamkeel/stream"
)

// Declare writes the topics into the database, so that their first Publish does not have to, and so that
// programs that publish with plain SQL can. The relay writes them into Redis. It is idempotent. A
// topic that was declared with another number of partitions or another stream is ErrPartitionMismatch of package
// stream; the topics before it are declared.
func Declare(ctx context.Context, db Tx, topics ...stream.Topic) error {
	return Schema{}.Declare(ctx, db, topics...)
}

func (s Schema) declareAll(ctx context.Context, db Tx, topics []stream.Topic) error {
	for _, t := range topics {
		if err := t.Validate(); err != nil {
			return err
		}
	}
	for _, t := range topics {
		if err := s.declare(ctx, db, t); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	return nil
}

const (
	declareSQL = `
INSERT INTO {schema}.topic (namespace, name, partitions, stream_key)
VALUES ($1::text, $2::text, $3::integer, nullif($4::text, '')) ON CONFLICT DO NOTHING`

	declaredSQL = `
SELECT partitions, coalesce(stream_key, '') FROM {schema}.topic WHERE namespace = $1::text AND name = $2::text`
)

func (s Schema) declare(ctx context.Context, db Tx, t stream.Topic) error {
	if _, err := db.Exec(ctx, s.name.SQL(declareSQL), t.NamespaceName(), t.Name, t.Count(), t.Stream); err != nil {
		return fmt.Errorf("declare topic %s: %w", t.Name, err)
	}
	var partitions int
	var key string
	if err := db.QueryRow(ctx, s.name.SQL(declaredSQL), t.NamespaceName(), t.Name).Scan(&partitions, &key); err != nil {
		return fmt.Errorf("declare topic %s: %w", t.Name, err)
	}
	if partitions != t.Count() || key != t.Stream {
		return fmt.Errorf("topic %s: %w: the database has %d partitions (stream %q), this program says %d (stream %q)",
			t.Name, stream.ErrPartitionMismatch, partitions, key, t.Count(), t.Stream)
	}
	return nil
}
