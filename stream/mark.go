package stream

import (
	"errors"
	"fmt"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

var (
	// ErrRewound says that a stream does not continue what was read of it: it was deleted
	// and filled anew, or lost its tail in a failover.
	ErrRewound = errors.New("stream was rewound")
	// ErrTrimmedUnread says that entries were removed from a stream before they were read.
	ErrTrimmedUnread = errors.New("entries were removed unread")
)

// Mark is how far a stream was read, with what tells whether the stream, as it is later,
// continues that. It is plain data, to be stored by whoever wants to go on from there.
type Mark struct {
	// ID is the last entry that was read; zero is before all of them.
	ID ID `json:"id"`
	// Event is the id of that entry's event. Default, where it is not known: no check.
	Event string `json:"event,omitempty"`
	// Read is how many entries the stream had ever been given at ID, removed ones included.
	// Zero behind an entry means that it is not known.
	Read int64 `json:"read,omitempty"`
	// Deleted is the highest ID that was deleted by hand, as far as was known.
	Deleted ID `json:"deleted,omitzero"`
}

// history is what a stream says of itself at one moment.
type history struct {
	length, added        int64
	first, last, deleted ID
	anchor               string // the event at the mark's ID, where the entry is still there
}

// judge returns nil where a stream continues a mark and has all that lies beyond it, or
// ErrRewound or ErrTrimmedUnread with what was found. It stands on this: IDs and the count
// of entries ever added only grow; trimming takes the oldest first, so that entries beyond
// the mark can be missing only once no entry up to it is there, and then the rest can be
// counted; deleting in the middle leaves the highest deleted ID; and an ID is given once, to
// one event. Where the count is not known and nothing up to the mark is left, it assumes the
// worst.
func (h *history) judge(m Mark) error {
	beyond := h.added - m.Read // where known
	switch {
	case h.last.Compare(m.ID) < 0:
		return fmt.Errorf("%w: it ends at %s", ErrRewound, h.last)
	case m.known() && beyond < 0:
		return fmt.Errorf("%w: it was given %d entries, of which %d were read", ErrRewound, h.added, m.Read)
	case h.anchor != "" && m.Event != "" && h.anchor != m.Event:
		return fmt.Errorf("%w: entry %s is event %.100q, which was %.100q", ErrRewound, m.ID, h.anchor, m.Event)
	case h.anchor == "" && m.Event != "" && !h.allBeyond(m) && h.deleted.Compare(m.ID) < 0:
		return fmt.Errorf("%w: entry %s is gone, and older ones are there", ErrRewound, m.ID)
	case m.known() && h.allBeyond(m) && beyond < h.length:
		return fmt.Errorf("%w: it holds %d entries beyond, and can have been given %d", ErrRewound, h.length, beyond)
	case h.deleted.Compare(m.ID) > 0 && h.deleted.Compare(m.Deleted) > 0:
		return fmt.Errorf("%w: entry %s was deleted", ErrTrimmedUnread, h.deleted)
	case m.known() && h.allBeyond(m) && beyond > h.length:
		return fmt.Errorf("%w: %d entries", ErrTrimmedUnread, beyond-h.length)
	case !m.known() && h.allBeyond(m) && h.last != m.ID:
		return fmt.Errorf("%w, it may be: nothing is left up to %s", ErrTrimmedUnread, m.ID)
	}
	return nil
}

// known reports whether the mark counts the entries.
func (m Mark) known() bool { return m.Read > 0 || m.Read == 0 && m.ID.IsZero() }

// allBeyond reports whether the stream holds nothing up to the mark.
func (h *history) allBeyond(m Mark) bool { return h.length == 0 || h.first.Compare(m.ID) > 0 }

// learn counts the entries up to the mark where the stream tells.
func (h *history) learn(m Mark) Mark {
	switch {
	case m.Read > 0:
	case h.allBeyond(m):
		m.Read = h.added - h.length
	case h.last == m.ID:
		m.Read = h.added
	}
	return m
}

// end is the mark of everything that the stream has.
func (h *history) end() Mark { return Mark{ID: h.last, Read: h.added, Deleted: h.deleted} }

// parseHistory reads the reply to an XINFO STREAM; a stream that does not exist never had an entry.
func parseHistory(r *redisx.Reply, err error) (h history, _ error) {
	if isNoKey(err) {
		return history{}, nil
	}
	if err != nil {
		return history{}, err
	}
	n, err := r.Array()
	if err != nil {
		return history{}, err
	}
	for range n / 2 {
		name, err := r.Bytes()
		if err != nil {
			return history{}, err
		}
		switch asString(name) {
		case "length":
			err = number(r, &h.length)
		case "entries-added":
			err = number(r, &h.added)
		case "last-generated-id":
			err = idOf(r, &h.last)
		case "max-deleted-entry-id":
			err = idOf(r, &h.deleted)
		case "recorded-first-entry-id":
			err = idOf(r, &h.first)
		default:
			err = r.Skip()
		}
		if err != nil {
			return history{}, err
		}
	}
	return h, nil
}

func isNoKey(err error) bool {
	var reply redisx.ServerError
	return errors.As(err, &reply) && reply == "ERR no such key"
}

func number(r *redisx.Reply, to *int64) error {
	text, err := r.Bytes()
	if err != nil {
		return err
	}
	_, err = fmt.Sscan(string(text), to)
	return err
}

func idOf(r *redisx.Reply, to *ID) error {
	text, err := r.Bytes()
	if err != nil {
		return err
	}
	*to, err = ParseID(string(text))
	return err
}
