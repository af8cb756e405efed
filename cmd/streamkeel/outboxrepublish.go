package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/outbox"
)

// decidedDocument is what commands print that decide for shards that stand still.
type decidedDocument struct {
	DryRun   bool         `json:"dry_run"`
	Decision string       `json:"decision"`
	Shards   []decidedRow `json:"shards"`
	Ghosts   []ghostRow   `json:"ghosts,omitempty"` // of resync: entries that Postgres knows nothing of
}

type decidedRow struct {
	Shard  int    `json:"shard"`
	Detail string `json:"detail"`
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`
}

type ghostRow struct {
	Shard  int    `json:"shard"`
	Stream string `json:"stream"`
	ID     string `json:"id"`
	Event  string `json:"event"`
	Type   string `json:"type"`
	Key    string `json:"key"`
}

func (d decidedDocument) table(w io.Writer) {
	var rows [][]string
	for _, s := range d.Shards {
		rows = append(rows, []string{number(s.Shard), number(s.Rows), number(s.Bytes), s.Detail})
	}
	table(w, []string{"SHARD", "ROWS", "BYTES", "WHY IT STANDS STILL"}, rows)
	if len(d.Ghosts) > 0 {
		rows = nil
		for _, g := range d.Ghosts {
			rows = append(rows, []string{g.Stream, g.ID, g.Event, g.Type, g.Key})
		}
		fmt.Fprintln(w, "\nentries that Postgres lost:")
		table(w, []string{"STREAM", "ID", "EVENT", "TYPE", "KEY"}, rows)
	}
	if !d.DryRun {
		fmt.Fprintf(w, "\n%s was decided; the relay carries it out within seconds: streamkeel outbox status\n", d.Decision)
	}
}

// stopsFor returns the shards that stand still for a reason, as far as they were chosen.
func (a *app) stopsFor(ctx context.Context, pool *pgxpool.Pool, reason outbox.Reason, chosen []int) ([]outbox.Stop, error) {
	status, err := a.outbox.ReadStatus(ctx, pool)
	if err != nil {
		return nil, err
	}
	var stops []outbox.Stop
	for _, s := range status.Shards {
		stopped := s.Stop != nil && s.Stop.Reason == reason
		if wanted := slices.Contains(chosen, s.Shard); wanted && !stopped {
			return nil, command.Unfitf("shard %d does not stand still for reason %q", s.Shard, reason)
		} else if stopped && (wanted || len(chosen) == 0) {
			stops = append(stops, *s.Stop)
		}
	}
	for _, n := range chosen {
		if !slices.ContainsFunc(status.Shards, func(s outbox.ShardStatus) bool { return s.Shard == n }) {
			return nil, command.Unfitf("there is no shard %d; there are %d", n, len(status.Shards))
		}
	}
	if len(stops) == 0 {
		return nil, command.Unfitf("no shard stands still for reason %q", reason)
	}
	return stops, nil
}

// republishFlags are those of `outbox republish`.
type republishFlags struct {
	decision
	lost, acceptLoss bool
	shards           []int
	from, to         string
	topic, key       string
}

// check returns what is wrong with the flags.
func (f *republishFlags) check() error {
	ways, copies := 0, f.from != "" || f.to != "" || f.topic != "" || f.key != ""
	for _, way := range []bool{f.lost, f.acceptLoss, copies} {
		if way {
			ways++
		}
	}
	switch {
	case ways != 1:
		return errors.New("say one of --lost, --accept-loss, and --from with what else chooses rows")
	case copies && f.from == "":
		return errors.New("--to, --topic and --key need --from")
	case copies && len(f.shards) > 0:
		return errors.New("--shard belongs to --lost and --accept-loss")
	}
	return nil
}

func newOutboxRepublish(a *app) *cobra.Command {
	var f republishFlags
	cmd := &cobra.Command{
		Use: "republish", Short: "Publish again what Redis lost, or what was published in a while", Args: cobra.NoArgs,
		Long: "Publish again what Redis lost, or what was published in a while.\n\n" +
			"--lost and --accept-loss decide for shards that stand still because Redis lost more than is published again without\n" +
			"asking: send it again, or go on without it, for good.\n\n" +
			"--from appends copies of what was published from then on, marked sk-republished, with the id and the sequence that they had:\n" +
			"projections and inboxes leave them out, other consumers handle them again.",
		PreRunE: func(*cobra.Command, []string) error { return command.Unfit(f.check()) },
		RunE: a.withBoth(func(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient) error {
			if f.from != "" {
				return f.copies(ctx, a, pool, rdb)
			}
			return f.decide(ctx, a, pool)
		}),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&f.lost, "lost", false, "send again what Redis lost, whatever its size")
	flags.BoolVar(&f.acceptLoss, "accept-loss", false, "go on without what Redis lost")
	flags.IntSliceVar(&f.shards, "shard", nil, "with --lost and --accept-loss: only these shards (default all that stand still for a loss)")
	flags.StringVar(&f.from, "from", "", "append copies of what was published then or later: a time (2026-01-31T09:00:00Z, 2026-01-31) or an age (90m, 36h)")
	flags.StringVar(&f.to, "to", "", "with --from: only what was published before (default now)")
	flags.StringVar(&f.topic, "topic", "", "with --from: only of this topic")
	flags.StringVar(&f.key, "key", "", "with --from: only of this key")
	f.register(cmd)
	return cmd
}

func (f *republishFlags) decide(ctx context.Context, a *app, pool *pgxpool.Pool) error {
	stops, err := a.stopsFor(ctx, pool, outbox.ReasonLoss, f.shards)
	if err != nil {
		return err
	}
	document := decidedDocument{DryRun: f.dryRun, Decision: "republish", Shards: []decidedRow{}}
	apply := a.outbox.RepublishLost
	if f.acceptLoss {
		document.Decision, apply = "accept-loss", a.outbox.AcceptLoss
	}
	var rows, bytes int64
	for _, s := range stops {
		document.Shards = append(document.Shards, decidedRow{s.Shard, s.Detail, s.Rows, s.Bytes})
		rows, bytes = rows+s.Rows, bytes+s.Bytes
	}
	if !f.dryRun {
		what := fmt.Sprintf("publish %d rows (%d bytes of data) of %d shards again", rows, bytes, len(stops))
		if f.acceptLoss {
			what = fmt.Sprintf("go on without %d rows of %d shards, for good", rows, len(stops))
		}
		if err := f.confirm(a, what); err != nil {
			return err
		}
		for _, s := range stops {
			if err := apply(ctx, pool, s.Shard); err != nil {
				return err
			}
		}
	}
	return a.print(document, document.table)
}

// copiesDocument is what `outbox republish --from --json` prints.
type copiesDocument struct {
	DryRun  bool      `json:"dry_run"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Batches int64     `json:"batches"`
	Rows    int64     `json:"rows"`
	Bytes   int64     `json:"bytes"`
}

func (f *republishFlags) copies(ctx context.Context, a *app, pool *pgxpool.Pool, rdb redis.UniversalClient) error {
	now := time.Now()
	from, fromErr := parseTime(f.from, now)
	to, toErr := parseTime(f.to, now)
	if to.IsZero() {
		to = now
	}
	var faults []error
	if fromErr != nil {
		faults = append(faults, fmt.Errorf("--from %w", fromErr))
	}
	if toErr != nil {
		faults = append(faults, fmt.Errorf("--to %w", toErr))
	}
	if len(faults) == 0 && !from.Before(to) {
		faults = append(faults, errors.New("--from does not lie before --to"))
	}
	if err := errors.Join(faults...); err != nil {
		return command.Unfit(err)
	}
	config := outbox.RepublishConfig{Schema: a.postgres.Schema, From: from, To: to, Namespace: a.namespace, Topic: f.topic, Key: f.key, DryRun: true}
	sum, err := outbox.Republish(ctx, pool, rdb, config)
	if err != nil {
		return err
	}
	if !f.dryRun && sum.Rows > 0 {
		if err := f.confirm(a, fmt.Sprintf("append copies of %d rows (%d bytes of data)", sum.Rows, sum.Bytes)); err != nil {
			return err
		}
		bar := a.newProgress("republish", int(sum.Rows))
		config.DryRun, config.Progress = false, func(sum outbox.Republished) { bar.show(int(sum.Rows)) }
		all := sum.Rows
		sum, err = outbox.Republish(ctx, pool, rdb, config)
		bar.end()
		if err != nil {
			return fmt.Errorf("after about %d of %d rows: %w", sum.Rows, all, err)
		}
	}
	document := copiesDocument{f.dryRun, from.UTC(), to.UTC(), sum.Batches, sum.Rows, sum.Bytes}
	return a.print(document, func(w io.Writer) {
		verb := "appended copies of"
		if f.dryRun {
			verb = "would append copies of"
		}
		fmt.Fprintf(w, "%s %d rows (%d bytes of data) of %d batches\n", verb, sum.Rows, sum.Bytes, sum.Batches)
	})
}

func newOutboxResync(a *app) *cobra.Command {
	var d decision
	var shards []int
	cmd := &cobra.Command{
		Use: "resync", Short: "Go on where Redis holds what Postgres lost", Args: cobra.NoArgs,
		Long: "Go on where Redis holds what Postgres lost, after a failover to a standby or a restored backup: with numbers above what\n" +
			"Redis holds. It lists the entries that Postgres knows nothing of; they stay in the streams, and consumers have handled or\n" +
			"will handle them: what they tell of must be mended by a person.",
		RunE: a.withBoth(func(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient) error {
			stops, err := a.stopsFor(ctx, pool, outbox.ReasonAhead, shards)
			if err != nil {
				return err
			}
			document := decidedDocument{DryRun: d.dryRun, Decision: "resync", Shards: []decidedRow{}}
			for _, s := range stops {
				document.Shards = append(document.Shards, decidedRow{Shard: s.Shard, Detail: s.Detail})
				for en, err := range a.outbox.Ghosts(ctx, pool, rdb, s.Shard) {
					if err != nil {
						return err
					}
					// Of an entry this is all that is kept: its strings share the memory of its payload.
					document.Ghosts = append(document.Ghosts, ghostRow{s.Shard, en.Stream, en.ID.String(), strings.Clone(en.Event.ID), strings.Clone(en.Event.Type), strings.Clone(en.Event.Key)})
				}
			}
			if !d.dryRun {
				if err := d.confirm(a, fmt.Sprintf("go on above %d entries of %d shards that Postgres lost", len(document.Ghosts), len(stops))); err != nil {
					return err
				}
				for _, s := range stops {
					if err := a.outbox.Resync(ctx, pool, s.Shard); err != nil {
						return err
					}
				}
			}
			return a.print(document, document.table)
		}),
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().IntSliceVar(&shards, "shard", nil, "only these shards (default all that stand still because Redis is ahead)")
	d.register(cmd)
	return cmd
}

// restampDocument is what `outbox restamp --json` prints.
type restampDocument struct {
	DryRun  bool              `json:"dry_run"`
	System  string            `json:"system"`
	Rows    int64             `json:"rows"`
	Streams map[string]string `json:"streams"` // that named another database, and which
}

func newOutboxRestamp(a *app) *cobra.Command {
	var d decision
	cmd := &cobra.Command{
		Use: "restamp", Short: "Make the outbox go on in another database than the one that it was written in", Args: cobra.NoArgs,
		Long: "Make the outbox go on in another database than the one that it was written in: a restored dump, an upgraded cluster. Stop all\n" +
			"relays first, those of the old database too. What was published before cannot be published again any more.",
		RunE: a.withBoth(func(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient) error {
			sum, err := a.outbox.Restamp(ctx, pool, rdb, true)
			if err != nil {
				return err
			}
			if !d.dryRun && (sum.Rows > 0 || len(sum.Streams) > 0) {
				if err := d.confirm(a, fmt.Sprintf("take over %d streams from another database, and renumber %d rows", len(sum.Streams), sum.Rows)); err != nil {
					return err
				}
				if sum, err = a.outbox.Restamp(ctx, pool, rdb, false); err != nil {
					return err
				}
			}
			document := restampDocument{d.dryRun, sum.System, sum.Rows, sum.Streams}
			return a.print(document, document.table)
		}),
	}
	d.register(cmd)
	return cmd
}

func (d restampDocument) table(w io.Writer) {
	verb := "renumbered"
	if d.DryRun {
		verb = "would renumber"
	}
	fmt.Fprintf(w, "%s %d rows, and took over %d streams for database %s\n", verb, d.Rows, len(d.Streams), d.System)
	var rows [][]string
	for _, key := range slices.Sorted(maps.Keys(d.Streams)) {
		rows = append(rows, []string{key, d.Streams[key]})
	}
	if len(rows) > 0 {
		table(w, []string{"STREAM", "DATABASE BEFORE"}, rows)
	}
}
