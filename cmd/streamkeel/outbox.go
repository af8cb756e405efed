package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/outbox"
)

func newOutboxCommand(a *app) *cobra.Command {
	return parent("outbox", "Show how the outbox stands, and decide for what stands still",
		newOutboxStatus(a), newOutboxRepublish(a), newOutboxResync(a), newOutboxRestamp(a),
		parent("failed", "Rows that could not be published", newFailedList(a), newFailedRetry(a)))
}

// withPool makes a command's function one that gets a pool of a database with the migrations.
func (a *app) withPool(fn func(ctx context.Context, pool *pgxpool.Pool) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		cfg, faults := a.postgres.Config(program, a.secrets)
		if len(faults) > 0 {
			return command.Unfit(errors.Join(faults...))
		}
		a.outbox, _ = outbox.In(a.postgres.Schema) // Config has found no fault in it
		pool, err := pgxpool.NewWithConfig(cmd.Context(), cfg)
		if err != nil {
			return command.PostgresFault(cfg, err)
		}
		defer pool.Close()
		if err := command.CheckPostgres(cmd.Context(), pool, a.postgres.Tables, a.start.Timeout); err != nil {
			return err
		}
		err = fn(cmd.Context(), pool)
		switch {
		case command.IsDenied(err), pgerr.IsNoTable(err):
			return command.PostgresFault(cfg, err)
		case errors.Is(err, outbox.ErrNothingToDecide), errors.Is(err, outbox.ErrRelayRuns), errors.Is(err, outbox.ErrNotKept):
			return command.Unfit(err)
		}
		return err
	}
}

// withBoth is withPool with a client of Redis.
func (a *app) withBoth(fn func(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient) error) func(*cobra.Command, []string) error {
	return a.withPool(func(ctx context.Context, pool *pgxpool.Pool) error {
		rdb, err := a.openRedis(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = rdb.Close() }() // nothing is in hand
		return fn(ctx, pool, rdb)
	})
}

// decision holds the flags of commands that change what cannot be changed back.
type decision struct {
	dryRun, yes bool
}

func (d *decision) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&d.dryRun, "dry-run", false, "only tell what it would do")
	cmd.Flags().BoolVar(&d.yes, "yes", false, "do not ask")
}

// confirm asks whether to do something, unless --yes was given.
func (d *decision) confirm(a *app, what string) error {
	if d.yes {
		return nil
	}
	if !a.terminal {
		return command.Unfitf("to %s, say --yes: there is no terminal to ask at", what)
	}
	fmt.Fprintf(a.process.Stderr, "%s? [y/N] ", what)
	answer, _ := bufio.NewReader(a.process.Stdin).ReadString('\n') // no answer is no
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

// outboxDocument is what `outbox status --json` prints.
type outboxDocument struct {
	Relays    int        `json:"relays"`  // that run
	Delayed   int64      `json:"delayed"` // rows for later
	Failed    int64      `json:"failed"`  // rows that could not be published
	DaysAhead int        `json:"days_ahead"`
	Shards    []shardRow `json:"shards"`
}

type shardRow struct {
	Shard         int        `json:"shard"`
	Owner         string     `json:"owner"`
	Epoch         int64      `json:"epoch"`
	LeaseUntil    *time.Time `json:"lease_until"`
	Batch         int64      `json:"batch"`
	Published     int64      `json:"published"`
	Unpublished   int64      `json:"unpublished"` // counted up to 10,000
	OldestSeconds float64    `json:"oldest_seconds"`
	Stop          *stopRow   `json:"stop"`

	oldest time.Duration
}

type stopRow struct {
	Reason string    `json:"reason"`
	Detail string    `json:"detail"`
	Since  time.Time `json:"since"`
	// What publishing again would send.
	Rows     int64      `json:"rows"`
	Bytes    int64      `json:"bytes"`
	Oldest   *time.Time `json:"oldest"`
	Decision string     `json:"decision"` // that is not carried out yet
	Help     string     `json:"help"`     // what to do
}

func newOutboxStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the shards: who relays them, what waits, and why one stands still", Args: cobra.NoArgs,
		RunE: a.withPool(func(ctx context.Context, pool *pgxpool.Pool) error {
			status, err := a.outbox.ReadStatus(ctx, pool)
			if err != nil {
				return err
			}
			document := outboxDocument{Relays: status.Relays, Delayed: status.Delayed, Failed: status.Failed, DaysAhead: status.DaysAhead, Shards: []shardRow{}}
			for _, s := range status.Shards {
				row := shardRow{
					Shard: s.Shard, Owner: s.Owner, Epoch: s.Epoch, Batch: s.Batch, Published: s.Published, Unpublished: s.Unpublished,
					OldestSeconds: s.Oldest.Seconds(), oldest: s.Oldest,
				}
				if s.Owner != "" {
					row.LeaseUntil = instant(s.LeaseUntil)
				}
				if s.Stop != nil {
					row.Stop = &stopRow{
						Reason: string(s.Stop.Reason), Detail: s.Stop.Detail, Since: s.Stop.Since.UTC(), Rows: s.Stop.Rows, Bytes: s.Stop.Bytes,
						Decision: s.Stop.Decision, Help: stopHelp(s.Stop.Reason),
					}
					if s.Stop.Rows > 0 {
						row.Stop.Oldest = instant(s.Stop.Oldest)
					}
				}
				document.Shards = append(document.Shards, row)
			}
			return a.print(document, document.table)
		}),
	}
}

// stopHelp says what a person can do about a shard that stands still.
func stopHelp(reason outbox.Reason) string {
	switch reason {
	case outbox.ReasonLoss:
		return "if this is the right Redis: streamkeel outbox republish --lost (or --accept-loss)"
	case outbox.ReasonAhead:
		return "streamkeel outbox resync --dry-run lists what Postgres lost; streamkeel outbox resync goes on above it"
	case outbox.ReasonForeign:
		return "if this database is the heir of the other: stop the relays, streamkeel outbox restamp"
	}
	return "mend the cause: it tries again by itself"
}

func (d outboxDocument) table(w io.Writer) {
	fmt.Fprintf(w, "relays %d, delayed rows %d, failed rows %d, row partitions for %d days ahead\n\n", d.Relays, d.Delayed, d.Failed, d.DaysAhead)
	var rows [][]string
	for _, s := range d.Shards {
		state := "waits"
		switch {
		case s.Stop != nil:
			state = "STOPPED: " + s.Stop.Reason
		case s.Owner == "":
			state = "no relay"
		case s.Unpublished == 0 && s.Published == s.Batch:
			state = "idle"
		}
		rows = append(rows, []string{number(s.Shard), s.Owner, number(s.Batch), number(s.Published), number(s.Unpublished), age(s.oldest), state})
	}
	table(w, []string{"SHARD", "OWNER", "BATCH", "PUBLISHED", "WAITING", "OLDEST", "STATE"}, rows)
	for _, s := range d.Shards {
		if s.Stop == nil {
			continue
		}
		fmt.Fprintf(w, "\nshard %d stands still since %s: %s\n", s.Shard, moment(s.Stop.Since), command.Visible(s.Stop.Detail))
		if s.Stop.Rows > 0 {
			fmt.Fprintf(w, "publishing again would send %d rows (%d bytes of data), the oldest of %s\n", s.Stop.Rows, s.Stop.Bytes, moment(*s.Stop.Oldest))
		}
		if s.Stop.Decision != "" {
			fmt.Fprintf(w, "decided, and not carried out yet: %s\n", command.Visible(s.Stop.Decision))
		}
		fmt.Fprintln(w, s.Stop.Help)
	}
}
