package dlq

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/import.lua
	importText   string
	importScript = redisx.NewScript(importText)
)

// ErrNoExport says that a line is no exported letter of the group that imports it.
var ErrNoExport = errors.New("no exported letter of this group")

// Field is a field of an entry in JSON. What is no text stands in base64.
type Field struct {
	Name       string `json:"name"`
	NameBase64 []byte `json:"name_base64,omitempty"`
	Value      string `json:"value,omitempty"`
	Base64     []byte `json:"base64,omitempty"`
}

// NewField returns a field that keeps the bytes of name and value exactly.
func NewField(name, value string) Field {
	f := Field{Name: name, Value: value}
	if !utf8.ValidString(name) {
		f.Name, f.NameBase64 = "", []byte(name)
	}
	if !utf8.ValidString(value) {
		f.Value, f.Base64 = "", []byte(value)
	}
	return f
}

// Text returns name and value as NewField got them.
func (f Field) Text() (name, value string) {
	name, value = f.Name, f.Value
	if f.NameBase64 != nil {
		name = string(f.NameBase64)
	}
	if f.Base64 != nil {
		value = string(f.Base64)
	}
	return name, value
}

// exported is a line of an export: a letter with all of its fields, in order.
type exported struct {
	Topic  string  `json:"topic"`
	Group  string  `json:"group"`
	Letter string  `json:"letter"`
	Fields []Field `json:"fields"`
}

// Export writes the letters that match as JSON, one a line, with every field as it stands in
// Redis, and returns how many it wrote. The letters stay.
func (q *Queue) Export(ctx context.Context, w io.Writer, f Filter) (int, error) {
	buffered := bufio.NewWriter(w)
	n := 0
	for l, err := range q.All(ctx, f) {
		if err == nil {
			err = q.Write(buffered, l)
		}
		if err != nil {
			return n, errors.Join(err, buffered.Flush())
		}
		n++
	}
	return n, buffered.Flush()
}

// Write writes letters as Export does. It can be what a [Retention] archives with.
func (q *Queue) Write(w io.Writer, letters ...Letter) error {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	for i := range letters {
		line := exported{Topic: q.topic.Name, Group: q.group, Letter: letters[i].Ref()}
		for name, value := range letters[i].Entry.Fields() {
			line.Fields = append(line.Fields, NewField(name, value))
		}
		if err := encoder.Encode(line); err != nil {
			return fmt.Errorf("dlq: write letter %s: %w", line.Letter, err)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Import is how letters are read back.
type Import struct {
	// Again imports also what was imported in the last seven days, which else changes nothing.
	Again bool
	// Progress is told after each step. Default: nobody.
	Progress func(Imported)
}

// Imported counts what became of the lines of an export.
type Imported struct {
	// Added are letters now.
	Added int
	// Repeated stand here as they were exported, or were imported before.
	Repeated int
}

// importMemory is for how long a letter is known to have been imported.
const importMemory = 7 * 24 * time.Hour

// Bounds of a line of an export, which is read into memory, and of what a script can pass on.
const (
	maxLine   = 64 << 20
	maxFields = 3100 // fields of a letter; an entry of more was packed into one
)

// Import adds the letters of an export, to the partitions that they were exported from, with
// every field as it was; their IDs are new. Importing again changes nothing: a letter that
// still stands here, or was imported in the last seven days (also where it was redriven or
// purged since), is counted as repeated. It ends with the first line that is no letter of this
// topic and group; the letters before that one are in.
func (q *Queue) Import(ctx context.Context, r io.Reader, how Import) (Imported, error) {
	run := importRun{q: q, how: how}
	lines := bufio.NewReaderSize(r, 64<<10)
	for number := 1; ; number++ {
		line, err := readLine(lines)
		end := err == io.EOF
		if end {
			err = nil
		}
		if err == nil && len(bytes.TrimSpace(line)) > 0 {
			err = run.take(ctx, line)
		}
		if err != nil {
			err = fmt.Errorf("dlq: import line %d: %w", number, err)
		}
		if err != nil || end {
			err = errors.Join(err, run.flush(ctx))
			return run.sum, err
		}
	}
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if line = append(line, part...); len(line) > maxLine {
			return nil, fmt.Errorf("%w: it has more than %d bytes", ErrNoExport, maxLine)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// importRun collects letters of one partition until they are worth a call.
type importRun struct {
	q         *Queue
	how       Import
	partition int
	letters   int
	bytes     int
	args      []any
	sum       Imported
}

func (r *importRun) take(ctx context.Context, line []byte) error {
	ref, e, err := r.q.parse(line)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoExport, err)
	}
	if r.letters > 0 && (ref.Partition != r.partition || r.letters == readCount || r.bytes >= callBytes) {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	fields := make([]any, 0, 2*len(e.Fields))
	digest := sha256.New()
	_, _ = fmt.Fprintf(digest, "%s\n", e.Letter)
	for _, f := range e.Fields {
		name, value := f.Text()
		_, _ = fmt.Fprintf(digest, "%d %s %d %s\n", len(name), name, len(value), value)
		fields = append(fields, name, value)
		r.bytes += len(name) + len(value)
	}
	r.partition = ref.Partition
	r.letters++
	r.args = append(append(r.args, ref.ID.String(), string(digest.Sum(nil)[:16]), len(fields)), fields...)
	return nil
}

// parse reads a line and checks that it may be a letter here.
func (q *Queue) parse(line []byte) (Ref, exported, error) {
	var e exported
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil {
		return Ref{}, e, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return Ref{}, e, errors.New("something follows it")
	}
	ref, err := ParseRef(e.Letter)
	switch {
	case err != nil:
		return Ref{}, e, err
	case e.Topic != q.topic.Name || e.Group != q.group:
		return Ref{}, e, fmt.Errorf("it is of group %.140q, topic %.140q, not of group %s, topic %s", e.Group, e.Topic, q.group, q.topic.Name)
	case ref.Partition >= q.topic.Count():
		return Ref{}, e, fmt.Errorf("it is of partition %d; topic %s has %d partitions", ref.Partition, q.topic.Name, q.topic.Count())
	case len(e.Fields) == 0 || len(e.Fields) > maxFields:
		return Ref{}, e, fmt.Errorf("it has %d fields, 1 to %d are allowed", len(e.Fields), maxFields)
	}
	if !slices.ContainsFunc(e.Fields, func(f Field) bool { return f.Name == "sk-reason" }) {
		return Ref{}, e, errors.New("the field sk-reason is missing")
	}
	return ref, e, nil
}

func (r *importRun) flush(ctx context.Context) error {
	if r.letters == 0 {
		return nil
	}
	keys := []string{r.q.deadKey(r.partition), stream.KeyImported.Key(r.q.topic.StreamKey(r.partition), r.q.group)}
	args := append([]any{int64(importMemory / time.Second), r.how.Again}, r.args...)
	r.letters, r.bytes, r.args = 0, 0, nil
	replies, err := importScript.Run(ctx, r.q.rdb, keys, args...).StringSlice()
	var faults []error
	for _, reply := range replies {
		switch reply {
		case "added":
			r.sum.Added++
		case "repeated":
			r.sum.Repeated++
		default:
			faults = append(faults, redisx.ServerError(strings.TrimSpace(reply)))
		}
	}
	if r.how.Progress != nil {
		r.how.Progress(r.sum)
	}
	return r.q.fail("import", errors.Join(append(faults, err)...))
}
