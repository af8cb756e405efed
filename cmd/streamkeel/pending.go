package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// pendingDocument is what `pending --json` prints.
type pendingDocument struct {
	Namespace string       `json:"namespace"`
	Pending   []pendingRow `json:"pending"`
}

type pendingRow struct {
	Topic     string `json:"topic"`
	Group     string `json:"group"`
	Partition int    `json:"partition"`
	totalsRow
	// MostDeliveries is the highest number among the 1,000 oldest pending entries.
	MostDeliveries int         `json:"most_deliveries"`
	Members        []memberRow `json:"members"`
	Entries        []entryRow  `json:"entries,omitempty"`
	// Next is where --from goes on, "" at the end.
	Next string `json:"next,omitempty"`
}

type memberRow struct {
	Consumer      string  `json:"consumer"`
	Pending       int64   `json:"pending"`
	SilentSeconds float64 `json:"silent_seconds"`
}

type entryRow struct {
	Stream      string     `json:"stream"`
	ID          string     `json:"id"`
	Consumer    string     `json:"consumer"`
	IdleSeconds float64    `json:"idle_seconds"`
	Deliveries  int        `json:"deliveries"`
	Attempts    int        `json:"attempts"`
	Origin      string     `json:"origin,omitempty"`
	FirstSeen   *time.Time `json:"first_seen"`

	idle time.Duration
}

// pendingFlags are those of `pending`.
type pendingFlags struct {
	topic, group string
	partition    int
	all, entries bool
	filter       pel.EntryFilter
	from         string
	limit        int
}

func newPendingCommand(a *app) *cobra.Command {
	var f pendingFlags
	cmd := &cobra.Command{
		Use:   "pending",
		Short: "Show what is delivered and not settled, by topic, group and partition",
		Long: "Show what is delivered and not settled, by topic, group and partition: how many entries, how old the oldest is,\n" +
			"how often it was delivered, and who has them in hand. With --entries, the entries too.",
		Args: cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			filtered := f.filter != pel.EntryFilter{} || f.from != "" || cmd.Flags().Changed("limit")
			if filtered && !f.entries {
				return command.Unfitf("--consumer, --min-idle, --min-deliveries, --limit and --from select entries: they need --entries")
			}
			if f.from != "" && (f.topic == "" || f.group == "" || f.partition < 0) {
				return command.Unfitf("--from goes on in one partition: it needs --topic, --group and --partition")
			}
			return nil
		},
		RunE: a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, _ []string) error {
			document := pendingDocument{Namespace: a.namespace, Pending: []pendingRow{}}
			err := a.eachGroup(ctx, rdb, f.topic, f.group, func(t stream.Topic, g stream.Group) error {
				rows, err := f.rows(ctx, rdb, t, g)
				document.Pending = append(document.Pending, rows...)
				return err
			})
			if err != nil {
				return err
			}
			return a.print(document, func(w io.Writer) { document.table(w, f.entries) })
		}),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.topic, "topic", "", "only of this topic")
	flags.StringVar(&f.group, "group", "", "only of this group")
	flags.IntVar(&f.partition, "partition", -1, "only of this partition (default all)")
	flags.BoolVar(&f.all, "all", false, "partitions where nothing is pending, too")
	flags.BoolVar(&f.entries, "entries", false, "list the entries")
	flags.StringVar(&f.filter.Consumer, "consumer", "", "only entries in the hands of this consumer")
	flags.DurationVar(&f.filter.MinIdle, "min-idle", 0, "only entries that nobody took or extended for so long")
	flags.IntVar(&f.filter.MinDeliveries, "min-deliveries", 0, "only entries that were delivered so often")
	flags.IntVar(&f.limit, "limit", 100, "most entries of a partition, up to 1000")
	flags.StringVar(&f.from, "from", "", "go on where the last list ended (its next)")
	return cmd
}

func (f *pendingFlags) rows(ctx context.Context, rdb redis.UniversalClient, t stream.Topic, g stream.Group) ([]pendingRow, error) {
	if f.partition >= t.Count() {
		return nil, command.Unfitf("--partition %d: topic %s has %d partitions, 0 to %d", f.partition, t.Name, t.Count(), t.Count()-1)
	}
	all, err := inspect(ctx, rdb, t, g)
	if err != nil {
		return nil, err
	}
	var rows []pendingRow
	for p, totals := range all {
		if (f.partition >= 0 && p != f.partition) || (totals.Pending == 0 && totals.Err == nil && !f.all) {
			continue
		}
		row := pendingRow{Topic: t.Name, Group: g.Name, Partition: p, totalsRow: totalsOf(totals), Members: []memberRow{}}
		if totals.Err == nil {
			if err := f.details(ctx, rdb, pel.KeysOf(t.StreamKey(p), g.Name), &row); err != nil {
				return nil, err
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// most is how many entries are looked at for the highest number of deliveries.
const most = 1000

func (f *pendingFlags) details(ctx context.Context, rdb redis.UniversalClient, k pel.Keys, row *pendingRow) error {
	members, err := pel.Members(ctx, rdb, k)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Pending > 0 || f.all {
			row.Members = append(row.Members, memberRow{m.Name, m.Pending, m.Silent.Seconds()})
		}
	}
	oldest, err := pel.Entries(ctx, rdb, k, pel.EntryFilter{}, "", most)
	if err != nil {
		return err
	}
	for _, en := range oldest.Entries {
		row.MostDeliveries = max(row.MostDeliveries, en.Carried.Deliveries)
	}
	if !f.entries {
		return nil
	}
	page, err := pel.Entries(ctx, rdb, k, f.filter, f.from, f.limit)
	if err != nil {
		return command.Unfit(err)
	}
	for _, en := range page.Entries {
		row.Entries = append(row.Entries, entryRow{
			Stream: en.Stream, ID: en.ID.String(), Consumer: en.Consumer, IdleSeconds: en.Idle.Seconds(), Deliveries: en.Carried.Deliveries,
			Attempts: en.Carried.Attempts, Origin: en.Carried.Origin, FirstSeen: instant(en.Carried.First), idle: en.Idle,
		})
	}
	row.Next = page.Next
	return nil
}

func (d pendingDocument) table(w io.Writer, entries bool) {
	if len(d.Pending) == 0 {
		fmt.Fprintf(w, "nothing is pending in namespace %s\n", d.Namespace)
		return
	}
	var rows [][]string
	for _, p := range d.Pending {
		var members []string
		for _, m := range p.Members {
			silent := age(time.Duration(m.SilentSeconds * float64(time.Second)))
			members = append(members, fmt.Sprintf("%s: %d (silent %s)", m.Consumer, m.Pending, silent))
		}
		if p.Error != "" {
			members = []string{p.Error}
		}
		rows = append(rows, []string{
			p.Topic, p.Group, number(p.Partition), number(p.Pending), age(p.totals.Oldest), number(p.MostDeliveries), p.lag(), strings.Join(members, ", "),
		})
	}
	table(w, []string{"TOPIC", "GROUP", "PARTITION", "PENDING", "OLDEST", "DELIVERIES", "LAG", "IN THE HANDS OF"}, rows)
	if !entries {
		return
	}
	for _, p := range d.Pending {
		fmt.Fprintf(w, "\n%s, group %s, partition %d:\n", command.Visible(p.Topic), command.Visible(p.Group), p.Partition)
		rows = nil
		for _, en := range p.Entries {
			rows = append(rows, []string{en.ID, en.Stream, en.Consumer, age(en.idle), number(en.Deliveries), number(en.Attempts), en.Origin})
		}
		table(w, []string{"ID", "STREAM", "CONSUMER", "IDLE", "DELIVERIES", "ATTEMPTS", "ORIGIN"}, rows)
		if p.Next != "" {
			fmt.Fprintf(w, "more: --topic %s --group %s --partition %d --from %s\n", p.Topic, p.Group, p.Partition, p.Next)
		}
	}
}
