package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/internal/redisx"
)

// notifyChannel is what relays with a ListenURL listen to. Postgres cuts it off after 63 bytes; a relay that is woken for
// another schema looks for rows once more.
func notifyChannel(schema pgschema.Name) string {
	return pgx.Identifier{schema.String() + "_outbox"}.Sanitize()
}

// notifyEvery is how often a Notifier notifies at the most. Postgres queues notifications of all databases in one place, under
// one lock.
const notifyEvery = 5 * time.Millisecond

// Notifier wakes the relays of other processes: after each InTx, or [Wake], of this process it sends a
// NOTIFY, at most every 5 milliseconds. Those with a ListenURL look for rows then, and not only with their next poll. It is
// never needed: a notification that is lost costs the time until that poll.
//
// It notifies outside of the business transactions. A NOTIFY within them makes all commits of the server wait for each
// other.
type Notifier struct {
	pool    *pgxpool.Pool
	channel string
	log     *quiet.Log
}

// NotifierConfig configures a [Notifier]. The zero value is the default.
type NotifierConfig struct {
	// Schema is that of the relays to wake. Default "streamkeel".
	Schema string
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
}

// NewNotifier returns a Notifier that takes a connection of pool for each notification.
func NewNotifier(pool *pgxpool.Pool, config NotifierConfig) (*Notifier, error) {
	schema, err := pgschema.Parse(config.Schema)
	if pool == nil {
		err = errors.Join(errors.New("the Postgres pool is nil"), err)
	}
	if err != nil {
		return nil, fmt.Errorf("outbox: invalid notifier config: %w", err)
	}
	return &Notifier{pool: pool, channel: notifyChannel(schema), log: quiet.New(config.Logger)}, nil
}

// Run notifies until ctx ends, and returns nil then. What fails is logged, and left to the relays' polls.
func (n *Notifier) Run(ctx context.Context) error {
	awake := make(chan struct{}, 1)
	defer relays.add(awake)()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-awake:
		}
		if _, err := n.pool.Exec(ctx, "NOTIFY "+n.channel); err != nil && ctx.Err() == nil {
			n.log.Error(ctx, "relays of other processes could not be woken", "", err)
		}
		redisx.Pause(ctx, notifyEvery)
	}
}

// listen wakes the relay whenever a Notifier of any process notifies, until ctx ends.
func (r *Relay) listen(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		err := r.listenOnce(ctx, func() { attempt = 0 })
		r.failed(ctx, "listening for notifications failed; rows wait for the next poll", -1, err)
		redisx.Pause(ctx, backoff(attempt))
	}
}

func (r *Relay) listenOnce(ctx context.Context, connected func()) error {
	conn, err := pgx.Connect(ctx, r.config.ListenURL)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // nothing is in hand
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+notifyChannel(r.db.schema)); err != nil {
		return err
	}
	connected()
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		select {
		case r.awake <- struct{}{}:
		default: // it is awake already
		}
	}
}
