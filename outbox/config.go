package outbox

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/internal/redisx"
)

// RelayConfig configures a [Relay]. The zero value is the safe default.
type RelayConfig struct {
	// Schema is where the tables are, [a-z_][a-z0-9_]{0,62}. Default "streamkeel".
	Schema string
	// LeaseTTL is within how long the shards of a relay that died are taken over. Default 10 seconds, at
	// least 500 milliseconds. Lower costs more renewals, three per LeaseTTL, and makes a relay that was held
	// up for that long lose its shards; nothing is published twice or out of order by it.
	LeaseTTL time.Duration
	// PollMin and PollMax bound how long the relay waits before it looks for rows again: PollMin while there
	// are some, rising to PollMax when there are none, and where more than 4,000 a second come, so that they share
	// batches. Defaults 2 and 50 milliseconds. Lower publishes sooner, and costs Postgres a query each time. A relay that is
	// woken (see Wake and ListenURL) looks at once, but lets more than 4,000 a second come together all the same.
	PollMin, PollMax time.Duration
	// ListenURL is the address of the database for a connection of its own on which the relay hears of rows from a [Notifier]
	// of another process, without waiting for its next poll. It must not go through a pooler in transaction mode. Default: none.
	ListenURL string
	// Replicas is how many replicas must have a batch's rows before it counts as published (WAIT). Default 0: what a failover
	// loses is published again in any case; waiting keeps consumers from reading what is lost then, and comes again
	// behind other rows. While too few replicas answer, publishing stands still.
	Replicas int
	// Fsync waits until the primary, and each of Replicas, has the rows in its append-only file (WAITAOF, Redis 7.2 or
	// later).
	Fsync bool
	// DurableTimeout is how long one try waits for Replicas and Fsync. Default 1 second; it must be less than the
	// client's ReadTimeout.
	DurableTimeout time.Duration
	// RewindMax is how much of what Redis lost is published again without asking: batches that were frozen
	// at most that long ago. Default 15 minutes, at most Retention. More than that stops the shard until an operator decides,
	// since it may mean that the relay talks to the wrong Redis.
	RewindMax time.Duration
	// Retention is how long rows are kept after they were published, to be published again: what a Redis
	// lost, or an operator asks for. Default 24 hours, at least 1 minute. The rows of a day (UTC) go together.
	Retention time.Duration
	// DaysAhead is how many days ahead row partitions are made. Default 7, at most 60. It is how long
	// publishing goes on when no relay runs; after that it fails.
	DaysAhead int
	// OnRefused says what becomes of a row that can never be published. Default Halt.
	OnRefused OnRefused
	// DisableUpkeep leaves row partitions and old rows to other relays or to somebody who calls [Upkeep]. One of them
	// must do it. The relay's role then needs no right to change tables.
	DisableUpkeep bool
	// ShutdownTimeout is how long the publishing in hand may go on after Run's context ended. Default 10 seconds.
	ShutdownTimeout time.Duration
	// AllowEviction runs also on a Redis whose maxmemory-policy may evict streams.
	AllowEviction bool
	// Name is the readable part of the relay's name in lease rows, [A-Za-z0-9._-]{1,64}; a random part
	// per relay follows. Default: the host's name.
	Name string
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
	// Observer is told what the relay does. Default: nobody.
	Observer Observer
}

// OnRefused says what becomes of a row that can never be published: it is too large for this Redis, or was
// written with a wrong shard or partition, or its stream's key holds something else.
type OnRefused int

// What becomes of it.
const (
	// Halt stops the row's shard until the cause is mended, and tries again every few seconds. The other
	// shards go on.
	Halt OnRefused = iota
	// ParkKey moves the row, and then every later row of its key, to outbox_failed, where they wait in order for
	// [RetryFailed]. Rows without a key are only set aside.
	ParkKey
	// SetAside moves the row to outbox_failed and goes on with its key's next one: the order of the key is lost
	// when the row comes back.
	SetAside
)

func (c RelayConfig) withDefaults() RelayConfig {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&c.LeaseTTL, 10*time.Second)
	set(&c.PollMin, 2*time.Millisecond)
	set(&c.PollMax, max(50*time.Millisecond, c.PollMin))
	set(&c.DurableTimeout, time.Second)
	set(&c.Retention, 24*time.Hour)
	set(&c.RewindMax, min(15*time.Minute, c.Retention))
	set(&c.ShutdownTimeout, 10*time.Second)
	if c.DaysAhead == 0 {
		c.DaysAhead = 7
	}
	if c.Name == "" {
		c.Name = hostName()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

var relayName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func hostName() string {
	name, err := os.Hostname()
	if err != nil || !relayName.MatchString(name) {
		return "relay"
	}
	return name
}

// durable reports whether publishing waits for replicas or disks.
func (c RelayConfig) durable() bool { return c.Replicas > 0 || c.Fsync }

func readTimeout(rdb redis.UniversalClient) time.Duration {
	if rdb == nil {
		return 0
	}
	return redisx.ReadTimeout(rdb)
}

// minConns is what a relay needs of its pool: one for the leases, one to look for rows, one to read them.
const minConns = 3

// validate returns the schema, or every fault of a config with defaults, joined.
func (c RelayConfig) validate(pool *pgxpool.Pool, rdb redis.UniversalClient) (pgschema.Name, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if pool == nil {
		fault("the Postgres pool is nil")
	} else if n := pool.Config().MaxConns; n < minConns {
		fault("the pool's MaxConns %d must be at least %d: one for leases, one to look for rows, one to read them", n, minConns)
	}
	if rdb == nil {
		fault("the Redis client is nil")
	}
	schema, err := pgschema.Parse(c.Schema)
	if err != nil {
		fault("Schema: %w", err)
	}
	if c.LeaseTTL < 500*time.Millisecond {
		fault("LeaseTTL %s must be at least 500ms", c.LeaseTTL)
	}
	if c.PollMin < time.Millisecond {
		fault("PollMin %s must be at least 1ms", c.PollMin)
	}
	if c.PollMax < c.PollMin {
		fault("PollMax %s must be at least PollMin %s", c.PollMax, c.PollMin)
	}
	if c.ListenURL != "" {
		if _, err := pgx.ParseConfig(c.ListenURL); err != nil {
			fault("ListenURL cannot be parsed: it must be postgres://user@host:5432/database") // the error quotes it
		}
	}
	if c.Replicas < 0 {
		fault("Replicas %d is negative", c.Replicas)
	}
	if c.DurableTimeout < time.Millisecond {
		fault("DurableTimeout %s must be at least 1ms", c.DurableTimeout)
	} else if timeout := readTimeout(rdb); c.durable() && timeout > 0 && c.DurableTimeout >= timeout {
		fault("DurableTimeout %s must be less than the client's ReadTimeout %s", c.DurableTimeout, timeout)
	}
	if c.Retention < time.Minute {
		fault("Retention %s must be at least 1m", c.Retention)
	}
	if c.RewindMax < 0 || c.RewindMax > c.Retention {
		fault("RewindMax %s must be between 0 and Retention %s", c.RewindMax, c.Retention)
	}
	if c.DaysAhead < 1 || c.DaysAhead > 60 {
		fault("DaysAhead %d must be 1 to 60", c.DaysAhead)
	}
	if c.OnRefused < Halt || c.OnRefused > SetAside {
		fault("OnRefused %d is none of Halt, ParkKey and SetAside", c.OnRefused)
	}
	if c.ShutdownTimeout < 0 {
		fault("ShutdownTimeout %s is negative", c.ShutdownTimeout)
	}
	if !relayName.MatchString(c.Name) {
		fault("Name %.80q is not [A-Za-z0-9._-]{1,64}", c.Name)
	}
	if len(faults) == 0 {
		return schema, nil
	}
	return schema, fmt.Errorf("outbox: invalid relay config: %w", errors.Join(faults...))
}
