// Package pgtx runs the transactions of handlers: those of the inbox and of sagas.
package pgtx

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/redisx"
)

// tries is how often a transaction is run that loses against others.
const tries = 5

// Run runs fn in a transaction, and commits it if fn returns nil. A transaction that loses
// against another one is run again, fn included. An outage of Postgres comes back as consumergroup.Unavailable; what fn
// met elsewhere, such as a network error of another service, or its own deadline, does not.
// name is the package that asks, for its errors.
func Run(ctx context.Context, pool *pgxpool.Pool, name string, fn func(tx pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := once(ctx, pool, name, fn)
		if !pgerr.IsConflict(err) || try == tries || !redisx.Pause(ctx, rand.N(time.Duration(try)*20*time.Millisecond)) {
			return err
		}
	}
}

func once(ctx context.Context, pool *pgxpool.Pool, name string, fn func(tx pgx.Tx) error) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return unavailable(true, fmt.Errorf("%s: begin: %w", name, err))
	}
	defer func() { // does nothing after a commit
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // the connection is closed where it fails
	}()
	if err := fn(tx); err != nil {
		// A connection that broke because a statement of fn ran into a deadline is no outage.
		late := ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded)
		return unavailable(tx.Conn().IsClosed() && !late, err)
	}
	if err := tx.Commit(ctx); err != nil {
		return unavailable(tx.Conn().IsClosed(), fmt.Errorf("%s: commit: %w", name, err))
	}
	return nil
}

// unavailable marks an error as an outage if the connection is lost, or the server says so.
func unavailable(lost bool, err error) error {
	if !errors.Is(err, context.Canceled) && (lost || pgerr.Code(err) != "" && pgerr.IsUnavailable(err)) {
		return consumergroup.Unavailable(err)
	}
	return err
}
