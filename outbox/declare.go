package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/pgschema"
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
		if _, err := s.declare(ctx, db, t); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	return nil
}

// shardsOf says in which shards a topic's partitions are: partition p in (first + p) % shards.
type shardsOf struct{ first, shards int }

// What a connection remembers of topics: a topic is never changed, and one that was taken away by hand, or by a restored
// Postgres behind a pooler, is declared again soon.
const (
	rememberFor    = time.Minute
	rememberTopics = 1000
	memoryKey      = "streamkeel.outbox.topics"
)

type (
	remembered struct {
		shardsOf
		until time.Time
	}
	topicAsSaid struct {
		schema     pgschema.Name
		topic      topicName
		partitions int
		stream     string
	}
)

// memories guards what all connections remember: whoever publishes in a transaction that is over holds a connection that is another's
// by now.
var memories sync.Mutex

// memoryOf returns what the transaction's connection remembers, or nil where there is none to be had.
func memoryOf(tx Tx) map[topicAsSaid]remembered {
	conn, _ := tx.(*pgx.Conn)
	if c, ok := tx.(interface{ Conn() *pgx.Conn }); ok {
		conn = c.Conn()
	}
	if conn == nil {
		return nil
	}
	data := conn.PgConn().CustomData()
	memory, ok := data[memoryKey].(map[topicAsSaid]remembered)
	if !ok || len(memory) >= rememberTopics {
		memory = map[topicAsSaid]remembered{}
		data[memoryKey] = memory
	}
	return memory
}

func recall(tx Tx, said topicAsSaid) (shardsOf, bool) {
	memories.Lock()
	defer memories.Unlock()
	m := memoryOf(tx)[said]
	return m.shardsOf, time.Now().Before(m.until)
}

func remember(tx Tx, said topicAsSaid, s shardsOf) {
	memories.Lock()
	defer memories.Unlock()
	if memory := memoryOf(tx); memory != nil {
		memory[said] = remembered{s, time.Now().Add(rememberFor)}
	}
}

// placeOf returns the shards of a topic, which it declares if nobody has yet.
func (s Schema) placeOf(ctx context.Context, tx Tx, t stream.Topic) (shardsOf, error) {
	said := topicAsSaid{s.name, topicName{t.NamespaceName(), t.Name}, t.Count(), t.Stream}
	if known, ok := recall(tx, said); ok {
		return known, nil
	}
	d, err := s.declared(ctx, tx, t)
	if errors.Is(err, sql.ErrNoRows) {
		d, err = s.declare(ctx, tx, t)
	}
	if err == nil && d.committed {
		remember(tx, said, d.shardsOf)
	}
	return d.shardsOf, err
}

// A topic of this very transaction may yet be rolled back. It has its time.
const (
	declareSQL = `
INSERT INTO {schema}.topic (namespace, name, partitions, stream_key)
VALUES ($1::text, $2::text, $3::integer, nullif($4::text, '')) ON CONFLICT DO NOTHING`

	declaredSQL = `
SELECT partitions, coalesce(stream_key, ''), first_shard, {schema}.outbox_shards(), declared_at <> transaction_timestamp()
FROM {schema}.topic WHERE namespace = $1::text AND name = $2::text`
)

func (s Schema) declare(ctx context.Context, db Tx, t stream.Topic) (declaration, error) {
	if _, err := db.Exec(ctx, s.name.SQL(declareSQL), t.NamespaceName(), t.Name, t.Count(), t.Stream); err != nil {
		return declaration{}, fmt.Errorf("declare topic %s: %w", t.Name, err)
	}
	return s.declared(ctx, db, t)
}

// declaration is how a topic stands in the database.
type declaration struct {
	shardsOf
	committed bool
}

func (s Schema) declared(ctx context.Context, db Tx, t stream.Topic) (d declaration, err error) {
	var partitions int
	var key string
	err = db.QueryRow(ctx, s.name.SQL(declaredSQL), t.NamespaceName(), t.Name).Scan(&partitions, &key, &d.first, &d.shards, &d.committed)
	if err != nil {
		return d, fmt.Errorf("read topic %s: %w", t.Name, err)
	}
	if partitions != t.Count() || key != t.Stream {
		return d, fmt.Errorf("topic %s: %w: the database has %d partitions (stream %q), this program says %d (stream %q)",
			t.Name, stream.ErrPartitionMismatch, partitions, key, t.Count(), t.Stream)
	}
	return d, nil
}
