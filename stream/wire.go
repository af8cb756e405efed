package stream

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// The fields of an event on the wire; docs/wire.md is the contract. The user's
// attributes stand behind attributePrefix, Streamkeel's bookkeeping in retry streams
// and letters behind bookPrefix.
const (
	fieldID          = "id"
	fieldType        = "type"
	fieldSource      = "source"
	fieldSubject     = "subject"
	fieldTime        = "time"
	fieldContentType = "datacontenttype"
	fieldSchema      = "dataschema"
	fieldCorrelation = "correlationid"
	fieldCausation   = "causationid"
	fieldTraceParent = "traceparent"
	fieldExpires     = "expirytime"
	fieldSequence    = "sequence"
	fieldData        = "data"

	maxFields = 1000 // of any name, in one entry

	attributePrefix = "x-"
	bookPrefix      = "sk-"
)

// AppendFields appends the event as it stands on the wire, name after value, to the
// arguments of an XADD. Absent fields are left out. Most are passed by pointer, which
// spares an allocation each: e must not change until the command was sent.
func (e *Event) AppendFields(args []any) []any {
	text := func(name any, value *string) {
		if *value != "" {
			args = append(args, name, value)
		}
	}
	moment := func(name any, value *time.Time) {
		switch {
		case value.IsZero():
		case value.Location() == time.UTC:
			args = append(args, name, value) // go-redis writes it as below
		default:
			args = append(args, name, value.UTC().Format(time.RFC3339Nano))
		}
	}
	text(fieldID, &e.ID)
	text(fieldType, &e.Type)
	text(fieldSource, &e.Source)
	text(fieldSubject, &e.Key)
	moment(fieldTime, &e.Time)
	text(fieldContentType, &e.ContentType)
	text(fieldSchema, &e.Schema)
	text(fieldCorrelation, &e.CorrelationID)
	text(fieldCausation, &e.CausationID)
	text(fieldTraceParent, &e.TraceParent)
	moment(fieldExpires, &e.Expires)
	if !e.Sequence.IsZero() {
		args = append(args, fieldSequence, e.Sequence.String())
	}
	if len(e.Attributes) > 0 {
		for _, name := range slices.Sorted(maps.Keys(e.Attributes)) {
			args = append(args, attributePrefix+name, e.Attributes[name])
		}
	}
	return append(args, fieldData, (*string)(unsafe.Pointer(&e.Data))) // a slice begins as a string does
}

// Entry is an event in a stream.
type Entry struct {
	// Stream is the key of the stream, ID the entry's ID in it.
	Stream string
	ID     ID
	// Event is what the entry says. Where Err is set it holds what could be read.
	Event Event
	// Err says why the entry is no event on the wire (ErrMalformed), or is nil.
	Err error
	// Book is Streamkeel's bookkeeping, without its prefix "sk-": retry streams and
	// dead letters have it.
	Book map[string]string

	raw []byte // the RESP array of the entry's fields
}

// NewEntry makes an entry of fields, name after value, as they stand in a stream: for
// archives and tests. Entry.Err tells where they are no event.
func NewEntry(streamKey string, id ID, fields []string) (Entry, error) {
	if len(fields)%2 != 0 {
		return Entry{}, fmt.Errorf("stream: %w entry %s: %d names and values", ErrInvalid, id, len(fields))
	}
	raw := fmt.Appendf(nil, "*%d\r\n", len(fields))
	for _, f := range fields {
		raw = fmt.Appendf(raw, "$%d\r\n%s\r\n", len(f), f)
	}
	en := Entry{Stream: streamKey, ID: id, raw: raw}
	r := redisx.NewReply(raw)
	spans, _, err := r.Strings(nil)
	en.decode(spans)
	return en, err
}

// Fields returns the entry's fields as they stand in the stream, in order, repeated
// ones too, and whatever some other program wrote.
func (en *Entry) Fields() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		r := redisx.NewReply(en.raw)
		n, _ := r.Array()
		for range n / 2 {
			name, err1 := r.Bytes()
			value, err2 := r.Bytes()
			if err1 != nil || err2 != nil || !yield(asString(name), asString(value)) {
				return
			}
		}
	}
}

// DecodeEntry reads one entry, an array of ID and fields, of a reply to XREADGROUP,
// XREAD or XRANGE. The error is about the reply; an entry that is no event has its own Err. An entry
// that was deleted and is still pending has no fields and answers ok = false.
// The entry shares no memory with the reply.
func DecodeEntry(r *redisx.Reply, streamKey string) (en Entry, ok bool, err error) {
	n, err := r.Array()
	if err != nil {
		return Entry{}, false, err
	}
	if n != 2 {
		return Entry{}, false, fmt.Errorf("%w: entry of %d values", redisx.ErrReply, n)
	}
	idText, err := r.Bytes()
	if err != nil {
		return Entry{}, false, err
	}
	en.Stream = streamKey
	if en.ID, err = ParseID(asString(idText)); err != nil {
		return Entry{}, false, err
	}
	start := r.Pos()
	var few [32]redisx.Span
	spans, ok, err := r.Strings(few[:0])
	if err != nil {
		return Entry{}, false, err
	}
	en.raw = append([]byte(nil), r.Since(start)...)
	if ok {
		en.decode(spans)
	}
	return en, ok, nil
}

// DecodeEntries reads the reply to an XREAD or XREADGROUP, and calls fn for every entry
// in it. An entry that was deleted and is still pending has ok = false.
func DecodeEntries(r *redisx.Reply, fn func(en Entry, ok bool) error) error {
	paired := r.Kind() == '*' // RESP2 wraps each stream with its name, RESP3 has a map
	streams, err := r.Array()
	if err != nil {
		return err
	}
	if !paired {
		streams /= 2
	}
	for range streams {
		if paired {
			if _, err := r.Array(); err != nil {
				return err
			}
		}
		name, err := r.Bytes()
		if err != nil {
			return err
		}
		key := string(name)
		entries, err := r.Array()
		if err != nil {
			return err
		}
		for range entries {
			en, ok, err := DecodeEntry(r, key)
			if err != nil {
				return err
			}
			if err := fn(en, ok); err != nil {
				return err
			}
		}
	}
	return nil
}

// decode reads the fields into the event: names and values, which stand at these places in
// en.raw. Its strings and data share memory with that, which nothing changes.
func (en *Entry) decode(fields []redisx.Span) {
	e := &en.Event
	fault := func(format string, args ...any) {
		if en.Err == nil {
			en.Err = fmt.Errorf("stream: %w %s in %s: "+format, append([]any{ErrMalformed, en.ID, en.Stream}, args...)...)
		}
	}
	if count := len(fields) / 2; count > maxFields {
		fault("%d fields, %d are allowed", count, maxFields)
	}
	attributes := 0
	for ; len(fields) >= 2; fields = fields[2:] {
		name, value := fields[0].Of(en.raw), fields[1].Of(en.raw)
		text := asString(value)
		set := func(to *string, limit int) {
			switch {
			case *to != "":
				fault("field %s is repeated", name)
			case len(value) > limit:
				fault("field %s has %d bytes, %d are allowed", name, len(value), limit)
			case !utf8.ValidString(text):
				fault("field %s is not UTF-8", name)
			default:
				*to = text
			}
		}
		setTime := func(to *time.Time) {
			t, err := time.Parse(time.RFC3339, text)
			if err != nil {
				fault("field %s is no RFC 3339 time: %.60q", name, text)
			}
			*to = t
		}
		switch asString(name) {
		case fieldID:
			set(&e.ID, maxName)
		case fieldType:
			set(&e.Type, maxName)
		case fieldSource:
			set(&e.Source, maxSource)
		case fieldSubject:
			set(&e.Key, maxKey)
		case fieldTime:
			setTime(&e.Time)
		case fieldContentType:
			set(&e.ContentType, maxName)
		case fieldSchema:
			set(&e.Schema, maxSource)
		case fieldCorrelation:
			set(&e.CorrelationID, maxName)
		case fieldCausation:
			set(&e.CausationID, maxName)
		case fieldTraceParent:
			set(&e.TraceParent, maxName)
		case fieldExpires:
			setTime(&e.Expires)
		case fieldSequence:
			position, err := ParsePosition(text)
			if err != nil {
				fault("field %s is no position: %.60q", name, text)
			}
			e.Sequence = position
		case fieldData:
			if e.Data != nil {
				fault("field %s is repeated", name)
			}
			e.Data = value
		default:
			if book, ok := strings.CutPrefix(asString(name), bookPrefix); ok {
				if en.Book == nil {
					en.Book = map[string]string{}
				}
				en.Book[book] = text
			} else if attribute, ok := strings.CutPrefix(asString(name), attributePrefix); ok {
				if attributes++; attributes > maxAttrs || len(value) > maxAttribute || !isAttributeName(attribute) {
					fault("attribute %.40q: at most %d, named [a-z0-9]{1,20}, of %d bytes", attribute, maxAttrs, maxAttribute)
					continue
				}
				if e.Attributes == nil {
					e.Attributes = map[string]string{}
				}
				e.Attributes[attribute] = text
			}
		}
	}
	if e.ID == "" {
		fault("field %s is missing", fieldID)
	}
	if e.Type == "" {
		fault("field %s is missing", fieldType)
	}
}

// asString returns the bytes as a string without copying; the bytes must not change.
func asString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
