package outbox

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// SQLTx makes a Tx of a transaction of database/sql, with whatever driver for Postgres it has. Each event is a
// round trip of its own.
func SQLTx(tx *sql.Tx) Tx { return sqlTx{tx} }

type sqlTx struct{ tx *sql.Tx }

func (t sqlTx) Exec(ctx context.Context, text string, args ...any) (pgconn.CommandTag, error) {
	result, err := t.tx.ExecContext(ctx, text, args...)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	n, err := result.RowsAffected()
	return pgconn.NewCommandTag(fmt.Sprintf("INSERT 0 %d", n)), err
}

func (t sqlTx) QueryRow(ctx context.Context, text string, args ...any) pgx.Row {
	return t.tx.QueryRowContext(ctx, text, args...)
}
