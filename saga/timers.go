package saga

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// TimersConfig configures [Timers]. The zero value is the default.
type TimersConfig struct {
	// Schema is where the tables are, the outbox among them. Default "streamkeel".
	Schema string
	// Every is how often due timers are looked for, and so how late one may fire. Default 1
	// second. Lower costs Postgres a query each.
	Every time.Duration
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
	// Observer is told of each timer that fired. Default: nobody.
	Observer Observer
}

// Timers fires the due timers of all flows in a database. Any number may run; each timer
// fires once.
type Timers struct {
	pool   *pgxpool.Pool
	config TimersConfig
	schema pgschema.Name
	outbox outbox.Schema
	log    *quiet.Log
}

// sql puts the schema's name into a statement.
func (t *Timers) sql(text string) string { return t.schema.SQL(text) }

// NewTimers returns a component that fires timers. The caller keeps pool.
func NewTimers(pool *pgxpool.Pool, config TimersConfig) (*Timers, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if pool == nil {
		fault("the Postgres pool is nil")
	}
	if config.Every < 0 {
		fault("Every %s is negative", config.Every)
	}
	schema, err := pgschema.Parse(config.Schema)
	if err != nil {
		fault("Schema: %w", err)
	}
	if len(faults) > 0 {
		return nil, invalid("timers: %w", errors.Join(faults...))
	}
	if config.Every == 0 {
		config.Every = time.Second
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	return &Timers{pool: pool, config: config, schema: schema, outbox: outboxIn(schema), log: quiet.New(config.Logger)}, nil
}

// Run fires timers until ctx ends, and returns nil then. While Postgres is away it waits.
// Missing tables or permissions are an error at once.
func (t *Timers) Run(ctx context.Context) error {
	for {
		fired, err := t.RunOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !pgerr.IsUnavailable(err) && !pgerr.IsConflict(err):
			return err
		case err != nil:
			t.log.Error(ctx, "timers wait for Postgres", "", err)
		case fired == timersAtOnce:
			continue
		}
		if !redisx.Pause(ctx, t.config.Every) {
			return nil
		}
	}
}

const timersAtOnce = 100

const takeTimers = `
SELECT flow, saga_id, name, topic, event, due_at
FROM {schema}.saga_timer
WHERE due_at <= now()
ORDER BY due_at
LIMIT $1
FOR UPDATE SKIP LOCKED`

type timer struct {
	flow, saga, name string
	topic, event     []byte
	due              time.Time
}

// RunOnce fires the timers that are due, up to 100, and returns how many it took. They and
// their events change hands in one transaction; those that another Timers has in hand are
// left to it.
func (t *Timers) RunOnce(ctx context.Context) (int, error) {
	var observations []Observation
	taken := 0
	err := pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error {
		due, err := collect(ctx, tx, func(row pgx.CollectableRow) (d timer, err error) {
			err = row.Scan(&d.flow, &d.saga, &d.name, &d.topic, &d.event, &d.due)
			return d, err
		}, t.sql(takeTimers), timersAtOnce)
		if err != nil {
			return err
		}
		taken = len(due)
		for _, d := range due {
			o, err := t.fire(ctx, tx, d)
			if err != nil {
				return err
			}
			observations = append(observations, o...)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("saga: fire timers: %w", err)
	}
	if t.config.Observer != nil {
		for _, o := range observations {
			t.config.Observer.Observe(ctx, o)
		}
	}
	return taken, nil
}

// postponeTimer keeps a timer that cannot be fired, out of the way of the others.
const postponeTimer = `
UPDATE {schema}.saga_timer SET due_at = now() + interval '1 minute', attempts = attempts + 1, error = $4
WHERE flow = $1 AND saga_id = $2 AND name = $3`

// fire publishes the event and deletes the timer, within a savepoint.
func (t *Timers) fire(ctx context.Context, tx pgx.Tx, d timer) ([]Observation, error) {
	topic, e, failed := unpack(d.topic, d.event)
	if failed == nil {
		e.Time = d.due // that is when it happened
		failed = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return t.fireIn(ctx, tx, d, topic, e) })
	}
	if failed == nil {
		return []Observation{{Moment: TimerFired, Flow: d.flow, Saga: d.saga, Event: e}}, nil
	}
	if tx.Conn().IsClosed() || pgerr.IsUnavailable(failed) || pgerr.IsConflict(failed) {
		return nil, failed
	}
	t.log.Error(ctx, "timer cannot fire", d.flow, failed, "saga", d.saga, "timer", d.name)
	_, err := tx.Exec(ctx, t.sql(postponeTimer), d.flow, d.saga, d.name, text(failed))
	return nil, err
}

func (t *Timers) fireIn(ctx context.Context, tx pgx.Tx, d timer, topic stream.Topic, e stream.Event) error {
	if _, err := tx.Exec(ctx, t.sql(cancelTimer), d.flow, d.saga, d.name); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, t.sql(writeLog), d.flow, d.saga, string(TimerFired), "", e.ID, d.name); err != nil {
		return err
	}
	return t.outbox.Publish(ctx, tx, topic, e)
}
