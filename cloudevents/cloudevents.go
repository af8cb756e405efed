// Package cloudevents converts events to and from CloudEvents 1.0, in JSON and in the
// binary mode of HTTP. Streamkeel's fields are CloudEvents attributes already, subject
// being the key; correlation, causation, trace, expiry, sequence and the user's own
// attributes are extensions.
package cloudevents

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// ErrInvalid says that something is no CloudEvent, or an event that cannot be one.
var ErrInvalid = errors.New("cloudevents: invalid event")

const specVersion = "1.0"

// attribute is an event's field under its CloudEvents name, as text.
type attribute struct {
	name string
	get  func(e *stream.Event) string
	set  func(e *stream.Event, text string) error
}

// attributes are all that Streamkeel knows; a user's own attribute may have none of their names.
var attributes = []attribute{
	plain("id", func(e *stream.Event) *string { return &e.ID }),
	plain("source", func(e *stream.Event) *string { return &e.Source }),
	plain("type", func(e *stream.Event) *string { return &e.Type }),
	plain("subject", func(e *stream.Event) *string { return &e.Key }),
	plain("datacontenttype", func(e *stream.Event) *string { return &e.ContentType }),
	{"dataschema", schemaURI, setSchemaURI},
	plain("correlationid", func(e *stream.Event) *string { return &e.CorrelationID }),
	plain("causationid", func(e *stream.Event) *string { return &e.CausationID }),
	plain("traceparent", func(e *stream.Event) *string { return &e.TraceParent }),
	moment("time", func(e *stream.Event) *time.Time { return &e.Time }),
	moment("expirytime", func(e *stream.Event) *time.Time { return &e.Expires }),
	{
		"sequence",
		func(e *stream.Event) string {
			if e.Sequence.IsZero() {
				return ""
			}
			return e.Sequence.String()
		},
		func(e *stream.Event, text string) (err error) {
			e.Sequence, err = stream.ParsePosition(text)
			return err
		},
	},
}

func plain(name string, field func(*stream.Event) *string) attribute {
	return attribute{
		name,
		func(e *stream.Event) string { return *field(e) },
		func(e *stream.Event, text string) error { *field(e) = text; return nil },
	}
}

// schemaScheme makes an absolute URI, as CloudEvents wants, of a schema such as order.placed/v2.
const schemaScheme = "streamkeel:"

func schemaURI(e *stream.Event) string {
	u, err := url.Parse(e.Schema)
	if e.Schema == "" || err == nil && u.IsAbs() && u.Scheme+":" != schemaScheme {
		return e.Schema
	}
	return schemaScheme + (&url.URL{Path: e.Schema}).EscapedPath()
}

func setSchemaURI(e *stream.Event, text string) (err error) {
	path, ours := strings.CutPrefix(text, schemaScheme)
	if e.Schema = text; ours {
		e.Schema, err = url.PathUnescape(path)
	}
	return err
}

func moment(name string, field func(*stream.Event) *time.Time) attribute {
	return attribute{
		name,
		func(e *stream.Event) string {
			if t := *field(e); !t.IsZero() {
				return t.UTC().Format(time.RFC3339Nano)
			}
			return ""
		},
		func(e *stream.Event, text string) error {
			t, err := time.Parse(time.RFC3339Nano, text)
			*field(e) = t.UTC()
			return err
		},
	}
}

// all returns the attributes of an event that are there, by name.
func all(e *stream.Event) (map[string]string, error) {
	if err := e.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if e.Source == "" {
		return nil, fmt.Errorf("%w: source is empty, and CloudEvents requires one; publishing sets it", ErrInvalid)
	}
	found := maps.Clone(e.Attributes)
	if found == nil {
		found = map[string]string{}
	}
	for _, a := range attributes {
		if _, taken := found[a.name]; taken {
			return nil, fmt.Errorf("%w: the attribute %s has a name that CloudEvents or Streamkeel uses", ErrInvalid, a.name)
		}
		if text := a.get(e); text != "" {
			found[a.name] = text
		}
	}
	for _, reserved := range []string{"specversion", "data", "data_base64"} {
		if _, taken := found[reserved]; taken {
			return nil, fmt.Errorf("%w: the attribute %s has a name that CloudEvents uses", ErrInvalid, reserved)
		}
	}
	return found, nil
}

// set puts an attribute into an event.
func set(e *stream.Event, name, text string) error {
	i := slices.IndexFunc(attributes, func(a attribute) bool { return a.name == name })
	if i >= 0 {
		if err := attributes[i].set(e, text); err != nil {
			return fmt.Errorf("%w: attribute %s: %w", ErrInvalid, name, err)
		}
		return nil
	}
	if e.Attributes == nil {
		e.Attributes = map[string]string{}
	}
	e.Attributes[name] = text
	return nil
}

// isJSON reports whether a payload stands in a JSON event as it is.
func isJSON(contentType string) bool {
	base, _, _ := strings.Cut(contentType, ";")
	base = strings.TrimSpace(strings.ToLower(base))
	return base == "application/json" || base == "text/json" || strings.HasSuffix(base, "+json")
}

// ContentType is that of an event in JSON.
const ContentType = "application/cloudevents+json"

// Marshal returns the event in the JSON format. A JSON payload stands in it as data, any
// other as data_base64.
func Marshal(e stream.Event) ([]byte, error) {
	found, err := all(&e)
	if err != nil {
		return nil, err
	}
	doc := map[string]any{"specversion": specVersion}
	for name, text := range found {
		doc[name] = text
	}
	switch {
	case len(e.Data) == 0:
	case isJSON(e.ContentType):
		if !json.Valid(e.Data) {
			return nil, fmt.Errorf("%w: data is not the JSON that its content type says", ErrInvalid)
		}
		doc["data"] = json.RawMessage(e.Data)
	default:
		doc["data_base64"] = e.Data // encoding/json makes base64 of bytes
	}
	return json.Marshal(doc)
}

// Unmarshal reads an event in the JSON format.
func Unmarshal(document []byte) (stream.Event, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(document, &doc); err != nil {
		return stream.Event{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var e stream.Event
	var version string
	for _, name := range slices.Sorted(maps.Keys(doc)) {
		raw := doc[name]
		if name == "data" || name == "data_base64" || bytes.Equal(raw, []byte("null")) {
			continue
		}
		text, err := attributeText(raw)
		if err != nil {
			return stream.Event{}, fmt.Errorf("%w: attribute %.40q: %w", ErrInvalid, name, err)
		}
		if name == "specversion" {
			version = text
		} else if err := set(&e, name, text); err != nil {
			return stream.Event{}, err
		}
	}
	if err := readData(&e, doc); err != nil {
		return stream.Event{}, err
	}
	return checked(e, version)
}

// attributeText returns a JSON attribute, a string, number or boolean, as text.
func attributeText(raw json.RawMessage) (string, error) {
	var text string
	if raw[0] == '"' {
		err := json.Unmarshal(raw, &text)
		return text, err
	}
	if raw[0] == '{' || raw[0] == '[' {
		return "", errors.New("a structure")
	}
	return string(raw), nil
}

func readData(e *stream.Event, doc map[string]json.RawMessage) error {
	data, inBase64 := doc["data"], doc["data_base64"]
	switch {
	case data != nil && inBase64 != nil:
		return fmt.Errorf("%w: both data and data_base64", ErrInvalid)
	case inBase64 != nil:
		var text string
		if err := json.Unmarshal(inBase64, &text); err != nil {
			return fmt.Errorf("%w: data_base64: %w", ErrInvalid, err)
		}
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return fmt.Errorf("%w: data_base64: %w", ErrInvalid, err)
		}
		e.Data = decoded
	case data == nil:
	case e.ContentType == "":
		e.ContentType, e.Data = stream.ContentTypeJSON, data // what the format says of its absence
	case isJSON(e.ContentType):
		e.Data = data
	default: // text in a JSON string, of a type that is not JSON
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return fmt.Errorf("%w: data of content type %.60q is no string: %w", ErrInvalid, e.ContentType, err)
		}
		e.Data = []byte(text)
	}
	return nil
}

func checked(e stream.Event, version string) (stream.Event, error) {
	if version != specVersion {
		return stream.Event{}, fmt.Errorf("%w: specversion %.20q is not %s", ErrInvalid, version, specVersion)
	}
	if e.Source == "" {
		return stream.Event{}, fmt.Errorf("%w: source is missing", ErrInvalid)
	}
	if err := e.Validate(); err != nil {
		return stream.Event{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return e, nil
}

// headerPrefix starts the header of each attribute in binary mode.
const headerPrefix = "Ce-"

// WriteHTTP returns the event in the binary mode of the HTTP binding: attributes as
// headers, the payload as the body.
func WriteHTTP(e stream.Event) (http.Header, []byte, error) {
	found, err := all(&e)
	if err != nil {
		return nil, nil, err
	}
	h := http.Header{}
	h.Set(headerPrefix+"specversion", specVersion)
	for name, text := range found {
		if name == "datacontenttype" {
			h.Set("Content-Type", text)
			continue
		}
		h.Set(headerPrefix+name, escape(text))
	}
	return h, e.Data, nil
}

// ReadHTTP reads an event in binary mode; the body is read up to stream.MaxData bytes. A header whose
// percent-encoding is none is taken as it stands.
func ReadHTTP(h http.Header, body io.Reader) (stream.Event, error) {
	data, err := io.ReadAll(io.LimitReader(body, stream.MaxData+1))
	if err != nil {
		return stream.Event{}, fmt.Errorf("cloudevents: read body: %w", err)
	}
	e := stream.Event{ContentType: h.Get("Content-Type")}
	if len(data) > 0 {
		e.Data = data
	}
	for header, values := range h {
		name, ok := strings.CutPrefix(header, headerPrefix)
		if !ok || name == "Specversion" {
			continue
		}
		if len(values) != 1 {
			return stream.Event{}, fmt.Errorf("%w: header %s is repeated", ErrInvalid, header)
		}
		text, err := url.PathUnescape(values[0])
		if err != nil {
			text = values[0] // as the official SDK for Go writes it, which escapes nothing
		}
		if err := set(&e, strings.ToLower(name), text); err != nil {
			return stream.Event{}, err
		}
	}
	return checked(e, h.Get(headerPrefix+"Specversion"))
}

// escape percent-encodes what a header may not hold, as the HTTP binding says: space,
// double quote, percent, and everything outside of printable ASCII.
func escape(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		if c > ' ' && c < 0x7f && c != '"' && c != '%' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		hex := strings.ToUpper(strconv.FormatUint(uint64(c), 16))
		if len(hex) == 1 {
			b.WriteByte('0')
		}
		b.WriteString(hex)
	}
	return b.String()
}
