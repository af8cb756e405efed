package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// topicsDocument is what `topics list --json` prints.
type topicsDocument struct {
	Namespace string     `json:"namespace"`
	Topics    []topicRow `json:"topics"`
}

type topicRow struct {
	Topic      string `json:"topic"`
	Partitions int    `json:"partitions"`
	// Stream is the key of an adopted stream, or "" for Streamkeel's own keys.
	Stream  string   `json:"stream,omitempty"`
	Entries int64    `json:"entries"`
	Groups  []string `json:"groups"`
}

func newTopicsCommand(a *app) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the topics of the registry", Args: cobra.NoArgs,
		RunE: a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, _ []string) error {
			topics, err := stream.Topics(ctx, rdb, a.namespace)
			if err != nil {
				return err
			}
			document := topicsDocument{Namespace: a.namespace, Topics: []topicRow{}}
			for _, t := range topics {
				row := topicRow{Topic: t.Name, Partitions: t.Count(), Stream: t.Stream, Groups: []string{}}
				if row.Entries, err = length(ctx, rdb, t); err != nil {
					return err
				}
				groups, err := stream.Groups(ctx, rdb, t)
				if err != nil {
					return err
				}
				for _, g := range groups {
					row.Groups = append(row.Groups, g.Name)
				}
				document.Topics = append(document.Topics, row)
			}
			return a.print(document, document.table)
		}),
	}
	return parent("topics", "Look at topics", list)
}

func length(ctx context.Context, rdb redis.UniversalClient, t stream.Topic) (total int64, err error) {
	pipe := rdb.Pipeline()
	var lengths []*redis.IntCmd
	for _, key := range t.StreamKeys() {
		lengths = append(lengths, pipe.XLen(ctx, key))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return 0, fmt.Errorf("length of topic %s: %w", t.Name, err)
	}
	for _, n := range lengths {
		total += n.Val()
	}
	return total, nil
}

func (d topicsDocument) table(w io.Writer) {
	if len(d.Topics) == 0 {
		fmt.Fprintf(w, "no topics in namespace %s\n", d.Namespace)
		return
	}
	var rows [][]string
	for _, t := range d.Topics {
		rows = append(rows, []string{t.Topic, number(t.Partitions), number(t.Entries), listOf(t.Groups), t.Stream})
	}
	table(w, []string{"TOPIC", "PARTITIONS", "ENTRIES", "GROUPS", "STREAM"}, rows)
}

// groupsDocument is what `groups list --json` prints.
type groupsDocument struct {
	Namespace string     `json:"namespace"`
	Groups    []groupRow `json:"groups"`
}

type groupRow struct {
	Topic string           `json:"topic"`
	Group string           `json:"group"`
	Kind  stream.GroupKind `json:"kind"`
	totalsRow
	// Paused counts the partitions at which it is paused.
	Paused         int     `json:"paused_partitions"`
	MaxDeliveries  int     `json:"max_deliveries,omitempty"`
	MinIdleSeconds float64 `json:"min_idle_seconds,omitempty"`
}

// totalsRow is pel.Totals in a document.
type totalsRow struct {
	Lag                  *int64  `json:"lag"` // null: Redis cannot tell
	Pending              int64   `json:"pending"`
	OldestPendingSeconds float64 `json:"oldest_pending_seconds"`
	Retry                int64   `json:"retry"`
	Due                  int64   `json:"due"`
	OverdueSeconds       float64 `json:"due_overdue_seconds"`
	Letters              int64   `json:"letters"`
	Consumers            int64   `json:"consumers"`
	MissingPartitions    int     `json:"missing_partitions"`
	Error                string  `json:"error,omitempty"`

	totals pel.Totals
}

func totalsOf(t pel.Totals) totalsRow {
	row := totalsRow{
		Pending: t.Pending, OldestPendingSeconds: t.Oldest.Seconds(), Retry: t.Retry, Due: t.Due, OverdueSeconds: t.Overdue.Seconds(),
		Letters: t.Letters, Consumers: t.Consumers, MissingPartitions: t.Missing, totals: t,
	}
	if t.LagKnown {
		row.Lag = &t.Lag
	}
	if t.Err != nil {
		row.Error = t.Err.Error()
	}
	return row
}

func (r totalsRow) lag() string {
	if r.Lag == nil {
		return "?"
	}
	return number(*r.Lag)
}

func newGroupsCommand(a *app) *cobra.Command {
	var topic string
	list := &cobra.Command{
		Use: "list", Short: "List the groups of the registry, with what each has open", Args: cobra.NoArgs,
		RunE: a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, _ []string) error {
			document := groupsDocument{Namespace: a.namespace, Groups: []groupRow{}}
			err := a.eachGroup(ctx, rdb, topic, "", func(t stream.Topic, g stream.Group) error {
				all, err := inspect(ctx, rdb, t, g)
				if err != nil {
					return err
				}
				sum := pel.Sum(all...)
				paused, err := pausedAt(ctx, rdb, t, g)
				if err != nil {
					if !redisx.IsWrongType(err) {
						return err
					}
					sum.Err = errors.Join(sum.Err, err)
				}
				document.Groups = append(document.Groups, groupRow{
					Topic: t.Name, Group: g.Name, Kind: g.Kind, totalsRow: totalsOf(sum), Paused: paused,
					MaxDeliveries: g.MaxDeliveries, MinIdleSeconds: float64(g.MinIdleMs) / 1000,
				})
				return nil
			})
			if err != nil {
				return err
			}
			return a.print(document, document.table)
		}),
	}
	list.Flags().StringVar(&topic, "topic", "", "only of this topic")
	return parent("groups", "Look at groups, pause, move and delete them", list,
		newGroupsPause(a, "pause", "Stop a group's consumers from reading on, until it is resumed", "paused", pel.Pause),
		newGroupsPause(a, "resume", "Let a paused group go on", "resumed", pel.Resume),
		newGroupsSeek(a), newGroupsDelete(a))
}

func (d groupsDocument) table(w io.Writer) {
	if len(d.Groups) == 0 {
		fmt.Fprintf(w, "no groups in namespace %s\n", d.Namespace)
		return
	}
	var rows [][]string
	for _, g := range d.Groups {
		remark := g.Error
		if g.MissingPartitions > 0 && remark == "" {
			remark = fmt.Sprintf("missing at %d partitions", g.MissingPartitions)
		}
		if g.Paused > 0 && remark == "" {
			remark = fmt.Sprintf("paused at %d partitions", g.Paused)
		}
		rows = append(rows, []string{
			g.Topic, g.Group, string(g.Kind), g.lag(), number(g.Pending), age(g.totals.Oldest), number(g.Retry), number(g.Due),
			age(g.totals.Overdue), number(g.Letters), number(g.Consumers), remark,
		})
	}
	table(w, []string{"TOPIC", "GROUP", "KIND", "LAG", "PENDING", "OLDEST", "RETRY", "DUE", "OVERDUE", "LETTERS", "CONSUMERS", "REMARK"}, rows)
}

// pausedAt counts the partitions at which a group is paused.
func pausedAt(ctx context.Context, rdb redis.UniversalClient, t stream.Topic, g stream.Group) (n int, err error) {
	paused, err := pel.Paused(ctx, rdb, keysOf(t, g)...)
	for _, at := range paused {
		if at {
			n++
		}
	}
	return n, err
}

func keysOf(t stream.Topic, g stream.Group) []pel.Keys {
	keys := make([]pel.Keys, t.Count())
	for p := range keys {
		keys[p] = pel.KeysOf(t.StreamKey(p), g.Name)
	}
	return keys
}

// inspect returns the totals of each partition. What cannot be inspected has an Err of its own.
func inspect(ctx context.Context, rdb redis.UniversalClient, t stream.Topic, g stream.Group) ([]pel.Totals, error) {
	keys := keysOf(t, g)
	all, err := pel.Inspect(ctx, rdb, keys...)
	if len(all) == len(keys) {
		return all, nil
	}
	return nil, err
}

// eachGroup calls fn with the groups of the registry, of one topic and of one name where these
// are not empty. One that does not exist is an error.
func (a *app) eachGroup(ctx context.Context, rdb redis.UniversalClient, topic, group string, fn func(stream.Topic, stream.Group) error) error {
	topics, err := stream.Topics(ctx, rdb, a.namespace)
	if topic != "" {
		var one stream.Topic
		one, err = a.topic(ctx, rdb, topic)
		topics = []stream.Topic{one}
	}
	if err != nil {
		return err
	}
	var names []string
	found := false
	for _, t := range topics {
		groups, err := stream.Groups(ctx, rdb, t)
		if err != nil {
			return err
		}
		for _, g := range groups {
			names = append(names, g.Name)
			if group != "" && g.Name != group {
				continue
			}
			found = true
			if err := fn(t, g); err != nil {
				return err
			}
		}
	}
	if group != "" && !found {
		return a.noGroup(group, names)
	}
	return nil
}
