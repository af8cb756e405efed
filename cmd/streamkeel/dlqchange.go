package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/redisx"
)

// filterFlags select letters.
type filterFlags struct {
	reasons, types []string
	key, err       string
	since, until   string
}

func (f *filterFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.reasons, "reason", nil, fmt.Sprintf("one of these reasons: %s", joinReasons()))
	flags.StringSliceVar(&f.types, "type", nil, "one of these event types")
	flags.StringVar(&f.key, "key", "", "the event's key")
	flags.StringVar(&f.err, "error", "", "a part of the error's text")
	flags.StringVar(&f.since, "since", "", "died then or later: a time (2026-01-31T09:00:00Z, 2026-01-31) or an age (90m, 36h)")
	flags.StringVar(&f.until, "until", "", "died before: a time or an age")
}

func joinReasons() string {
	var names []string
	for _, r := range dlq.Reasons() {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// filter returns what the flags select, or every fault, as Unfit.
func (f *filterFlags) filter(now time.Time) (dlq.Filter, error) {
	filter := dlq.Filter{Types: f.types, Key: f.key, Error: f.err}
	var faults []error
	for _, r := range f.reasons {
		if !slices.Contains(dlq.Reasons(), dlq.Reason(r)) {
			faults = append(faults, fmt.Errorf("--reason %.60q is none of %s", r, joinReasons()))
		}
		filter.Reasons = append(filter.Reasons, dlq.Reason(r))
	}
	for _, t := range []struct {
		flag, value string
		to          *time.Time
	}{{"--since", f.since, &filter.Since}, {"--until", f.until, &filter.Until}} {
		var err error
		if *t.to, err = parseTime(t.value, now); err != nil {
			faults = append(faults, fmt.Errorf("%s %w", t.flag, err))
		}
	}
	return filter, command.Unfit(errors.Join(faults...))
}

// parseTime reads a time, or an age, which is a time before now. An empty text is no time.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%.60q is neither a time (2026-01-31T09:00:00Z, 2026-01-31) nor an age (90m, 36h)", s)
}

// change is a command that does something to letters.
type change struct {
	a      *app
	queue  queueFlags
	filter filterFlags
	verb   string // redrive, purge
	done   string // redriven, purged
	warn   string // behind the number and name, in the question
	whole  bool   // leaves out, with --all, letters of which nothing is left
	ask    func(all bool) bool
	apply  func(ctx context.Context, q *dlq.Queue, refs []dlq.Ref) (int, error)

	all, dryRun, yes bool
	limit            int
}

// changeDocument is what `dlq redrive --json` and `dlq purge --json` print.
type changeDocument struct {
	Topic   string   `json:"topic"`
	Group   string   `json:"group"`
	DryRun  bool     `json:"dry_run"`
	Letters []string `json:"letters"` // those that were named or matched
	Done    int      `json:"done"`    // how many of them were changed
	Failed  []string `json:"failed"`  // why others were not
}

func newDLQRedrive(a *app) *cobra.Command {
	c := &change{
		a: a, verb: "redrive", done: "redriven", whole: true, ask: func(all bool) bool { return all },
		apply: func(ctx context.Context, q *dlq.Queue, refs []dlq.Ref) (int, error) { return q.Redrive(ctx, refs...) },
	}
	return c.command("redrive [LETTER…]", "Give letters back to their group, to be handled again",
		"Give letters back to their group, to be handled again with fresh attempts. No other group sees them.\n"+
			"Letters of which nothing is left (reason trimmed) are left out with --all.")
}

func newDLQPurge(a *app) *cobra.Command {
	c := &change{
		a: a, verb: "purge", done: "purged", warn: ", for good", ask: func(bool) bool { return true },
		apply: func(ctx context.Context, q *dlq.Queue, refs []dlq.Ref) (int, error) { return q.Purge(ctx, refs...) },
	}
	return c.command("purge [LETTER…]", "Delete letters for good", "Delete letters for good.")
}

func (c *change) command(use, short, long string) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long + "\n\nName letters as `dlq list` does (partition/ID), or select them with --all and filters.",
		PreRunE: func(cmd *cobra.Command, args []string) error {
			filtered := false
			for _, name := range []string{"reason", "type", "key", "error", "since", "until", "limit"} {
				filtered = filtered || cmd.Flags().Changed(name)
			}
			switch {
			case len(args) == 0 && !c.all:
				return command.Unfitf("name letters (partition/ID), or take all that match with --all")
			case len(args) > 0 && (c.all || filtered):
				return command.Unfitf("name letters, or select them with --all and filters, not both")
			case c.limit < 0:
				return command.Unfitf("--limit %d is negative", c.limit)
			}
			return c.queue.check()
		},
		RunE: c.a.withRedis(c.run),
	}
	c.queue.register(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&c.all, "all", false, "all letters that match the filters")
	c.filter.register(cmd)
	flags.IntVar(&c.limit, "limit", 0, "most letters with --all (default no limit)")
	flags.BoolVar(&c.dryRun, "dry-run", false, "only tell which letters it would be")
	flags.BoolVar(&c.yes, "yes", false, "do not ask")
	return cmd
}

func (c *change) run(ctx context.Context, rdb redis.UniversalClient, args []string) error {
	filter, err := c.filter.filter(time.Now())
	if err != nil {
		return err
	}
	refs, err := parseRefs(args)
	if err != nil {
		return err
	}
	queue, err := c.queue.open(ctx, c.a, rdb)
	if err != nil {
		return err
	}
	if c.all {
		// Everything is found first: a letter that dies again meanwhile is not taken twice.
		if refs, err = c.find(ctx, queue, filter); err != nil {
			return err
		}
	}
	document := changeDocument{Topic: c.queue.topic, Group: c.queue.group, DryRun: c.dryRun, Letters: []string{}, Failed: []string{}}
	for _, ref := range refs {
		document.Letters = append(document.Letters, ref.String())
	}
	if !c.dryRun && len(refs) > 0 {
		if err := c.confirm(len(refs)); err != nil {
			return err
		}
		document.Done, err = c.apply(ctx, queue, refs)
		if redisx.IsNoPerm(err) && document.Done == 0 {
			return err
		}
		document.Failed = faultsIn(err)
		if missed := len(refs) - document.Done; err == nil && missed > 0 {
			document.Failed = append(document.Failed, fmt.Sprintf("%s not there", letters(missed)))
		}
	}
	if err := c.a.print(document, func(w io.Writer) { c.table(w, document) }); err != nil {
		return err
	}
	if len(document.Failed) > 0 {
		return fmt.Errorf("%d of %s %s: %s", document.Done, letters(len(refs)), c.done, strings.Join(document.Failed, "; "))
	}
	return nil
}

// find returns the letters that match.
func (c *change) find(ctx context.Context, queue *dlq.Queue, filter dlq.Filter) ([]dlq.Ref, error) {
	var refs []dlq.Ref
	for next, first := "", true; first || next != ""; first = false {
		page, err := queue.List(ctx, filter, next, 1000)
		if err != nil {
			return nil, err
		}
		for i := range page.Letters {
			l := &page.Letters[i]
			if c.limit > 0 && len(refs) == c.limit {
				return refs, nil
			}
			if c.whole && len(l.Fields()) == 0 {
				continue
			}
			refs = append(refs, dlq.Ref{Partition: l.Partition, ID: l.ID})
		}
		next = page.Next
	}
	return refs, nil
}

// confirm asks whether it is meant, where that is worth a question.
func (c *change) confirm(n int) error {
	if c.yes || !c.ask(c.all) {
		return nil
	}
	if !c.a.terminal {
		return command.Unfitf("to %s %s of group %s, topic %s, say --yes: there is no terminal to ask at", c.verb, letters(n), c.queue.group, c.queue.topic)
	}
	fmt.Fprintf(c.a.process.Stderr, "%s %s of group %s, topic %s%s? [y/N] ", c.verb, letters(n), c.queue.group, c.queue.topic, c.warn)
	answer, _ := bufio.NewReader(c.a.process.Stdin).ReadString('\n') // no answer is no
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

func letters(n int) string {
	if n == 1 {
		return "1 letter"
	}
	return fmt.Sprintf("%d letters", n)
}

// faultsIn returns the texts of the errors that were joined.
func faultsIn(err error) []string {
	texts := []string{}
	if err == nil {
		return texts
	}
	for line := range strings.Lines(err.Error()) {
		texts = append(texts, strings.TrimSpace(line))
	}
	return texts
}

func (c *change) table(w io.Writer, d changeDocument) {
	switch {
	case len(d.Letters) == 0:
		fmt.Fprintln(w, "no letters match")
	case d.DryRun:
		for _, ref := range d.Letters {
			fmt.Fprintln(w, ref)
		}
		fmt.Fprintf(w, "%s would be %s\n", letters(len(d.Letters)), c.done)
	default:
		fmt.Fprintf(w, "%d of %s %s\n", d.Done, letters(len(d.Letters)), c.done)
	}
}
