// Package dlq holds a group's dead letters: entries that could not be handled, with
// where they came from and why they died. A letter is listed, shown, given back to its
// group (and to no other), or purged.
//
// Letters live in one stream for each partition and group, in the slot of the partition,
// so that an entry leaves the pending list and becomes a letter in one atomic step.
package dlq

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/streamkeel/streamkeel/stream"
)

// Reason says why an entry became a letter.
type Reason string

// The reasons.
const (
	ReasonAttempts    Reason = "attempts"    // the handler failed as often as the policy allows
	ReasonDeliveries  Reason = "deliveries"  // it was handed over too often, and each consumer went silent
	ReasonPermanent   Reason = "permanent"   // the handler said that another attempt is useless
	ReasonUndecodable Reason = "undecodable" // no event on the wire, or a payload that cannot be decoded
	ReasonInvalid     Reason = "invalid"     // its payload was refused by validation
	ReasonUnhandled   Reason = "unhandled"   // no handler for its type, and the group wants to know
	ReasonExpired     Reason = "expired"     // its expiry time passed before it was handled
	ReasonTrimmed     Reason = "trimmed"     // it was gone from the stream before it was handled; no body is left
	ReasonManual      Reason = "manual"      // a handler or a person put it here
)

// ErrNotFound says that there is no such letter.
var ErrNotFound = errors.New("no such letter")

// Letter is an entry in a dead-letter stream.
type Letter struct {
	// Partition and ID name the letter within its topic and group.
	Partition int
	ID        stream.ID
	// OriginStream and OriginID say where the event stood when the group first read it.
	OriginStream string
	OriginID     stream.ID
	Group        string
	Consumer     string
	Reason       Reason
	Error        string
	// Attempts counts handler runs, Deliveries hand-overs, Redrives how often it was
	// given back before.
	Attempts, Deliveries, Redrives int
	FirstSeen, Died                time.Time
	// First is its first death, which redriving and dying again does not change.
	First Death
	// Edit says who changed the payload in redriving; its At is zero for nobody.
	Edit Edited
	// Entry is the entry with its fields as they were written. Entry.Err tells why it is
	// no event, where it is none.
	Entry stream.Entry
}

// Death says when and why an event became a letter.
type Death struct {
	At     time.Time
	Reason Reason
	Error  string
}

// Edited says that the payload is no longer the one that was published.
type Edited struct {
	At time.Time // the last time
	By string    // who said so then, or ""
	// Original is the SHA-256 of the payload that was published, in hex.
	Original string
}

// Ref names the letter in one word, "partition/ID", as the command line shows and takes it.
func (l Letter) Ref() string { return Ref{l.Partition, l.ID}.String() }

// Ref names a letter of a topic and group.
type Ref struct {
	Partition int
	ID        stream.ID
}

func (r Ref) String() string { return strconv.Itoa(r.Partition) + "/" + r.ID.String() }

// ParseRef reads "partition/ID".
func ParseRef(s string) (Ref, error) {
	partition, idText, ok := strings.Cut(s, "/")
	p, err := strconv.Atoi(partition)
	id, idErr := stream.ParseID(idText)
	if !ok || err != nil || p < 0 || idErr != nil {
		return Ref{}, fmt.Errorf("dlq: %.60q names no letter; it looks like 3/1700000000000-0 (partition/ID)", s)
	}
	return Ref{p, id}, nil
}

// Fields returns the event's own fields as they were written, name after value. There are
// none where the entry was trimmed before it was handled.
func (l *Letter) Fields() []string {
	if packed := l.Entry.Book["packed"]; packed != "" {
		return unpack(packed)
	}
	var fields []string
	for name, value := range l.Entry.Fields() {
		if !strings.HasPrefix(name, "sk-") {
			fields = append(fields, name, value)
		}
	}
	return fields
}

// unpack reads the msgpack list of strings that lib.lua makes of an entry with very many
// fields. What somebody else wrote there is read as far as it is one.
func unpack(packed string) []string {
	dec := msgpack.NewDecoder(strings.NewReader(packed))
	n, err := dec.DecodeArrayLen()
	if err != nil {
		return nil
	}
	var fields []string
	for range n {
		s, err := dec.DecodeString()
		if err != nil {
			break
		}
		fields = append(fields, s)
	}
	return fields[:len(fields)/2*2]
}

func letterOf(partition int, en stream.Entry) Letter {
	l := Letter{
		Partition: partition, ID: en.ID, Entry: en,
		Group: en.Book["group"], Consumer: en.Book["consumer"],
		Reason: Reason(en.Book["reason"]), Error: en.Book["error"],
		Attempts: number(en.Book["attempts"]), Deliveries: number(en.Book["deliveries"]), Redrives: number(en.Book["redrives"]),
		FirstSeen: millis(en.Book["first"]), Died: millis(en.Book["died"]),
	}
	l.OriginStream, l.OriginID = ParseOrigin(en.Book["origin"])
	l.First = Death{millis(en.Book["firstdied"]), Reason(en.Book["firstreason"]), en.Book["firsterror"]}
	if l.First.At.IsZero() {
		l.First = Death{l.Died, l.Reason, l.Error}
	}
	l.Edit = Edited{millis(en.Book["edited"]), en.Book["editor"], en.Book["original"]}
	return l
}

// History is what redriving wrote into an event's bookkeeping. It goes with the event
// through every retry, and into its next letter.
type History [len(historyFields)]string

// historyFields are the fields of History, without their prefix. packed holds the fields of
// an entry that has very many.
var historyFields = [...]string{"firstdied", "firstreason", "firsterror", "edited", "editor", "original", "packed"}

// HistoryIn returns the history that an entry of a retry stream brings with it.
func HistoryIn(en *stream.Entry) (h History) {
	for i, name := range historyFields {
		h[i] = en.Book[name]
	}
	return h
}

// AppendFields appends the history as it stands on the wire.
func (h *History) AppendFields(args []any) []any {
	for i, name := range historyFields {
		if h[i] != "" {
			args = append(args, "sk-"+name, h[i])
		}
	}
	return args
}

// Origin writes where an entry stood as one word: the stream's key, a slash, the ID.
func Origin(streamKey string, id stream.ID) string { return streamKey + "/" + id.String() }

// ParseOrigin reads what Origin wrote; a word that it did not write gives nothing.
func ParseOrigin(s string) (streamKey string, id stream.ID) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", stream.ID{}
	}
	id, err := stream.ParseID(s[i+1:])
	if err != nil {
		return "", stream.ID{}
	}
	return s[:i], id
}

// number reads a count that Streamkeel wrote; what somebody else wrote there is 0.
func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 1<<31 {
		return 0
	}
	return n
}

func millis(s string) time.Time {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || n > 1<<46 {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}

// Reasons returns all reasons, for help texts and validation.
func Reasons() []Reason {
	return slices.Sorted(maps.Keys(map[Reason]bool{
		ReasonAttempts: true, ReasonDeliveries: true, ReasonPermanent: true, ReasonUndecodable: true, ReasonInvalid: true,
		ReasonUnhandled: true, ReasonExpired: true, ReasonTrimmed: true, ReasonManual: true,
	}))
}
