package inbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/pgtx"
	"github.com/streamkeel/streamkeel/stream"
)

// Tx is what Once needs of a transaction. A pgx.Tx is one; outbox.SQLTx makes one of a *sql.Tx.
type Tx interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

const insertRow = `
INSERT INTO {schema}.inbox (consumer_group, source, event_id) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING`

// Once reports whether the transaction is the first of the group to handle the event. If it is not, an earlier
// one committed: do nothing, and ack. Call it before the effects. Where another transaction has the
// same event in hand, it waits for that one to end. After an error the transaction can only be rolled back. An event without
// a source has that of its delivery's topic, and ctx must be the delivery's.
//
// It is for handlers that have a transaction already; [Handle] and [Handler] make one.
func Once(ctx context.Context, tx Tx, group string, e stream.Event) (first bool, err error) {
	return Schema{}.Once(ctx, tx, group, e)
}

// Once is the package's Once, for this schema.
func (s Schema) Once(ctx context.Context, tx Tx, group string, e stream.Event) (first bool, err error) {
	source, err := identity(ctx, group, e)
	if err != nil {
		return false, err
	}
	tag, err := tx.Exec(ctx, s.name.SQL(insertRow), group, source, e.ID)
	if pgerr.IsNoTable(err) {
		return false, fmt.Errorf("inbox: the table is missing, apply the migrations: %w", err)
	}
	if err != nil {
		return false, fmt.Errorf("inbox: write row of event %s: %w", e.ID, err)
	}
	return tag.RowsAffected() == 1, nil
}

// identity returns the event's source, and a fault of what else tells it from other events.
func identity(ctx context.Context, group string, e stream.Event) (source string, err error) {
	switch {
	case !stream.ValidName(group):
		return "", fmt.Errorf("inbox: group %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", group)
	case e.ID == "":
		return "", fmt.Errorf("inbox: %w event of type %.100q: id is empty", stream.ErrInvalid, e.Type)
	case e.Source != "":
		return e.Source, nil
	}
	delivery, _ := consumergroup.MetadataFrom(ctx)
	if delivery.Topic == "" {
		return "", fmt.Errorf("inbox: %w event %s: source is empty, and the context is not that of a delivery", stream.ErrInvalid, e.ID)
	}
	return delivery.Topic, nil // written by another program; the wire format gives it this one
}

// Handle registers fn for the events of a definition, as consumergroup.Handle does, with a transaction in
// which the event is handled once: see [Handler].
func Handle[T any](mux *consumergroup.Mux, pool *pgxpool.Pool, def stream.Definition[T],
	fn func(ctx context.Context, tx pgx.Tx, e stream.Event, v T) error,
) {
	HandleIn(Schema{}, mux, pool, def, fn)
}

// HandleIn is [Handle] for the inbox in a schema of its own.
func HandleIn[T any](s Schema, mux *consumergroup.Mux, pool *pgxpool.Pool, def stream.Definition[T],
	fn func(ctx context.Context, tx pgx.Tx, e stream.Event, v T) error,
) {
	if pool == nil || fn == nil {
		consumergroup.Handle[T](mux, def, nil)
		return
	}
	consumergroup.Handle(mux, def, func(ctx context.Context, e stream.Event, v T) error {
		return s.handle(ctx, pool, e, func(ctx context.Context, tx pgx.Tx, e stream.Event) error { return fn(ctx, tx, e, v) })
	})
}

// Handler returns a handler that opens a transaction, writes the event's row for the delivery's group, calls
// fn with the transaction, and commits. An event that the group has handled before is acked, and fn is not called. If fn
// returns an error or panics, all is rolled back, and the next attempt finds nothing of this one.
//
// fn must do with tx what is to happen once, outbox.Publish included, and neither commit nor roll back. Where the
// transaction loses against another one (a deadlock, a serialization failure), it is run again, fn included, and the fifth
// loss is a failed attempt. While Postgres is away no attempt is counted, and the consumer pauses.
//
// Without a pool or fn it returns nil, which consumergroup.New refuses.
func Handler(pool *pgxpool.Pool, fn func(ctx context.Context, tx pgx.Tx, e stream.Event) error) consumergroup.Handler {
	return Schema{}.Handler(pool, fn)
}

// Handler is the package's Handler, for this schema.
func (s Schema) Handler(pool *pgxpool.Pool, fn func(ctx context.Context, tx pgx.Tx, e stream.Event) error) consumergroup.Handler {
	if pool == nil || fn == nil {
		return nil
	}
	return consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error { return s.handle(ctx, pool, e, fn) })
}

func (s Schema) handle(ctx context.Context, pool *pgxpool.Pool, e stream.Event, fn func(context.Context, pgx.Tx, stream.Event) error) error {
	delivery, ok := consumergroup.MetadataFrom(ctx)
	if !ok {
		return errors.New("inbox: the context is not that of a delivery; a test makes one with consumergroup.WithMetadata")
	}
	return pgtx.Run(ctx, pool, "inbox", func(tx pgx.Tx) error {
		first, err := s.Once(ctx, tx, delivery.Group, e)
		switch {
		case pgerr.IsNoTable(err):
			return consumergroup.Unavailable(err) // until somebody migrates
		case err != nil || !first:
			return err
		}
		return fn(ctx, tx, e)
	})
}
