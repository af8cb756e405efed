package stream

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// ID is a stream ID: milliseconds and a number within the millisecond. The zero ID
// lies before every entry.
type ID struct{ Ms, Seq uint64 }

// ParseID reads "1700000000000-0"; a part after the dash may be missing.
func ParseID(s string) (ID, error) {
	ms, seq, both := strings.Cut(s, "-")
	var id ID
	var err error
	if id.Ms, err = strconv.ParseUint(ms, 10, 64); err == nil && both {
		id.Seq, err = strconv.ParseUint(seq, 10, 64)
	}
	if err != nil {
		return ID{}, fmt.Errorf("stream: %w stream ID %.60q", ErrInvalid, s)
	}
	return id, nil
}

func (id ID) String() string {
	b, _ := id.AppendText(make([]byte, 0, 24))
	return string(b)
}

// AppendText appends what String returns. The error is always nil.
func (id ID) AppendText(b []byte) ([]byte, error) {
	b = strconv.AppendUint(b, id.Ms, 10)
	b = append(b, '-')
	return strconv.AppendUint(b, id.Seq, 10), nil
}

// Compare returns -1, 0 or 1, as id lies before, at or behind other.
func (id ID) Compare(other ID) int {
	return cmp.Or(cmp.Compare(id.Ms, other.Ms), cmp.Compare(id.Seq, other.Seq))
}

// IsZero reports whether id lies before every entry.
func (id ID) IsZero() bool { return id == ID{} }

// Next returns the smallest ID behind id.
func (id ID) Next() ID {
	if id.Seq == ^uint64(0) {
		return ID{Ms: id.Ms + 1}
	}
	return ID{Ms: id.Ms, Seq: id.Seq + 1}
}

// Position is where an event stands in the outbox: the batch, and the row within it.
// Positions of one partition grow with its order, also where Redis lost entries and
// they were published again. The zero Position is none: the event was published directly.
type Position struct{ Batch, Row int64 }

// ParsePosition reads what String wrote.
func ParsePosition(s string) (Position, error) {
	batch, row, both := strings.Cut(s, "-")
	var p Position
	var err error
	if p.Batch, err = strconv.ParseInt(batch, 10, 64); err == nil {
		p.Row, err = strconv.ParseInt(row, 10, 64)
	}
	if err != nil || !both || p.Batch < 0 || p.Row < 0 {
		return Position{}, fmt.Errorf("stream: %w sequence %.60q", ErrInvalid, s)
	}
	return p, nil
}

func (p Position) String() string {
	b := make([]byte, 0, 24)
	b = strconv.AppendInt(b, p.Batch, 10)
	b = append(b, '-')
	return string(strconv.AppendInt(b, p.Row, 10))
}

// Compare returns -1, 0 or 1, as p lies before, at or behind other.
func (p Position) Compare(other Position) int {
	return cmp.Or(cmp.Compare(p.Batch, other.Batch), cmp.Compare(p.Row, other.Row))
}

// IsZero reports whether p is no position.
func (p Position) IsZero() bool { return p == Position{} }
