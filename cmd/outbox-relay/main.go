// Command outbox-relay moves the events of a Postgres outbox to Redis Streams. Any number may
// run against one database: they share its shards, and take over from one that died.
package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/telemetry"
)

const (
	program = "outbox-relay"
	summary = `outbox-relay moves the events of a Postgres outbox to Redis Streams, in order and each
once. Any number may run against one database: they share its shards, and take over from one
that died.`
)

func main() { command.Main(run) }

// config is every setting.
type config struct {
	relay     outbox.RelayConfig
	onRefused string
	postgres  command.PostgresFlags
	redis     command.RedisFlags
	http      command.HTTPFlags
	log       command.LogFlags
	start     command.StartFlags
}

func (c *config) flags() *command.Flags {
	flags := command.NewFlags(program, summary)
	c.postgres.Register(flags.FlagSet)
	c.redis.Register(flags.FlagSet)
	c.redis.RegisterEviction(flags.FlagSet)
	c.relayFlags(flags.FlagSet)
	c.http.Register(flags.FlagSet, "127.0.0.1:8642")
	c.log.Register(flags.FlagSet)
	c.start.Register(flags.FlagSet, 10*time.Second)
	return flags
}

// refusals are the values of --on-refused.
var refusals = map[string]outbox.OnRefused{"halt": outbox.Halt, "park-key": outbox.ParkKey, "set-aside": outbox.SetAside}

func (c *config) relayFlags(flags *pflag.FlagSet) {
	r := &c.relay
	flags.DurationVar(&r.LeaseTTL, "lease-ttl", 10*time.Second, "within how long the shards of a relay that died are taken over; at least 500ms")
	flags.DurationVar(&r.PollMin, "poll-min", 2*time.Millisecond, "how long to wait before looking for rows again, while there are some; at least 1ms")
	flags.DurationVar(&r.PollMax, "poll-max", 50*time.Millisecond, "how long to wait at the most, while there are none")
	flags.StringVar(&r.ListenURL, "listen-url", "", "`url` of the database, not through a pooler in transaction mode: hear of rows from processes with a Notifier, without waiting for the next look")
	flags.IntVar(&r.Replicas, "replicas", 0, "how many replicas must have rows before they count as published")
	flags.BoolVar(&r.Fsync, "fsync", false, "wait until rows are in the append-only files too; Redis 7.2 or later")
	flags.DurationVar(&r.DurableTimeout, "durable-timeout", time.Second, "how long one try waits for --replicas and --fsync; less than the read_timeout of --redis-url")
	flags.DurationVar(&r.RewindMax, "rewind-max", 15*time.Minute, "how much of what Redis lost is published again without asking an operator")
	flags.DurationVar(&r.Retention, "retention", 24*time.Hour, "how long rows are kept after they were published; at least 1m, and not below --rewind-max")
	flags.IntVar(&r.DaysAhead, "days-ahead", 7, "`days` ahead for which row partitions are made, 1 to 60: for so long publishing goes on without a relay")
	flags.StringVar(&c.onRefused, "on-refused", "halt", "`what` becomes of a row that can never be published: halt (its shard), park-key (it and its key's later rows wait), or set-aside (only it waits)")
	flags.BoolVar(&r.DisableUpkeep, "disable-upkeep", false, "leave row partitions and old rows to other relays; the role then needs no right to change tables")
	flags.DurationVar(&r.ShutdownTimeout, "shutdown-timeout", 10*time.Second, "how long publishing in hand may go on after the daemon was told to end")
	flags.StringVar(&r.Name, "name", "", "readable part of the relay's `name` in lease rows; the host's name where it is empty")
}

// faults returns everything that is wrong with the settings that the relay does not check.
func (c *config) faults() (faults []error) {
	onRefused, ok := refusals[c.onRefused]
	if !ok {
		faults = append(faults, fmt.Errorf("--on-refused %q is none of halt, park-key and set-aside", c.onRefused))
	}
	c.relay.OnRefused = onRefused
	for _, d := range []struct {
		flag string
		d    time.Duration
	}{
		{"lease-ttl", c.relay.LeaseTTL},
		{"poll-min", c.relay.PollMin},
		{"poll-max", c.relay.PollMax},
		{"rewind-max", c.relay.RewindMax},
		{"retention", c.relay.Retention},
		{"durable-timeout", c.relay.DurableTimeout},
		{"shutdown-timeout", c.relay.ShutdownTimeout},
	} {
		if d.d == 0 { // which the relay would take for its default
			faults = append(faults, fmt.Errorf("--%s 0s must be more than 0", d.flag))
		}
	}
	return slices.Concat(faults, c.http.Validate(), c.log.Validate(), c.start.Validate())
}

// relayFaults returns what the relay finds wrong with its settings. It wants a pool and a client
// to be asked; nothing is sent.
func (c *config) relayFaults(ctx context.Context, poolConfig *pgxpool.Config) []error {
	if poolConfig == nil { // it has a fault of its own, and these are told with it
		var err error
		if poolConfig, err = pgxpool.ParseConfig("postgres://127.0.0.1/none"); err != nil {
			return []error{err}
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return []error{err}
	}
	defer pool.Close()
	rdb := redis.NewClient(&redis.Options{})
	defer func() { _ = rdb.Close() }() // it was never used
	if _, err = outbox.NewRelay(pool, rdb, c.relay); err != nil {
		return []error{errors.New(flagNames.Replace(strings.TrimPrefix(err.Error(), "outbox: invalid relay config: ")))}
	}
	return nil
}

// flagNames puts flags in place of the fields that they set.
var flagNames = strings.NewReplacer(
	"ListenURL", "--listen-url", "DurableTimeout", "--durable-timeout", "Replicas", "--replicas", "Fsync", "--fsync", "LeaseTTL", "--lease-ttl", "PollMin", "--poll-min", "PollMax", "--poll-max", "RewindMax", "--rewind-max", "Retention", "--retention",
	"DaysAhead", "--days-ahead", "ShutdownTimeout", "--shutdown-timeout", "Name", "--name", "the pool's MaxConns", "--postgres-url: pool_max_conns",
)

// run is the program. It returns the exit code.
func run(ctx context.Context, p command.Process) int {
	secrets := command.NewSecrets(p)
	return command.Exit(p.Stderr, program, runWith(ctx, p, secrets), secrets)
}

func runWith(ctx context.Context, p command.Process, secrets *command.Secrets) error {
	var c config
	flags := c.flags()
	done, faults := flags.Read(p)
	if done {
		return errors.Join(faults...)
	}
	redisConfig, redisFaults := c.redis.Config(program, secrets)
	poolConfig, postgresFaults := c.postgres.Config(program, secrets)
	faults = slices.Concat(faults, c.faults(), c.relayFaults(ctx, poolConfig), redisFaults, postgresFaults)
	if len(faults) > 0 {
		return command.Unfit(errors.Join(faults...))
	}
	if c.relay.ListenURL != "" {
		if listen, err := pgx.ParseConfig(c.relay.ListenURL); err == nil { // as the relay has checked
			secrets.Add(listen.Password)
		}
	}
	log := c.log.New(p.Stderr, secrets)
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return command.UnlessEnded(ctx, command.PostgresFault(poolConfig, err))
	}
	defer pool.Close()
	rdb := redisConfig.Open()
	defer func() { _ = rdb.Close() }() // nothing is in hand any more

	watch := newWatch()
	c.relay.Schema = c.postgres.Schema
	metrics := telemetry.NewMetrics(telemetry.MetricsConfig{})
	c.relay.AllowEviction, c.relay.Logger, c.relay.Observer = c.redis.AllowEviction, log, observers{metrics.Relay(), watch}
	relay, err := outbox.NewRelay(pool, rdb, c.relay)
	if err != nil {
		return command.Unfit(err)
	}
	if err := command.CheckPostgres(ctx, pool, c.postgres.Tables, c.start.Timeout); err != nil {
		return command.UnlessEnded(ctx, err)
	}
	if err := command.CheckRedis(ctx, redisConfig, c.start.Timeout); err != nil {
		return command.UnlessEnded(ctx, err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	daemon := command.Daemon{
		Log: log, HTTP: c.http, Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}),
		Health: command.NewHealth(secrets, map[string]func(context.Context) error{
			"redis":    func(ctx context.Context) error { return rdb.Ping(ctx).Err() },
			"postgres": func(ctx context.Context) error { return pool.Ping(ctx) },
			"shards":   func(context.Context) error { return watch.err() },
		}),
		// A relay fails only by the checks of its start, each of which somebody has to mend, unless a server went
		// away since those above.
		Work: func(ctx context.Context) error {
			err := command.Patiently(ctx, c.start.Timeout, isOutage, func(context.Context) error { return relay.Run(ctx) })
			return command.UnlessEnded(ctx, command.Unfit(err))
		},
	}
	return daemon.Run(ctx)
}

func isOutage(err error) bool { return redisx.IsUnavailable(err) || pgerr.IsUnavailable(err) }

// observers are several in one.
type observers []outbox.Observer

func (all observers) Observe(ctx context.Context, o outbox.Observation) {
	for _, one := range all {
		one.Observe(ctx, o)
	}
}
