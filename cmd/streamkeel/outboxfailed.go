package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/outbox"
)

// failedDocument is what `outbox failed list --json` prints.
type failedDocument struct {
	Failed []failedRow `json:"failed"`
	// Next is where --after goes on, 0 at the end.
	Next int64 `json:"next,omitempty"`
}

type failedRow struct {
	Number int64     `json:"number"`
	Shard  int       `json:"shard"`
	Topic  string    `json:"topic"`
	Key    string    `json:"key"`
	Event  string    `json:"event"`
	Type   string    `json:"type"`
	Bytes  int       `json:"bytes"`
	Parked bool      `json:"parked"` // later rows of the key wait behind it
	Wanted bool      `json:"wanted"` // somebody asked for it again
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

func newFailedList(a *app) *cobra.Command {
	var filter outbox.FailedFilter
	cmd := &cobra.Command{
		Use: "list", Short: "List rows that could not be published, and those that wait behind them", Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if filter.Limit < 1 || filter.Limit > 1000 {
				return command.Unfitf("--limit %d must be 1 to 1000", filter.Limit)
			}
			return nil
		},
		RunE: a.withPool(func(ctx context.Context, pool *pgxpool.Pool) error {
			filter.Namespace = a.namespace
			list, err := a.outbox.ListFailed(ctx, pool, filter)
			if err != nil {
				return err
			}
			document := failedDocument{Failed: []failedRow{}}
			for _, f := range list {
				document.Failed = append(document.Failed, failedRow{
					f.Number, f.Shard, f.Topic.Name, f.Event.Key, f.Event.ID, f.Event.Type, len(f.Event.Data), f.Parked, f.Wanted, f.Reason, f.At.UTC(),
				})
			}
			if len(list) == filter.Limit {
				document.Next = list[len(list)-1].Number
			}
			return a.print(document, func(w io.Writer) { document.table(w, a.namespace) })
		}),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	failedFlags(cmd, &filter)
	flags.IntVar(&filter.Limit, "limit", 100, "most rows, up to 1000")
	flags.Int64Var(&filter.After, "after", 0, "go on where the last list ended (its next)")
	return cmd
}

func failedFlags(cmd *cobra.Command, filter *outbox.FailedFilter) {
	cmd.Flags().StringVar(&filter.Topic, "topic", "", "only of this topic")
	cmd.Flags().StringVar(&filter.Key, "key", "", "only of this key")
}

func (d failedDocument) table(w io.Writer, namespace string) {
	if len(d.Failed) == 0 {
		fmt.Fprintf(w, "no such rows in namespace %s\n", namespace)
		return
	}
	var rows [][]string
	for _, f := range d.Failed {
		state := "aside"
		if f.Parked {
			state = "parked"
		}
		if f.Wanted {
			state += ", wanted"
		}
		rows = append(rows, []string{number(f.Number), moment(f.At), f.Topic, f.Key, f.Event, f.Type, state, shorten(f.Reason, 80)})
	}
	table(w, []string{"NUMBER", "SINCE", "TOPIC", "KEY", "EVENT", "TYPE", "STATE", "REASON"}, rows)
	if d.Next > 0 {
		fmt.Fprintf(w, "more: --after %d\n", d.Next)
	}
}

// retryDocument is what `outbox failed retry --json` prints.
type retryDocument struct {
	DryRun bool  `json:"dry_run"`
	Rows   int64 `json:"rows"`
}

func newFailedRetry(a *app) *cobra.Command {
	var filter outbox.FailedFilter
	var all, dryRun bool
	cmd := &cobra.Command{
		Use: "retry", Short: "Publish rows again that could not be published", Args: cobra.NoArgs,
		Long: "Publish rows again that could not be published, in their order; of a parked key all rows come. A row that is refused again\n" +
			"comes back to the list.",
		PreRunE: func(*cobra.Command, []string) error {
			if chosen := filter.Topic != "" || filter.Key != ""; chosen == all {
				return command.Unfitf("choose rows with --topic and --key, or take all with --all")
			}
			return nil
		},
		RunE: a.withPool(func(ctx context.Context, pool *pgxpool.Pool) error {
			filter.Namespace = a.namespace
			retry := a.outbox.RetryFailed
			if dryRun {
				retry = a.countFailed
			}
			n, err := retry(ctx, pool, filter)
			if err != nil {
				return err
			}
			return a.print(retryDocument{dryRun, n}, func(w io.Writer) {
				if dryRun {
					fmt.Fprintf(w, "would publish %d rows again\n", n)
				} else {
					fmt.Fprintf(w, "%d rows are published again within seconds: streamkeel outbox failed list\n", n)
				}
			})
		}),
	}
	cmd.Flags().SortFlags = false
	failedFlags(cmd, &filter)
	cmd.Flags().BoolVar(&all, "all", false, "all of the namespace")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only count them")
	return cmd
}

// countFailed counts the rows that RetryFailed would choose.
func (a *app) countFailed(ctx context.Context, pool *pgxpool.Pool, filter outbox.FailedFilter) (n int64, err error) {
	for filter.Limit = 1000; ; {
		list, err := a.outbox.ListFailed(ctx, pool, filter)
		if err != nil {
			return n, err
		}
		for _, f := range list {
			if filter.After = f.Number; !f.Wanted {
				n++
			}
		}
		if len(list) < filter.Limit {
			return n, nil
		}
	}
}
