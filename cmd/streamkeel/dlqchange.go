package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// filterFlags select letters.
type filterFlags struct {
	reasons, types []string
	key, err       string
	since, until   string
	redrives       int
}

func (f *filterFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.reasons, "reason", nil, fmt.Sprintf("one of these reasons: %s", joinReasons()))
	flags.StringSliceVar(&f.types, "type", nil, "one of these event types")
	flags.StringVar(&f.key, "key", "", "the event's key")
	flags.StringVar(&f.err, "error", "", "a part of the error's text")
	flags.StringVar(&f.since, "since", "", "died then or later: a time (2026-01-31T09:00:00Z, 2026-01-31) or an age (90m, 36h)")
	flags.StringVar(&f.until, "until", "", "died before: a time or an age")
	flags.IntVar(&f.redrives, "min-redrives", 0, "given back so often before")
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
	filter := dlq.Filter{Types: f.types, Key: f.key, Error: f.err, MinRedrives: f.redrives}
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
	if f.redrives < 0 {
		faults = append(faults, fmt.Errorf("--min-redrives %d is negative", f.redrives))
	}
	if !filter.Until.IsZero() && filter.Until.Before(filter.Since) {
		faults = append(faults, errors.New("--until lies before --since"))
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
	ask    func(all bool) bool
	check  func(cmd *cobra.Command, args []string) error // of flags of its own, or nil
	leave  func(l *dlq.Letter) string                    // why --all leaves a letter out, or ""
	apply  func(ctx context.Context, q *dlq.Queue, refs []dlq.Ref, show func(done int)) (int, error)

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
	// LeftOut counts those that --all left out, by why.
	LeftOut map[string]int `json:"left_out,omitempty"`
}

func newDLQRedrive(a *app) *cobra.Command {
	var how dlq.Redrive
	var edit editFlags
	c := &change{
		a: a, verb: "redrive", done: "redriven", ask: func(all bool) bool { return all },
		check: func(cmd *cobra.Command, args []string) error {
			var faults []error
			if how.PerSecond < 0 {
				faults = append(faults, fmt.Errorf("--rate %d is negative", how.PerSecond))
			}
			if how.MaxRedrives < 1 {
				faults = append(faults, fmt.Errorf("--max-redrives %d must be 1 or more", how.MaxRedrives))
			}
			return errors.Join(append(faults, edit.read(a, cmd, args))...)
		},
		leave: func(l *dlq.Letter) string {
			switch {
			case len(l.Fields()) == 0:
				return "nothing is left of the event"
			case l.Redrives >= how.MaxRedrives:
				return fmt.Sprintf("given back %d times or more (--max-redrives)", how.MaxRedrives)
			}
			return ""
		},
	}
	c.apply = func(ctx context.Context, q *dlq.Queue, refs []dlq.Ref, show func(done int)) (int, error) {
		if edit.file != "" {
			edit.edit.KeepAttempts = how.KeepAttempts
			if err := q.RedriveEdited(ctx, refs[0], edit.edit); err != nil {
				return 0, err
			}
			return 1, nil
		}
		how.Letters, how.Progress = refs, func(sum dlq.Redriven) { show(sum.Done) }
		sum, err := q.RedriveAll(ctx, how)
		return sum.Done, err
	}
	cmd := c.command("redrive [LETTER…]", "Give letters back to their group, to be handled again",
		"Give letters back to their group, to be handled again with fresh attempts. No other group sees them. It may be ended and begun\n"+
			"again at any point: each letter goes back once.")
	flags := cmd.Flags()
	flags.IntVar(&how.PerSecond, "rate", 0, "most letters in a second (default no limit)")
	flags.BoolVar(&how.KeepAttempts, "keep-attempts", false, "attempts go on where they were: what failed as often as it may gets one more")
	flags.IntVar(&how.MaxRedrives, "max-redrives", 10, "with --all, leave out letters that were given back so often before")
	edit.register(cmd)
	return cmd
}

// editFlags are those that put another payload into a letter.
type editFlags struct {
	file string
	edit dlq.Edit
}

func (e *editFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&e.file, "data", "", "file with the payload to put in place of the letter's, or - for standard input; of one letter")
	flags.StringVar(&e.edit.ContentType, "content-type", "", "with --data: what it is (default as before)")
	flags.StringVar(&e.edit.By, "by", "", "with --data: who says so, noted beside the event")
}

// read checks the flags and reads the payload.
func (e *editFlags) read(a *app, cmd *cobra.Command, args []string) error {
	switch {
	case e.file == "" && (cmd.Flags().Changed("content-type") || cmd.Flags().Changed("by")):
		return errors.New("--content-type and --by belong to --data")
	case e.file == "":
		return nil
	case len(args) != 1:
		return errors.New("--data is the payload of one letter: name that one")
	}
	from := a.process.Stdin
	if e.file != "-" {
		file, err := os.Open(e.file)
		if err != nil {
			return fmt.Errorf("--data: %w", err)
		}
		defer func() { _ = file.Close() }() // it was only read
		from = file
	}
	data, err := io.ReadAll(io.LimitReader(from, stream.MaxData+1))
	if err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	e.edit.Data = data
	return nil
}

func newDLQPurge(a *app) *cobra.Command {
	c := &change{
		a: a, verb: "purge", done: "purged", warn: ", for good", ask: func(bool) bool { return true },
		apply: func(ctx context.Context, q *dlq.Queue, refs []dlq.Ref, show func(done int)) (done int, err error) {
			for part := range slices.Chunk(refs, 1000) {
				n, err := q.Purge(ctx, part...)
				if done += n; err != nil {
					return done, err
				}
				show(done)
			}
			return done, nil
		},
	}
	return c.command("purge [LETTER…]", "Delete letters for good", "Delete letters for good.")
}

func (c *change) command(use, short, long string) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long + "\n\nName letters as `dlq list` does (partition/ID), or select them with --all and filters.",
		PreRunE: func(cmd *cobra.Command, args []string) error {
			filtered := false
			for _, name := range []string{"reason", "type", "key", "error", "since", "until", "min-redrives", "limit"} {
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
			if err := c.queue.check(); err != nil || c.check == nil {
				return err
			}
			return command.Unfit(c.check(cmd, args))
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
	document := changeDocument{
		Topic: c.queue.topic, Group: c.queue.group, DryRun: c.dryRun, Letters: []string{}, Failed: []string{}, LeftOut: map[string]int{},
	}
	if c.all {
		// Everything is found first: a letter that dies again meanwhile is not taken twice.
		if refs, err = c.find(ctx, queue, filter, document.LeftOut); err != nil {
			return err
		}
	}
	for _, ref := range refs {
		document.Letters = append(document.Letters, ref.String())
	}
	if !c.dryRun && len(refs) > 0 {
		what := fmt.Sprintf("%s %s of group %s, topic %s", c.verb, letters(len(refs)), c.queue.group, c.queue.topic)
		if err := c.a.confirm(c.yes || !c.ask(c.all), what, c.warn); err != nil {
			return err
		}
		bar := c.a.newProgress(c.verb, len(refs))
		document.Done, err = c.apply(ctx, queue, refs, bar.show)
		bar.end()
		switch {
		case redisx.IsNoPerm(err) && document.Done == 0:
			return err
		case ctx.Err() != nil && document.Done < len(refs):
			return unfinished{fmt.Errorf("ended with %d of %s %s; begin again for the others", document.Done, letters(len(refs)), c.done)}
		case errors.Is(err, stream.ErrUndecodable), errors.Is(err, stream.ErrInvalid):
			return command.Unfitf("--data: %w", err)
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
func (c *change) find(ctx context.Context, queue *dlq.Queue, filter dlq.Filter, leftOut map[string]int) ([]dlq.Ref, error) {
	bar := c.a.newProgress("finding letters", 0)
	defer bar.end()
	var refs []dlq.Ref
	for l, err := range queue.All(ctx, filter) {
		if err != nil {
			return nil, err
		}
		if c.leave != nil {
			if why := c.leave(&l); why != "" {
				leftOut[why]++
				continue
			}
		}
		refs = append(refs, dlq.Ref{Partition: l.Partition, ID: l.ID})
		if bar.show(len(refs)); len(refs) == c.limit {
			break
		}
	}
	return refs, nil
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
	for _, why := range slices.Sorted(maps.Keys(d.LeftOut)) {
		fmt.Fprintf(w, "%s left out: %s\n", letters(d.LeftOut[why]), why)
	}
}
