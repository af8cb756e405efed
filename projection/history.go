package projection

import (
	"fmt"
	"strconv"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// history is what a stream says of itself at one moment, seen from a checkpoint. The zero
// value is that of a stream that does not exist, or never had an entry.
type history struct {
	length, added int64           // entries in it, and ever added to it
	last, deleted stream.ID       // the last ID that it gave, the highest that was deleted by hand
	first         stream.ID       // its oldest entry, zero where it is empty
	firstSequence stream.Position // the sequence of that entry

	anchored bool   // the entry that the checkpoint names is in the stream
	anchor   string // and this is its event's id

	grouped bool      // the projection's group is there
	group   stream.ID // and stands here
}

// finding is what a history means for a checkpoint.
type finding int

const (
	intact  finding = iota // the stream continues the checkpoint, and has all that lies beyond
	rewound                // the stream is not the one that was read, or lost entries that were
	trimmed                // the stream continues the checkpoint; entries beyond are gone
)

// judge compares a stream with a checkpoint. The ground it stands on:
//
// A stream's counter of entries ever added, less EntriesRead, is the number of entries
// beyond the checkpoint, as long as nobody removes one of those. Trimming takes the oldest
// first, so while an entry up to the checkpoint is there nothing beyond it was trimmed; and
// once none is there, the entries beyond are all that the stream holds, and can be counted.
// Deleting by hand, in the middle, leaves its mark in the highest deleted ID. An ID is given
// once: the entry at the checkpoint, with the same event in it, proves everything before it,
// because replicas and the append-only file have a stream's prefix or nothing. Where that
// entry is gone, the group stands for it: it lives and dies with the stream, was moved there
// while the entry was there, and had to be for retention to trim the entry.
//
// The reason says what was found, for a person.
func (h *history) judge(c *Checkpoint) (finding, string) {
	beyond := h.added - c.EntriesRead // valid where EntriesRead is known
	known := c.EntriesRead >= 0
	counted := h.length == 0 || h.first.Compare(c.ID) > 0 // all that it holds lies beyond
	switch {
	case h.last.Compare(c.ID) < 0:
		return rewound, fmt.Sprintf("it ends at %s", h.last)
	case known && beyond < 0:
		return rewound, fmt.Sprintf("it has had %d entries, of which %d were read", h.added, c.EntriesRead)
	case h.anchored && h.anchor != c.Event:
		return rewound, fmt.Sprintf("the entry at the checkpoint is another event, %.100q instead of %.100q", h.anchor, c.Event)
	case counted && known && beyond < h.length:
		return rewound, fmt.Sprintf("it holds %d entries beyond the checkpoint, and can have had %d", h.length, beyond)
	case counted && known && beyond == 0 && h.last != c.ID && !c.ID.IsZero():
		return rewound, fmt.Sprintf("it has nothing beyond the checkpoint, and ends at %s", h.last)
	case !h.anchored && !c.ID.IsZero() && (!h.grouped || h.group.Compare(c.ID) < 0):
		return rewound, "the entry at the checkpoint is gone, and the projection's group does not stand there"
	case h.deletedBeyond(c):
		return trimmed, fmt.Sprintf("entry %s was deleted", h.deleted)
	case counted && known && beyond > h.length:
		if h.startsApplied(c) {
			return rewound, fmt.Sprintf("its oldest entry %s has sequence %s, which was applied", h.first, h.firstSequence)
		}
		return trimmed, fmt.Sprintf("%d entries", beyond-h.length)
	case known && h.last == c.ID && beyond > 0:
		return trimmed, fmt.Sprintf("%d entries", beyond)
	}
	return intact, ""
}

// deletedBeyond reports whether an entry beyond the checkpoint was deleted by hand.
func (h *history) deletedBeyond(c *Checkpoint) bool {
	return h.deleted.Compare(c.ID) > 0 && h.deleted.Compare(c.deleted) > 0
}

// startsApplied reports whether the oldest entry is known by its sequence to be applied.
func (h *history) startsApplied(c *Checkpoint) bool {
	return h.length > 0 && !h.firstSequence.IsZero() && h.firstSequence.Compare(c.Sequence) <= 0
}

// replayable reports whether reading a rewound stream from its start, with the sequence as
// guard, misses nothing: what was removed from it was applied. That is so for what lies up to
// the group's position, which never was ahead of the checkpoint, and for what was trimmed
// before an entry that was applied.
func (h *history) replayable(c *Checkpoint) bool {
	done := stream.ID{}
	if h.grouped {
		done = h.group
	}
	switch {
	case c.Sequence.IsZero() || h.deleted.Compare(done) > 0:
		return false
	case h.added == h.length || h.startsApplied(c):
		return true
	case h.length == 0:
		return h.last.Compare(done) <= 0
	}
	return h.first.Compare(done) <= 0
}

// learn returns how many entries the stream had ever had at the checkpoint, if it tells.
func (h *history) learn(c *Checkpoint) int64 {
	switch {
	case c.EntriesRead >= 0:
		return c.EntriesRead
	case h.length == 0 || h.first.Compare(c.ID) > 0:
		return h.added - h.length
	case h.last == c.ID:
		return h.added
	}
	return -1
}

const historyFields = 9

// parseHistory reads the reply of the inspect script.
func parseHistory(reply []any, err error) (history, error) {
	if err != nil {
		return history{}, err
	}
	if len(reply) != historyFields {
		return history{}, fmt.Errorf("%w: %d values of the inspect script", redisx.ErrReply, len(reply))
	}
	var h history
	text := make([]string, historyFields)
	for i, value := range reply {
		switch v := value.(type) {
		case string:
			text[i] = v
		case int64:
			text[i] = strconv.FormatInt(v, 10)
		}
	}
	h.length, _ = reply[0].(int64)
	h.added, _ = reply[1].(int64)
	for i, to := range map[int]*stream.ID{2: &h.last, 3: &h.deleted, 4: &h.first, 8: &h.group} {
		if text[i] == "" {
			continue
		}
		if *to, err = stream.ParseID(text[i]); err != nil {
			return history{}, fmt.Errorf("%w: %w", redisx.ErrReply, err)
		}
	}
	if p, err := stream.ParsePosition(text[5]); err == nil { // a foreign entry may say anything
		h.firstSequence = p
	}
	h.anchored, h.anchor, h.grouped = text[6] == "1", nameOf(text[7]), text[8] != ""
	return h, nil
}
