package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/stream"
)

func newDLQCommand(a *app) *cobra.Command {
	return parent("dlq", "Look at dead letters, give them back to their group, delete, export and import them",
		newDLQList(a), newDLQShow(a), newDLQRedrive(a), newDLQPurge(a), newDLQExport(a), newDLQImport(a))
}

// queueFlags name a group's dead letters.
type queueFlags struct{ topic, group string }

func (q *queueFlags) register(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&q.topic, "topic", "", "topic (required)")
	cmd.Flags().StringVar(&q.group, "group", "", "group (required)")
}

func (q *queueFlags) check() error {
	if q.topic == "" || q.group == "" {
		return command.Unfitf("--topic and --group are required: letters belong to a group of a topic")
	}
	return nil
}

// open returns the letters of the group. One that is not in the registry any more may have
// left some.
func (q *queueFlags) open(ctx context.Context, a *app, rdb redis.UniversalClient) (*dlq.Queue, error) {
	t, err := a.topic(ctx, rdb, q.topic)
	if err != nil {
		return nil, err
	}
	queue, err := dlq.Open(rdb, t, q.group)
	if err != nil {
		return nil, command.Unfit(err)
	}
	groups, err := stream.Groups(ctx, rdb, t)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, g := range groups {
		if g.Name == q.group {
			return queue, nil
		}
		names = append(names, g.Name)
	}
	if n, err := queue.Count(ctx); err != nil || n > 0 {
		return queue, err
	}
	return nil, a.noGroup(q.group, names)
}

// lettersDocument is what `dlq list --json` prints.
type lettersDocument struct {
	Topic   string      `json:"topic"`
	Group   string      `json:"group"`
	Letters []letterRow `json:"letters"`
	Next    string      `json:"next,omitempty"` // where --from goes on
}

type letterRow struct {
	Ref          string     `json:"ref"`
	Partition    int        `json:"partition"`
	ID           string     `json:"id"`
	Died         *time.Time `json:"died"`
	Reason       dlq.Reason `json:"reason"`
	Error        string     `json:"error"`
	EventID      string     `json:"event_id"`
	Type         string     `json:"type"`
	Key          string     `json:"key"`
	Attempts     int        `json:"attempts"`
	Deliveries   int        `json:"deliveries"`
	Redrives     int        `json:"redrives"`
	Consumer     string     `json:"consumer"`
	FirstSeen    *time.Time `json:"first_seen"`
	OriginStream string     `json:"origin_stream"`
	OriginID     string     `json:"origin_id"`
	// The first death, which is this one until the letter was given back.
	FirstDied   *time.Time `json:"first_died"`
	FirstReason dlq.Reason `json:"first_reason"`
	FirstError  string     `json:"first_error"`
	// Edited is when the payload was last replaced in giving it back, Editor who said so, and
	// Original the SHA-256 of the published one.
	Edited   *time.Time `json:"edited,omitempty"`
	Editor   string     `json:"editor,omitempty"`
	Original string     `json:"original,omitempty"`
}

func letterRowOf(l *dlq.Letter) letterRow {
	return letterRow{
		Ref: l.Ref(), Partition: l.Partition, ID: l.ID.String(), Died: instant(l.Died), Reason: l.Reason, Error: l.Error,
		EventID: l.Entry.Event.ID, Type: l.Entry.Event.Type, Key: l.Entry.Event.Key, Attempts: l.Attempts, Deliveries: l.Deliveries,
		Redrives: l.Redrives, Consumer: l.Consumer, FirstSeen: instant(l.FirstSeen), OriginStream: l.OriginStream, OriginID: l.OriginID.String(),
		FirstDied: instant(l.First.At), FirstReason: l.First.Reason, FirstError: l.First.Error,
		Edited: instant(l.Edit.At), Editor: l.Edit.By, Original: l.Edit.Original,
	}
}

func newDLQList(a *app) *cobra.Command {
	var q queueFlags
	var f filterFlags
	var from string
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List letters, partition by partition, oldest first", Args: cobra.NoArgs,
		RunE: a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, _ []string) error {
			filter, err := f.filter(time.Now())
			if err != nil {
				return err
			}
			queue, err := q.open(ctx, a, rdb)
			if err != nil {
				return err
			}
			page, err := queue.List(ctx, filter, from, limit)
			if err != nil {
				return err
			}
			document := lettersDocument{Topic: q.topic, Group: q.group, Letters: []letterRow{}, Next: page.Next}
			for i := range page.Letters {
				document.Letters = append(document.Letters, letterRowOf(&page.Letters[i]))
			}
			return a.print(document, document.table)
		}),
		PreRunE: func(*cobra.Command, []string) error {
			if limit < 1 || limit > 1000 {
				return command.Unfitf("--limit %d is not 1 to 1000", limit)
			}
			if _, err := dlq.ParseRef(from); from != "" && err != nil {
				return command.Unfitf("--from: %w", err)
			}
			return q.check()
		},
	}
	q.register(cmd)
	f.register(cmd)
	cmd.Flags().IntVar(&limit, "limit", 100, "most letters, up to 1000")
	cmd.Flags().StringVar(&from, "from", "", "go on where the last list ended (its next)")
	return cmd
}

func (d lettersDocument) table(w io.Writer) {
	if len(d.Letters) == 0 {
		fmt.Fprintln(w, "no letters")
		return
	}
	var rows [][]string
	for _, l := range d.Letters {
		died := ""
		if l.Died != nil {
			died = moment(*l.Died)
		}
		rows = append(rows, []string{
			l.Ref, died, string(l.Reason), shorten(l.Type, 40), shorten(l.Key, 40), number(l.Attempts), number(l.Deliveries), number(l.Redrives), shorten(l.Error, 60),
		})
	}
	table(w, []string{"LETTER", "DIED", "REASON", "TYPE", "KEY", "ATTEMPTS", "DELIVERIES", "REDRIVES", "ERROR"}, rows)
	if d.Next != "" {
		fmt.Fprintf(w, "more: --from %s\n", d.Next)
	}
}
