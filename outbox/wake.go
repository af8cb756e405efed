package outbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Beginner begins transactions: a *pgxpool.Pool or a *pgx.Conn.
type Beginner interface {
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// InTx runs fn in a transaction, commits it if fn returns nil, and then wakes the relays of this process, so
// that what fn published is under way at once instead of with their next poll. After an error nothing
// was committed, unless it came from the commit itself and the connection was lost: then it is unknown.
func InTx(ctx context.Context, db Beginner, fn func(tx pgx.Tx) error) error {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{})
	if err != nil {
		return fmt.Errorf("outbox: begin: %w", err)
	}
	defer func() { // does nothing after a commit
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // the connection is closed where it fails
	}()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("outbox: commit: %w", err)
	}
	Wake()
	return nil
}

// Wake makes the relays of this process look for rows at once. Call it after the commit of a transaction that
// published and was not run by InTx. It never blocks, and costs next to nothing where no relay runs.
func Wake() { relays.wake() }

// relays are the running relays of this process.
var relays wakers

type wakers struct {
	mu    sync.Mutex
	chans map[chan struct{}]struct{}
}

func (w *wakers) add(c chan struct{}) (remove func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.chans == nil {
		w.chans = map[chan struct{}]struct{}{}
	}
	w.chans[c] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.chans, c)
	}
}

func (w *wakers) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.chans {
		select {
		case c <- struct{}{}:
		default: // it is awake already
		}
	}
}
