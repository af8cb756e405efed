package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
)

// exportDocument is what `dlq export --out FILE --json` prints.
type exportDocument struct {
	Topic   string `json:"topic"`
	Group   string `json:"group"`
	File    string `json:"file"`
	Letters int    `json:"letters"`
}

func newDLQExport(a *app) *cobra.Command {
	var q queueFlags
	var f filterFlags
	var out string
	cmd := &cobra.Command{
		Use: "export", Short: "Write letters with every byte of them, as JSON, one a line", Args: cobra.NoArgs,
		Long: "Write letters with every byte of them, as JSON, one a line, to standard output or a new file. The letters stay. `dlq import`\n" +
			"reads them back.",
		PreRunE: func(*cobra.Command, []string) error {
			if a.json && out == "" {
				return command.Unfitf("--json needs --out: letters on standard output are JSON anyhow, one a line")
			}
			return q.check()
		},
		RunE: a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, _ []string) error {
			filter, err := f.filter(time.Now())
			if err != nil {
				return err
			}
			queue, err := q.open(ctx, a, rdb)
			if err != nil {
				return err
			}
			if out == "" {
				_, err := a.export(ctx, queue, filter, a.process.Stdout)
				return err
			}
			n, err := a.exportFile(ctx, queue, filter, out)
			if err != nil {
				return err
			}
			document := exportDocument{Topic: q.topic, Group: q.group, File: out, Letters: n}
			return a.print(document, func(w io.Writer) { fmt.Fprintf(w, "%s written to %s\n", letters(n), command.Visible(out)) })
		}),
	}
	q.register(cmd)
	f.register(cmd)
	cmd.Flags().StringVar(&out, "out", "", "write to this file, which must not exist yet")
	return cmd
}

// export writes the letters that match. What would act on a terminal is escaped, which JSON
// reads back as it was.
func (a *app) export(ctx context.Context, queue *dlq.Queue, filter dlq.Filter, w io.Writer) (n int, err error) {
	bar := a.newProgress("exporting letters", 0)
	defer bar.end()
	for l, err := range queue.All(ctx, filter) {
		var line bytes.Buffer
		if err == nil {
			err = queue.Write(&line, l)
		}
		if err == nil {
			_, err = io.WriteString(w, escapeJSON(line.String()))
		}
		if err != nil {
			return n, err
		}
		n++
		bar.show(n)
	}
	return n, nil
}

// exportFile writes a new file, which is removed again if it is not whole.
func (a *app) exportFile(ctx context.Context, queue *dlq.Queue, filter dlq.Filter, name string) (n int, err error) {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return 0, command.Unfitf("--out %s exists already; name another file", name)
	case err != nil:
		return 0, command.Unfitf("--out: %w", err)
	}
	n, err = a.export(ctx, queue, filter, file)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return n, errors.Join(err, os.Remove(name))
	}
	return n, nil
}

// importDocument is what `dlq import --json` prints.
type importDocument struct {
	Topic string `json:"topic"`
	Group string `json:"group"`
	Added int    `json:"added"`
	// Repeated stand there already, or were imported before.
	Repeated int `json:"repeated"`
}

func newDLQImport(a *app) *cobra.Command {
	var q queueFlags
	var how dlq.Import
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Read back letters that were exported, from a file or - for standard input",
		Long: "Read back letters that were exported, from a file or - for standard input, to the group and the partitions that they were\n" +
			"exported from. Importing again changes nothing: what still stands there, or was imported in the last seven days, is told as repeated.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name one file, or - for standard input")
			}
			return nil
		},
		PreRunE: func(*cobra.Command, []string) error { return q.check() },
		RunE: a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, args []string) error {
			from := a.process.Stdin
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return command.Unfit(err)
				}
				defer func() { _ = file.Close() }() // it was only read
				from = file
			}
			queue, err := q.open(ctx, a, rdb)
			if err != nil {
				return err
			}
			bar := a.newProgress("importing letters", 0)
			how.Progress = func(sum dlq.Imported) { bar.show(sum.Added + sum.Repeated) }
			sum, err := queue.Import(ctx, from, how)
			bar.end()
			if errors.Is(err, dlq.ErrNoExport) {
				return command.Unfitf("%w; %s before it are in, and importing again repeats none", err, letters(sum.Added+sum.Repeated))
			}
			if ctx.Err() != nil && err != nil {
				return unfinished{fmt.Errorf("ended with %s imported; begin again for the others, none is repeated", letters(sum.Added))}
			}
			if err != nil {
				return err
			}
			document := importDocument{Topic: q.topic, Group: q.group, Added: sum.Added, Repeated: sum.Repeated}
			return a.print(document, func(w io.Writer) {
				fmt.Fprintf(w, "%s imported", letters(sum.Added))
				if sum.Repeated > 0 {
					fmt.Fprintf(w, ", %d known before", sum.Repeated)
				}
				fmt.Fprintln(w)
			})
		}),
	}
	q.register(cmd)
	cmd.Flags().BoolVar(&how.Again, "again", false, "import also what was imported before and is gone since")
	return cmd
}
