package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/internal/redisx"
)

// CleanerConfig configures a [Cleaner]. The zero value is the default.
type CleanerConfig struct {
	// Schema is where the inbox is. Default "streamkeel".
	Schema string
	// Retention is how long rows are kept. Default 30 days. An event that comes again after its row
	// was deleted has its effects again, so Retention must not be less than OutboxRetention, RetryWithin and RedriveWithin
	// together. More costs disk: about 290 bytes for each event and group.
	Retention time.Duration
	// OutboxRetention is the relay's Retention: how old an event may be that is published again after
	// Redis lost it. Default 24 hours.
	OutboxRetention time.Duration
	// RetryWithin is how long a group may take until it has handled an event or made a letter of it: how far it may
	// fall behind, and all retries. Default 3 days.
	RetryWithin time.Duration
	// RedriveWithin is how old a letter may be that is given back to its group. Default 14 days. Nothing keeps a person
	// from redriving an older one: then its effects, if it had any, come again.
	RedriveWithin time.Duration
	// Every is how often old rows are looked for. Default 1 minute.
	Every time.Duration
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
}

func (c CleanerConfig) withDefaults() CleanerConfig {
	const day = 24 * time.Hour
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Retention, 30 * day},
		{&c.OutboxRetention, day},
		{&c.RetryWithin, 3 * day},
		{&c.RedriveWithin, 14 * day},
		{&c.Every, time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// validate returns the schema, or every fault of a config with defaults, joined.
func (c CleanerConfig) validate(pool *pgxpool.Pool) (pgschema.Name, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if pool == nil {
		fault("the Postgres pool is nil")
	}
	schema, err := pgschema.Parse(c.Schema)
	if err != nil {
		fault("Schema: %w", err)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"Retention", c.Retention},
		{"OutboxRetention", c.OutboxRetention},
		{"RetryWithin", c.RetryWithin},
		{"RedriveWithin", c.RedriveWithin},
		{"Every", c.Every},
	} {
		if d.value < 0 {
			fault("%s %s is negative", d.name, d.value)
		}
	}
	if least := c.OutboxRetention + c.RetryWithin + c.RedriveWithin; c.Retention < least {
		fault("Retention %s must be at least %s: OutboxRetention %s + RetryWithin %s + RedriveWithin %s, or an event that comes again has its effects again",
			c.Retention, least, c.OutboxRetention, c.RetryWithin, c.RedriveWithin)
	}
	if len(faults) == 0 {
		return schema, nil
	}
	return schema, fmt.Errorf("inbox: invalid cleaner config: %w", errors.Join(faults...))
}

// Cleaner deletes old rows of the inbox. Any number may run on one database; they share the work.
type Cleaner struct {
	pool   *pgxpool.Pool
	config CleanerConfig
	schema pgschema.Name
	log    *quiet.Log
}

// NewCleaner returns a component that deletes old rows. The caller keeps pool, of which it takes one connection
// while it deletes.
func NewCleaner(pool *pgxpool.Pool, config CleanerConfig) (*Cleaner, error) {
	config = config.withDefaults()
	schema, err := config.validate(pool)
	if err != nil {
		return nil, err
	}
	return &Cleaner{pool: pool, config: config, schema: schema, log: quiet.New(config.Logger)}, nil
}

// Run deletes old rows until ctx ends, and returns nil then. While Postgres is away it waits. Missing
// tables or permissions are an error at once.
func (c *Cleaner) Run(ctx context.Context) error {
	for {
		_, err := c.Clean(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !pgerr.IsUnavailable(err) && !pgerr.IsConflict(err):
			return err
		case err != nil:
			c.log.Error(ctx, "the inbox waits to be cleaned", "", err)
		}
		if !redisx.Pause(ctx, c.config.Every) {
			return nil
		}
	}
}

// The most that one transaction of the cleaner deletes, and how long it may take. A transaction of a few
// milliseconds holds nobody up, and gives vacuum no reason to wait.
const (
	cleanRows    = 1000
	cleanTimeout = 10 * time.Second
)

// What was deleted stands in the index until a vacuum; beginning where the last batch ended passes it over.
const deleteRows = `
WITH gone AS (
	DELETE FROM {schema}.inbox WHERE ctid = ANY (ARRAY (
		SELECT ctid FROM {schema}.inbox
		WHERE handled_at < now() - $1 * interval '1 microsecond' AND handled_at >= $2
		ORDER BY handled_at
		LIMIT $3
		FOR UPDATE SKIP LOCKED
	))
	RETURNING handled_at
)
SELECT count(*), coalesce(max(handled_at), $2) FROM gone`

// Clean deletes what is older than Retention now, in transactions of 1,000 rows, and returns how many rows that were.
func (c *Cleaner) Clean(ctx context.Context) (int64, error) {
	var total int64
	var from time.Time
	for {
		n, last, err := c.deleteBatch(ctx, from)
		total, from = total+n, last
		if err != nil {
			return total, fmt.Errorf("inbox: delete old rows: %w", err)
		}
		if n < cleanRows {
			return total, nil
		}
	}
}

func (c *Cleaner) deleteBatch(ctx context.Context, from time.Time) (n int64, last time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	err = c.pool.QueryRow(ctx, c.schema.SQL(deleteRows), c.config.Retention.Microseconds(), from, cleanRows).Scan(&n, &last)
	return n, last, err
}
