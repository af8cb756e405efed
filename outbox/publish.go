package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/stream"
)

// Tx is what publishing needs of a transaction. A pgx.Tx is one; [SQLTx] makes one of a *sql.Tx. A pool is
// one too, and then the events are a transaction of their own.
type Tx interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Publish writes the events into the outbox, in their order. They are published if and when the transaction
// commits, and leave no trace if it does not.
//
// Events of one key keep the order of their transactions if these lock something of the key before
// they publish: update the key's row first, or call [Lock]. A transaction that publishes first and locks afterwards
// may be overtaken by the one that it then waits for.
//
// ErrInvalid of package stream says that an event or the topic breaks a rule; all faults are reported, and
// nothing was written. ErrPartitionMismatch says the same of a topic that was declared differently. After any
// other error the transaction can only be rolled back.
//
// It takes one round trip for every 1,000 events or 4 MiB. More than 1,000 events are written by COPY instead, in a few
// round trips, where the transaction is pgx's. One more reads how the topic stands in the database, once a minute for each
// of pgx's connections, and each time where the transaction is none of pgx's. The first use of a topic declares it, which takes two more, and makes
// others that use it for the first time wait until this transaction ends: [Declare] does it beforehand.
func Publish(ctx context.Context, tx Tx, topic stream.Topic, events ...stream.Event) error {
	return Schema{}.Publish(ctx, tx, topic, events...)
}

// PublishAt is Publish for later: a relay moves the events into the outbox at that time, by the database's clock,
// or as soon after as it runs (once a second). Delayed events of one key come in the order of their times.
func PublishAt(ctx context.Context, tx Tx, topic stream.Topic, at time.Time, events ...stream.Event) error {
	return Schema{}.PublishAt(ctx, tx, topic, at, events...)
}

// PublishAfter is PublishAt with a time counted from now, by the database's clock.
func PublishAfter(ctx context.Context, tx Tx, topic stream.Topic, delay time.Duration, events ...stream.Event) error {
	return Schema{}.PublishAfter(ctx, tx, topic, delay, events...)
}

// due is when events are published: at a time, or after a while, or at once.
type due struct {
	at    time.Time
	after time.Duration
}

var atOnce = due{}

// The most that one statement inserts. More events are copied, all at once, where the transaction can.
const (
	insertEvents = 1000
	insertBytes  = 4 << 20
)

func (s Schema) insertAll(ctx context.Context, tx Tx, when due, topic stream.Topic, events []stream.Event) error {
	if err := topic.Validate(); err != nil {
		return err
	}
	stamped := make([]stream.Event, len(events))
	var faults []error
	for i, e := range events {
		e.Stamp(ctx, topic)
		if err := e.Validate(); err != nil {
			faults = append(faults, err)
		}
		stamped[i] = e
	}
	if err := errors.Join(faults...); err != nil || len(events) == 0 {
		return err
	}
	if err := s.insertStamped(ctx, tx, when, topic, stamped); err != nil {
		return fmt.Errorf("outbox: publish to %s: %w", topic.Name, err)
	}
	return nil
}

func (s Schema) insertStamped(ctx context.Context, tx Tx, when due, topic stream.Topic, events []stream.Event) error {
	if pool, ok := tx.(*pgxpool.Pool); ok { // a connection remembers the topic, a pool does not
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		tx = conn
	}
	at, err := s.placeOf(ctx, tx, topic)
	if err != nil {
		return err
	}
	if bulk, ok := tx.(bulkTx); ok && when == atOnce && len(events) > insertEvents {
		return s.insertCopy(ctx, bulk, at, topic, events)
	}
	for len(events) > 0 {
		n, size := 0, 0
		for n < len(events) && n < insertEvents && size < insertBytes {
			size += len(events[n].Data)
			n++
		}
		if err := s.insertOnce(ctx, tx, when, at, topic, events[:n]); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

func (s Schema) insertOnce(ctx context.Context, tx Tx, when due, at shardsOf, topic stream.Topic, events []stream.Event) error {
	_, isSQL := tx.(sqlTx)
	if len(events) > 1 && !isSQL {
		return s.insertMany(ctx, tx, when, at, topic, events)
	}
	for i := range events {
		if err := s.insertOne(ctx, tx, when, at, topic, &events[i]); err != nil {
			return err
		}
	}
	return nil
}

// The columns of an event, as all statements name them.
const eventColumns = `namespace, topic, partition, key, event_id, type, source, time, content_type, schema,
	correlation_id, causation_id, traceparent, expires, attributes, data`

const (
	intoOutbox  = `INSERT INTO {schema}.outbox_row (shard, ` + eventColumns + `) SELECT `
	intoDelayed = `INSERT INTO {schema}.outbox_delayed (due_at, shard, ` + eventColumns + `)
SELECT coalesce($19::timestamptz, clock_timestamp() + $20::bigint * interval '1 microsecond'), `

	oneEvent = `($3::integer + $4::integer) % $5::integer, $1::text, $2::text, $4::integer, $6::text,
	$7::text, $8::text, $9::text, $10::timestamptz, nullif($11::text, ''), nullif($12::text, ''), nullif($13::text, ''),
	nullif($14::text, ''), nullif($15::text, ''), $16::timestamptz, nullif($17::text, '')::jsonb, $18::bytea`

	manyEvents = `($3::integer + e.partition) % $5::integer, $1::text, $2::text, e.partition, e.key,
	e.id, e.type, e.source, e.time, nullif(e.content_type, ''), nullif(e.schema, ''), nullif(e.correlation, ''),
	nullif(e.causation, ''), nullif(e.traceparent, ''), e.expires, nullif(e.attributes, '')::jsonb, e.data
FROM unnest($4::integer[], $6::text[], $7::text[], $8::text[], $9::text[], $10::timestamptz[],
		$11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::timestamptz[], $17::text[], $18::bytea[])
	WITH ORDINALITY AS e(partition, key, id, type, source, time, content_type, schema, correlation, causation,
		traceparent, expires, attributes, data, place)
ORDER BY e.place`
)

const (
	insertOneSQL  = intoOutbox + oneEvent
	insertManySQL = intoOutbox + manyEvents
	delayOneSQL   = intoDelayed + oneEvent
	delayManySQL  = intoDelayed + manyEvents
)

func (s Schema) insertOne(ctx context.Context, tx Tx, when due, at shardsOf, topic stream.Topic, e *stream.Event) error {
	attributes, err := attributesOf(e)
	if err != nil {
		return err
	}
	args := append(make([]any, 0, 20), topic.NamespaceName(), topic.Name, at.first, topic.Partition(e), at.shards, e.Key, e.ID,
		e.Type, e.Source, nullTime(e.Time), e.ContentType, e.Schema, e.CorrelationID, e.CausationID, e.TraceParent,
		nullTime(e.Expires), attributes, notNil(e.Data))
	return when.exec(ctx, tx, 1, s.name.SQL(insertOneSQL), s.name.SQL(delayOneSQL), args)
}

func (s Schema) insertMany(ctx context.Context, tx Tx, when due, at shardsOf, topic stream.Topic, events []stream.Event) error {
	n := len(events)
	var (
		partitions      = make([]int32, n)
		texts           [10][]string
		times, expiries = make([]*time.Time, n), make([]*time.Time, n)
		data            = make([][]byte, n)
	)
	for c := range texts {
		texts[c] = make([]string, n)
	}
	for i := range events {
		e := &events[i]
		attributes, err := attributesOf(e)
		if err != nil {
			return err
		}
		partitions[i] = int32(topic.Partition(e)) //nolint:gosec // at most 4095
		for c, value := range [...]string{e.Key, e.ID, e.Type, e.Source, e.ContentType, e.Schema, e.CorrelationID, e.CausationID, e.TraceParent, attributes} {
			texts[c][i] = value
		}
		times[i], expiries[i] = nullTime(e.Time), nullTime(e.Expires)
		data[i] = notNil(e.Data)
	}
	args := append(make([]any, 0, 20), topic.NamespaceName(), topic.Name, at.first, partitions, at.shards, texts[0], texts[1],
		texts[2], texts[3], times, texts[4], texts[5], texts[6], texts[7], texts[8], expiries, texts[9], data)
	return when.exec(ctx, tx, n, s.name.SQL(insertManySQL), s.name.SQL(delayManySQL), args)
}

// exec runs the statement that inserts n rows at once or for later.
func (d due) exec(ctx context.Context, tx Tx, n int, insert, delay string, args []any) error {
	if d != atOnce {
		insert = delay
		var at *time.Time
		var micros *int64
		if d.at.IsZero() {
			after := d.after.Microseconds()
			micros = &after
		} else {
			at = &d.at
		}
		args = append(args, at, micros)
	}
	tag, err := tx.Exec(ctx, insert, args...)
	if err == nil && tag.RowsAffected() != int64(n) {
		err = fmt.Errorf("%d of %d rows were inserted", tag.RowsAffected(), n)
	}
	return err
}

func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func notNil(data []byte) []byte {
	if data == nil {
		return []byte{}
	}
	return data
}

// attributesOf returns the attributes as JSON, or "" where there are none.
func attributesOf(e *stream.Event) (string, error) {
	if len(e.Attributes) == 0 {
		return "", nil
	}
	encoded, err := json.Marshal(e.Attributes)
	if err != nil {
		return "", fmt.Errorf("attributes of event %s: %w", e.ID, err)
	}
	return string(encoded), nil
}
