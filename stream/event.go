package stream

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Event is something that was said, as CloudEvents describes it. Events come from
// [Definition.Event] or [NewEvent], which give them an id and a time. Two events are
// the same if Source and ID are.
type Event struct {
	// ID is unique within Source; constructors set a UUIDv7.
	ID string
	// Type says what kind of event this is, such as "order.placed".
	Type string
	// Source is who said it. Default: the topic's Source, else the topic's name.
	Source string
	// Key is what order is kept for (CloudEvents calls it subject). Events without a
	// key are spread over the partitions.
	Key string
	// Time is when it was said.
	Time time.Time
	// ContentType says what Data is, by default application/vnd.msgpack.
	ContentType string
	// Schema names the schema or version of Data (CloudEvents: dataschema).
	Schema string
	// CorrelationID is shared by all events of one conversation, CausationID is the id
	// of the event whose handling published this one, TraceParent is a W3C trace
	// context. Publishing takes them from the context where they are empty.
	CorrelationID string
	CausationID   string
	TraceParent   string
	// Expires is when handling the event stops making sense; zero means never.
	Expires time.Time
	// Sequence is the position in the outbox, set by the relay only.
	Sequence Position
	// Data is the payload.
	Data []byte
	// Attributes are the user's own, with names of [a-z0-9]{1,20}.
	Attributes map[string]string

	err error // what went wrong while it was made; publishing returns it
}

// NewEvent returns an event with a payload that is encoded already.
func NewEvent(eventType, key, contentType string, data []byte) Event {
	e := Event{Type: eventType, Key: key, ContentType: contentType, Data: data, Time: time.Now().UTC().Truncate(time.Microsecond)}
	id, err := uuid.NewV7()
	if err != nil {
		e.err = fmt.Errorf("stream: event id: %w", err)
	}
	e.ID = id.String()
	return e
}

// Err returns why the event cannot be published, as far as its constructor knows:
// its value failed validation or encoding.
func (e *Event) Err() error { return e.err }

// Bounds of an event's fields, in bytes. They keep every event within what the inbox's
// index, Postgres and Redis take.
const (
	maxName      = 200
	maxSource    = 300
	maxKey       = 1024
	maxAttribute = 4096
	maxAttrs     = 32
	// MaxData is the largest payload. Store larger ones elsewhere and publish a reference.
	MaxData = 1 << 20
)

// timesEnd is the first time that RFC 3339 cannot write.
var timesEnd = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)

// Validate reports every rule that the event breaks, joined, as ErrInvalid.
func (e *Event) Validate() error {
	if e.err != nil {
		return e.err
	}
	var faults []error
	text := func(name, value string, limit int) {
		if len(value) > limit {
			faults = append(faults, fmt.Errorf("%s has %d bytes, %d are allowed", name, len(value), limit))
		} else if strings.IndexByte(value, 0) >= 0 || !utf8.ValidString(value) {
			faults = append(faults, fmt.Errorf("%s is not UTF-8 text without NUL", name))
		}
	}
	moment := func(name string, at time.Time) {
		if at.Before(time.Time{}) || !at.Before(timesEnd) {
			faults = append(faults, fmt.Errorf("%s lies in the year %d, RFC 3339 ends at 9999", name, at.UTC().Year()))
		}
	}
	if e.ID == "" {
		faults = append(faults, errors.New("id is empty"))
	}
	if e.Type == "" {
		faults = append(faults, errors.New("type is empty"))
	}
	text("id", e.ID, maxName)
	text("type", e.Type, maxName)
	text("source", e.Source, maxSource)
	text("key", e.Key, maxKey)
	text("content type", e.ContentType, maxName)
	text("schema", e.Schema, maxSource)
	text("correlation id", e.CorrelationID, maxName)
	text("causation id", e.CausationID, maxName)
	text("traceparent", e.TraceParent, maxName)
	if len(e.Data) > MaxData {
		faults = append(faults, fmt.Errorf("data has %d bytes, %d are allowed; publish a reference to it", len(e.Data), MaxData))
	}
	if len(e.Attributes) > maxAttrs {
		faults = append(faults, fmt.Errorf("%d attributes, %d are allowed", len(e.Attributes), maxAttrs))
	}
	for name, value := range e.Attributes {
		if !isAttributeName(name) {
			faults = append(faults, fmt.Errorf("attribute name %q is not [a-z0-9]{1,20}", name))
		}
		text("attribute "+name, value, maxAttribute)
	}
	moment("time", e.Time)
	moment("expiry", e.Expires)
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("stream: %w event %.100q of type %.100q: %w", ErrInvalid, e.ID, e.Type, errors.Join(faults...))
}

func isAttributeName(name string) bool {
	if len(name) == 0 || len(name) > 20 {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
