package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/stream"
)

// Config configures a [Runner]. Name, Topics, and one of Apply and Mux are required; every
// other zero is a safe default.
type Config struct {
	// Schema is where the checkpoints are. Default "streamkeel".
	Schema string
	// Name of the projection. It is also the name of the group by which the projection
	// holds retention and shows its lag. [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
	Name string
	// Topics to read, all partitions of each.
	Topics []stream.Topic
	// Apply changes the read model, through tx only, which the runner commits. The events
	// of a partition come in order, those of several partitions one partition after the
	// other. Calls never overlap.
	//
	// An error rolls everything back. The events are then applied one at a time; the one
	// that fails is tried MaxAttempts times, and then halts the projection. Apply runs again
	// for events that it has seen whenever a transaction did not commit: what it does outside
	// of tx may happen twice.
	Apply func(ctx context.Context, tx pgx.Tx, events []stream.Event) error
	// Mux applies each event by its type; it stands in place of Apply.
	Mux *Mux
	// OnMalformed decides about what cannot be read: an entry that is no event on the wire
	// (Entry.Err), or an event for which Apply returned stream.ErrUndecodable or
	// stream.ErrInvalid. If it returns nil, tx is committed and the entry passed, so that it
	// may keep a copy through tx; its error, and the default, halts the projection. [Skip]
	// passes every such entry. Each is counted and logged.
	OnMalformed func(ctx context.Context, tx pgx.Tx, entry stream.Entry, cause error) error
	// BatchSize is how many events one transaction applies at the most. Default 500. More
	// costs memory, and what one event's failure makes the others do again.
	BatchSize int
	// MaxAttempts is how often an event is tried before it halts the projection. Default 10.
	// Attempts during an outage of Postgres or Redis are not counted: the runner waits for
	// as long as that lasts.
	MaxAttempts int
	// MinBackoff and MaxBackoff bound the delay before another attempt, which doubles with
	// each. Defaults 100 milliseconds and 30 seconds.
	MinBackoff, MaxBackoff time.Duration
	// ApplyTimeout ends a transaction that takes longer, as a failed attempt. It also is how
	// long a runner that hangs, with a transaction open, keeps another one from taking over.
	// Default 1 minute.
	ApplyTimeout time.Duration
	// ShutdownTimeout is how long the batch in work may go on after Run's context ended.
	// Default 30 seconds. Then it is rolled back.
	ShutdownTimeout time.Duration
	// AllowPartial starts, and rebuilds, on streams whose oldest entries were removed
	// already: the read model lacks them. Default: ErrTrimmedUnread.
	AllowPartial bool
	// AllowEviction runs also on a Redis whose maxmemory-policy may evict streams.
	AllowEviction bool
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
	// Observer is told what the runner does. Default: nobody.
	Observer Observer
}

// Skip is an OnMalformed that passes every malformed entry.
func Skip(context.Context, pgx.Tx, stream.Entry, error) error { return nil }

func (c Config) withDefaults() Config {
	if c.BatchSize == 0 {
		c.BatchSize = 500
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 10
	}
	if c.MinBackoff == 0 {
		c.MinBackoff = 100 * time.Millisecond
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = max(30*time.Second, c.MinBackoff)
	}
	if c.ApplyTimeout == 0 {
		c.ApplyTimeout = time.Minute
	}
	if c.ShutdownTimeout == 0 {
		c.ShutdownTimeout = 30 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

const maxBatchSize = 100_000

// validate returns the schema, or every fault of a config with defaults, joined.
func (c Config) validate(pool *pgxpool.Pool, rdb redis.UniversalClient) (pgschema.Name, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if pool == nil {
		fault("the Postgres pool is nil")
	}
	if rdb == nil {
		fault("the Redis client is nil")
	}
	if !stream.ValidName(c.Name) {
		fault("Name %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", c.Name)
	}
	schema, err := pgschema.Parse(c.Schema)
	if err != nil {
		fault("Schema: %w", err)
	}
	if len(c.Topics) == 0 {
		fault("Topics is empty")
	}
	seen := map[string]bool{}
	for _, t := range c.Topics {
		if err := t.Validate(); err != nil {
			faults = append(faults, err)
			continue
		}
		for _, key := range t.StreamKeys() {
			if seen[key] {
				fault("Topics name the stream %s twice", key)
			}
			seen[key] = true
		}
	}
	if (c.Apply == nil) == (c.Mux == nil) {
		fault("one of Apply and Mux must be set, and not both")
	}
	if c.Mux != nil {
		faults = append(faults, c.Mux.faults...)
		if len(c.Mux.handlers) == 0 {
			fault("the Mux has no handlers")
		}
	}
	if c.BatchSize < 1 || c.BatchSize > maxBatchSize {
		fault("BatchSize %d must be 1 to %d", c.BatchSize, maxBatchSize)
	}
	if c.MaxAttempts < 1 {
		fault("MaxAttempts %d must be at least 1", c.MaxAttempts)
	}
	if c.MaxBackoff < c.MinBackoff {
		fault("MaxBackoff %s is below MinBackoff %s", c.MaxBackoff, c.MinBackoff)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"MinBackoff", c.MinBackoff}, {"ApplyTimeout", c.ApplyTimeout}, {"ShutdownTimeout", c.ShutdownTimeout}} {
		if d.d < 0 {
			fault("%s %s is negative", d.name, d.d)
		}
	}
	if len(faults) == 0 {
		return schema, nil
	}
	return schema, fmt.Errorf("projection: %w config: %w", ErrInvalid, errors.Join(faults...))
}
