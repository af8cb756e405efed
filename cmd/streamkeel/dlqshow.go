package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/stream"
)

// showDocument is what `dlq show --json` prints.
type showDocument struct {
	Letters []letterDocument `json:"letters"`
}

type letterDocument struct {
	letterRow
	// Malformed says why the entry is no event on the wire, "" where it is one.
	Malformed string `json:"malformed,omitempty"`
	// Fields are the entry's own, as they were written. Values that are no text stand as
	// base64.
	Fields []fieldRow `json:"fields"`
	// Data is the payload, decoded, where that is possible.
	Data json.RawMessage `json:"data,omitempty"`
}

type fieldRow struct {
	Name   string `json:"name"`
	Value  string `json:"value,omitempty"`
	Base64 string `json:"base64,omitempty"`
}

func newDLQShow(a *app) *cobra.Command {
	var q queueFlags
	cmd := &cobra.Command{
		Use: "show LETTER…", Short: "Show letters with everything that is in them", Args: someLetters,
		PreRunE: func(*cobra.Command, []string) error { return q.check() },
		RunE: a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, args []string) error {
			refs, err := parseRefs(args)
			if err != nil {
				return err
			}
			queue, err := q.open(ctx, a, rdb)
			if err != nil {
				return err
			}
			document := showDocument{Letters: []letterDocument{}}
			for _, ref := range refs {
				l, err := queue.Get(ctx, ref)
				if err != nil {
					return err
				}
				document.Letters = append(document.Letters, letterDocumentOf(&l))
			}
			return a.print(document, document.text)
		}),
	}
	q.register(cmd)
	return cmd
}

func someLetters(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("name letters as the list does: 3/1700000000000-0 (partition/ID)")
	}
	return nil
}

func parseRefs(args []string) ([]dlq.Ref, error) {
	refs := make([]dlq.Ref, len(args))
	var faults []error
	for i, arg := range args {
		var err error
		if refs[i], err = dlq.ParseRef(arg); err != nil {
			faults = append(faults, err)
		}
	}
	return refs, command.Unfit(errors.Join(faults...))
}

func letterDocumentOf(l *dlq.Letter) letterDocument {
	d := letterDocument{letterRow: letterRowOf(l), Fields: []fieldRow{}}
	if l.Entry.Err != nil {
		d.Malformed = l.Entry.Err.Error()
	}
	fields := l.Fields()
	for i := 0; i+1 < len(fields); i += 2 {
		row := fieldRow{Name: fields[i], Value: fields[i+1]}
		if !utf8.ValidString(row.Value) {
			row.Value, row.Base64 = "", base64.StdEncoding.EncodeToString([]byte(row.Value))
		}
		d.Fields = append(d.Fields, row)
	}
	if len(l.Entry.Event.Data) > 0 {
		// Decoding heeds the limits under which consumers decode.
		if v, err := stream.Define[any]("any").Decode(l.Entry.Event); err == nil {
			if data, err := json.Marshal(v); err == nil {
				d.Data = data
			}
		}
	}
	return d
}

func (d showDocument) text(w io.Writer) {
	for i, l := range d.Letters {
		if i > 0 {
			fmt.Fprintln(w)
		}
		line := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "%-12s%s\n", name, command.Visible(value))
			}
		}
		line("letter", l.Ref)
		line("reason", string(l.Reason))
		line("error", l.Error)
		if l.Died != nil {
			line("died", moment(*l.Died))
		}
		if l.FirstSeen != nil {
			line("first seen", moment(*l.FirstSeen))
		}
		line("attempts", strconv.Itoa(l.Attempts))
		line("deliveries", strconv.Itoa(l.Deliveries))
		line("redrives", strconv.Itoa(l.Redrives))
		line("consumer", l.Consumer)
		line("origin", l.OriginStream+" "+l.OriginID)
		line("malformed", l.Malformed)
		if len(l.Fields) == 0 {
			fmt.Fprintln(w, "nothing is left of the event")
		}
		for _, f := range l.Fields {
			value := f.Value
			if f.Base64 != "" {
				value = "base64 " + f.Base64
			}
			if f.Name == "data" && l.Data != nil {
				value = string(l.Data)
			}
			fmt.Fprintf(w, "  %s: %s\n", command.Visible(f.Name), command.Visible(shorten(value, 16<<10)))
		}
	}
}
