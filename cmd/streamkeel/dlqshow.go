package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

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
	// Fields are the entry's own, as they were written.
	Fields []dlq.Field `json:"fields"`
	// Data is the payload, decoded, where that is possible.
	Data json.RawMessage `json:"data,omitempty"`
}

func newDLQShow(a *app) *cobra.Command {
	var q queueFlags
	var raw bool
	cmd := &cobra.Command{
		Use: "show LETTER…", Short: "Show letters with everything that is in them", Args: someLetters,
		Long: "Show letters with everything that is in them. A payload stands decoded where that is possible, with --raw as it was written.\n" +
			"With --json there are both.",
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
			return a.print(document, func(w io.Writer) { document.text(w, raw) })
		}),
	}
	q.register(cmd)
	cmd.Flags().BoolVar(&raw, "raw", false, "payloads as they were written")
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
	d := letterDocument{letterRow: letterRowOf(l), Fields: []dlq.Field{}, Data: decoded(&l.Entry.Event)}
	if l.Entry.Err != nil {
		d.Malformed = l.Entry.Err.Error()
	}
	fields := l.Fields()
	for i := 0; i+1 < len(fields); i += 2 {
		d.Fields = append(d.Fields, dlq.NewField(fields[i], fields[i+1]))
	}
	return d
}

// decoded returns the payload as JSON, or nil where it is none of its content type or JSON has
// no words for it. Decoding heeds the limits under which consumers decode.
func decoded(e *stream.Event) json.RawMessage {
	codec := stream.CodecFor(e.ContentType)
	if codec == nil || len(e.Data) == 0 {
		return nil
	}
	var v any
	if err := codec.Decode(e.Data, &v); err != nil {
		return nil
	}
	var b bytes.Buffer
	if codec == stream.JSON { // as it was written: v has lost digits of large numbers
		if err := json.Compact(&b, e.Data); err != nil {
			return nil
		}
		return b.Bytes()
	}
	data, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return data
}

// text writes the letters for people: with their payload decoded where that is possible, or
// as it was written.
func (d showDocument) text(w io.Writer, raw bool) {
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
		if l.Redrives > 0 && l.FirstDied != nil {
			line("first died", moment(*l.FirstDied)+", "+string(l.FirstReason)+": "+l.FirstError)
		}
		if l.Edited != nil {
			line("edited", strings.TrimSuffix(moment(*l.Edited)+" by "+l.Editor, " by "))
			line("original", "payload of SHA-256 "+l.Original)
		}
		line("consumer", l.Consumer)
		line("origin", l.OriginStream+" "+l.OriginID)
		line("malformed", l.Malformed)
		if len(l.Fields) == 0 {
			fmt.Fprintln(w, "nothing is left of the event")
		}
		for _, f := range l.Fields {
			name, value := f.Text()
			switch {
			case name == "data" && l.Data != nil && !raw:
				value = string(l.Data)
			case f.Base64 != nil:
				value = "base64 " + base64.StdEncoding.EncodeToString(f.Base64)
			}
			fmt.Fprintf(w, "  %s: %s\n", command.Visible(name), command.Visible(shorten(value, 16<<10)))
		}
	}
}
