package outbox

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/internal/pgschema"
)

// tables are those of one schema, as a pool or a transaction sees them. Statements name the schema {schema}.
type tables struct {
	schema pgschema.Name
	on     interface {
		Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
		Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
		QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	}
}

func (t tables) Exec(ctx context.Context, text string, args ...any) (pgconn.CommandTag, error) {
	return t.on.Exec(ctx, t.schema.SQL(text), args...)
}

func (t tables) Query(ctx context.Context, text string, args ...any) (pgx.Rows, error) {
	return t.on.Query(ctx, t.schema.SQL(text), args...)
}

func (t tables) QueryRow(ctx context.Context, text string, args ...any) pgx.Row {
	return t.on.QueryRow(ctx, t.schema.SQL(text), args...)
}

// database is where an outbox is: the tables outside of any transaction, and the pool that they are reached by.
type database struct {
	tables
	pool *pgxpool.Pool
}

func newDatabase(pool *pgxpool.Pool, schema pgschema.Name) database {
	return database{tables{schema, pool}, pool}
}

// inTx runs fn in a transaction, and commits it if fn returns nil.
func (d database) inTx(ctx context.Context, options pgx.TxOptions, fn func(tx tables) error) error {
	return pgx.BeginTxFunc(ctx, d.pool, options, func(tx pgx.Tx) error { return fn(tables{d.schema, tx}) })
}
