package main

import (
	"cmp"
	"context"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// consumersDocument is what `consumers --json` prints.
type consumersDocument struct {
	Namespace string        `json:"namespace"`
	Consumers []consumerRow `json:"consumers"`
}

type consumerRow struct {
	Topic    string `json:"topic"`
	Group    string `json:"group"`
	Consumer string `json:"consumer"`
	// Pending counts what it has in hand, at Partitions partitions.
	Pending    int64 `json:"pending"`
	Partitions int   `json:"partitions"`
	// SilentSeconds is for how long nothing was heard of it.
	SilentSeconds float64 `json:"silent_seconds"`

	silent time.Duration
}

func newConsumersCommand(a *app) *cobra.Command {
	var topic, group string
	var silent time.Duration
	cmd := &cobra.Command{
		Use: "consumers", Short: "List the consumers of groups, what each has in hand, and when it was last heard of",
		Long: "List the consumers of groups, what each has in hand, and when it was last heard of. One that died stays listed until the\n" +
			"upkeep has taken what it had in hand, and deletes its name.",
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if silent < 0 {
				return command.Unfitf("--silent %s is negative", silent)
			}
			return nil
		},
		RunE: a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, _ []string) error {
			document := consumersDocument{Namespace: a.namespace, Consumers: []consumerRow{}}
			err := a.eachGroup(ctx, rdb, topic, group, func(t stream.Topic, g stream.Group) error {
				if g.Kind == stream.GroupProjection {
					return nil // it has no consumers
				}
				rows, err := consumersOf(ctx, rdb, t, g)
				for _, row := range rows {
					if row.silent >= silent {
						document.Consumers = append(document.Consumers, row)
					}
				}
				return err
			})
			if err != nil {
				return err
			}
			return a.print(document, document.table)
		}),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&topic, "topic", "", "only of this topic")
	flags.StringVar(&group, "group", "", "only of this group")
	flags.DurationVar(&silent, "silent", 0, "only those of which nothing was heard for so long")
	return cmd
}

// consumersOf returns the group's consumers, by name, over all partitions.
func consumersOf(ctx context.Context, rdb redis.UniversalClient, t stream.Topic, g stream.Group) ([]consumerRow, error) {
	rows := map[string]consumerRow{}
	for _, key := range t.StreamKeys() {
		members, err := pel.Members(ctx, rdb, pel.KeysOf(key, g.Name))
		if err != nil {
			return nil, err
		}
		for _, m := range members {
			row, known := rows[m.Name]
			if !known {
				row = consumerRow{Topic: t.Name, Group: g.Name, Consumer: m.Name, silent: m.Silent}
			}
			row.Pending += m.Pending
			row.silent = min(row.silent, m.Silent)
			if m.Pending > 0 {
				row.Partitions++
			}
			row.SilentSeconds = row.silent.Seconds()
			rows[m.Name] = row
		}
	}
	return slices.SortedFunc(maps.Values(rows), func(a, b consumerRow) int { return cmp.Compare(a.Consumer, b.Consumer) }), nil
}

func (d consumersDocument) table(w io.Writer) {
	if len(d.Consumers) == 0 {
		_, _ = io.WriteString(w, "no such consumers in namespace "+d.Namespace+"\n") // into memory
		return
	}
	var rows [][]string
	for _, c := range d.Consumers {
		rows = append(rows, []string{c.Topic, c.Group, c.Consumer, number(c.Pending), number(c.Partitions), age(c.silent)})
	}
	table(w, []string{"TOPIC", "GROUP", "CONSUMER", "PENDING", "PARTITIONS", "SILENT FOR"}, rows)
}
