package stream

import (
	"fmt"
	"strings"
	"time"
)

// Adoption makes events of entries that some other program wrote.
type Adoption struct {
	adopt func(fields map[string]string) (Event, error)
}

// Adopt returns the adoption of a topic whose stream has entries that some other program
// wrote with other fields ([Topic].Adopt). fn gets those of an entry, the last where a name is
// repeated, and returns what event it is:
//
//	stream.Topic{Name: "clicks", Stream: "legacy:clicks", Adopt: stream.Adopt(func(fields map[string]string) (stream.Event, error) {
//		return stream.NewEvent("page.clicked", fields["user"], stream.ContentTypeJSON, []byte(fields["body"])), nil
//	})}
//
// The event's ID becomes <stream key>/<ID of the entry>, so that it is the same event whoever
// reads it and however often, also out of a retry or a redriven letter; its Source is the
// topic's where fn leaves it empty, and its Time at the latest when the entry was added. It has no Sequence.
//
// An entry for which fn returns an error, panics, or returns what is no valid event, stays
// malformed; so does one of more than 1,000 fields, for which fn is not called. fn must give the
// same each time, and be quick: it runs where entries are read, in any number of goroutines.
func Adopt(fn func(fields map[string]string) (Event, error)) *Adoption { return &Adoption{fn} }

// maxAdoptedKey is how long the key of a stream may be whose entries' IDs stand in the ids of
// events: behind it come a slash and two numbers of 20 digits.
const maxAdoptedKey = maxName - 42

// AdoptEntry makes an event of an entry that is none, where the topic says how: Event and
// Err change, the fields stay as they are. An entry of a retry stream brings where its group
// first read it as origin (sk-origin); one that stands there has "". Consumers, projections
// and readers call it; what reads with [DecodeEntry] calls it itself.
func (t *Topic) AdoptEntry(en *Entry, origin string) {
	if t.Adopt == nil || en.Err == nil {
		return
	}
	fields := map[string]string{}
	n := 0
	for name, value := range en.Fields() {
		if !strings.HasPrefix(name, bookPrefix) { // it may be Streamkeel's, or is dropped by the first retry
			n++
			fields[name] = value
		}
	}
	if n > maxFields {
		return
	}
	if origin == "" {
		origin = en.Stream + "/" + en.ID.String()
	}
	e, err := t.Adopt.call(fields)
	if err == nil {
		e.ID, e.Sequence = origin, Position{}
		if e.Source == "" {
			e.Source = t.source()
		}
		if added := addedAt(origin); e.Time.IsZero() || e.Time.After(added) {
			e.Time = added
		}
		err = e.Validate()
	}
	if err != nil {
		en.Err = fmt.Errorf("stream: %w %s is not adopted: %w", ErrMalformed, origin, err)
		return
	}
	en.Event, en.Err = e, nil
}

func (a *Adoption) call(fields map[string]string) (e Event, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("it panicked: %v", v)
		}
	}()
	return a.adopt(fields)
}

// addedAt returns the time in the ID at the end of an origin.
func addedAt(origin string) time.Time {
	const endOf9999 = 253_402_300_799_999                           // a foreign ID may lie behind it
	id, _ := ParseID(origin[strings.LastIndexByte(origin, '/')+1:]) // as Streamkeel writes it; else 1970
	return time.UnixMilli(int64(min(id.Ms, endOf9999))).UTC()
}
