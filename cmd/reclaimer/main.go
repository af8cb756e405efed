// Command reclaimer looks after consumer groups from one place: it moves due retries, takes
// over what silent consumers left behind, deletes their names, keeps checkpoints and trims
// streams. It does so for every topic and group in the registries of its namespaces.
package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
	"github.com/streamkeel/streamkeel/telemetry"
)

const (
	program = "reclaimer"
	summary = `reclaimer looks after consumer groups: it moves due retries, takes over what silent
consumers left behind, deletes their names, keeps checkpoints and trims streams, for every
topic and group in the registries of its namespaces. Any number may run.`
)

func main() { command.Main(run) }

// config is every setting.
type config struct {
	namespaces []string
	retention  retention.Policy
	letters    dlq.Retention
	full       string
	redis      command.RedisFlags
	http       command.HTTPFlags
	log        command.LogFlags
	start      command.StartFlags
}

func (c *config) flags() *command.Flags {
	flags := command.NewFlags(program, summary)
	flags.StringSliceVar(&c.namespaces, "namespace", []string{stream.DefaultNamespace}, "`namespaces` to look after, separated by commas")
	flags.DurationVar(&c.retention.Keep, "keep", retention.DefaultKeep, "age that an entry must have, beside being finished by every group, before it is trimmed")
	flags.BoolVar(&c.retention.KeepAll, "keep-all", false, "trim nothing")
	flags.BoolVar(&c.retention.Exact, "trim-exact", false, "trim to the entry; otherwise by whole nodes of some 100 entries, which costs Redis a fraction")
	flags.Int64Var(&c.letters.MaxLen, "letters-max-len", 0, "dead letters that a group is to hold in a partition; 0 is no limit")
	flags.StringVar(&c.full, "letters-full", "keep", "what happens to more: keep (and say so), discard the oldest, or pause the group until there is room")
	flags.DurationVar(&c.letters.MaxAge, "letters-max-age", 0, "age at which dead letters are discarded; 0 is never")
	c.redis.Register(flags.FlagSet)
	c.redis.RegisterEviction(flags.FlagSet)
	c.http.Register(flags.FlagSet, "127.0.0.1:8641")
	c.log.Register(flags.FlagSet)
	c.start.Register(flags.FlagSet, 10*time.Second)
	return flags
}

// faults returns everything that is wrong with the settings, beside those of Redis.
func (c *config) faults() (faults []error) {
	for _, ns := range c.namespaces {
		if !stream.ValidName(ns) {
			faults = append(faults, fmt.Errorf("--namespace %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", ns))
		}
	}
	if len(c.namespaces) == 0 {
		faults = append(faults, errors.New("--namespace is empty"))
	}
	if c.retention.Keep <= 0 {
		faults = append(faults, fmt.Errorf("--keep %s must be more than 0; --keep-all trims nothing", c.retention.Keep))
	}
	if c.full != "keep" {
		c.letters.OnFull = dlq.Full(c.full)
	}
	if err := c.letters.Validate(); err != nil {
		faults = append(faults, fmt.Errorf("--letters-max-len, --letters-full, --letters-max-age: %w", err))
	}
	return slices.Concat(faults, c.http.Validate(), c.log.Validate(), c.start.Validate())
}

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
	if faults := slices.Concat(faults, c.faults(), redisFaults); len(faults) > 0 {
		return command.Unfit(errors.Join(faults...))
	}
	log := c.log.New(p.Stderr, secrets)
	if err := command.CheckRedis(ctx, redisConfig, c.start.Timeout); err != nil {
		return command.UnlessEnded(ctx, err)
	}
	rdb := redisConfig.Open()
	defer func() { _ = rdb.Close() }() // nothing is in hand any more
	targets := newTargets(rdb, c.namespaces, log)
	if err := targets.check(ctx); err != nil {
		return command.UnlessEnded(ctx, command.RedisFault(redisConfig, err))
	}
	metrics := telemetry.NewMetrics(telemetry.MetricsConfig{})
	upkeep, err := consumergroup.NewUpkeep(rdb, consumergroup.UpkeepConfig{
		Targets: targets.Get, Retention: c.retention, Letters: c.letters, Logger: log, Observer: metrics.Consumer(),
	})
	if err != nil {
		return command.Unfit(err)
	}
	backlog, err := telemetry.NewBacklog(rdb, telemetry.BacklogConfig{Namespaces: c.namespaces, Logger: log})
	if err != nil {
		return command.Unfit(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics, backlog, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	daemon := command.Daemon{
		Log: log, HTTP: c.http, Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}),
		Health: command.NewHealth(secrets, map[string]func(context.Context) error{
			"redis":    func(ctx context.Context) error { return rdb.Ping(ctx).Err() },
			"registry": func(context.Context) error { return targets.Err() },
		}),
		Work: func(ctx context.Context) error {
			upkeep.Run(ctx)
			return nil
		},
	}
	return daemon.Run(ctx)
}
