package redisx

import (
	"errors"
	"fmt"
)

// ErrReply says that the bytes are no RESP reply of the expected shape.
var ErrReply = errors.New("redisx: unexpected reply")

// Reply walks a RESP2 or RESP3 reply from its first value to its last.
type Reply struct {
	b   []byte
	i   int
	buf *buffer // where b came from, or nil
}

// Len returns how many bytes the whole reply has.
func (r *Reply) Len() int { return len(r.b) }

// Free gives the reply's memory back for another one. The reply, and what shares memory
// with it, must not be used afterwards. Not calling it costs memory for a while, no more.
func (r *Reply) Free() {
	if r.buf != nil && cap(r.buf.b) <= maxKept {
		r.buf.b = r.buf.b[:0]
		buffers.Put(r.buf)
	}
	*r = Reply{}
}

// NewReply returns a walk over bytes that hold one complete reply.
func NewReply(b []byte) Reply { return Reply{b: b} }

// Done reports whether every value was read.
func (r *Reply) Done() bool { return r.i >= len(r.b) }

// Pos returns the offset of the next value, for Since.
func (r *Reply) Pos() int { return r.i }

// Since returns the bytes from pos to the next value.
func (r *Reply) Since(pos int) []byte { return r.b[pos:r.i] }

// Kind returns the kind of the next value as RESP marks it, or 0 at the end.
func (r *Reply) Kind() byte {
	if r.Done() {
		return 0
	}
	return r.b[r.i]
}

// Array reads the head of an array, set or map and returns the number of values
// that follow (two for each pair of a map), or -1 for nil.
func (r *Reply) Array() (int, error) {
	kind, n, err := r.head()
	if err != nil {
		return 0, err
	}
	switch kind {
	case '*', '~', '>':
		return n, nil
	case '%':
		return 2 * n, nil
	case '_':
		return -1, nil
	}
	return 0, fmt.Errorf("%w: %q where an array should be", ErrReply, kind)
}

// Bytes reads a string of any kind, or a number as its digits. It shares memory
// with the reply; nil stands for the nil reply.
func (r *Reply) Bytes() ([]byte, error) {
	start := r.i
	kind, n, err := r.head()
	if err != nil {
		return nil, err
	}
	switch kind {
	case '$', '=':
		if n < 0 {
			return nil, nil
		}
		if n+2 > len(r.b)-r.i {
			return nil, fmt.Errorf("%w: string of %d bytes is cut off", ErrReply, n)
		}
		s := r.b[r.i : r.i+n]
		r.i += n + 2
		return s, nil
	case '+', ':':
		return r.b[start+1 : r.i-2], nil
	case '_':
		return nil, nil
	}
	return nil, fmt.Errorf("%w: %q where a string should be", ErrReply, kind)
}

// Span says where a string stands in what Since returns for the value that holds it.
type Span struct{ From, To int }

// Of returns the string.
func (s Span) Of(b []byte) []byte { return b[s.From:s.To:s.To] }

// Strings passes over an array of strings, and appends where each of them stands. It reports
// whether there is one: the nil reply is none.
func (r *Reply) Strings(spans []Span) ([]Span, bool, error) {
	start := r.i
	n, err := r.Array()
	for range n {
		var s []byte
		if s, err = r.Bytes(); err != nil {
			break
		}
		end := r.i - 2 - start // every value ends with its line's end
		spans = append(spans, Span{end - len(s), end})
	}
	return spans, n >= 0, err
}

// Skip passes over one value, whatever it holds.
func (r *Reply) Skip() error {
	for left := 1; left > 0; left-- {
		kind, n, err := r.head()
		if err != nil {
			return err
		}
		switch kind {
		case '$', '=', '!':
			if n >= 0 {
				if n+2 > len(r.b)-r.i {
					return fmt.Errorf("%w: string of %d bytes is cut off", ErrReply, n)
				}
				r.i += n + 2
			}
		case '*', '~', '>':
			left += max(n, 0)
		case '%', '|':
			left += 2 * max(n, 0)
		}
	}
	return nil
}

// head reads a value's first line: its kind, and the length that aggregates and
// strings have.
func (r *Reply) head() (kind byte, n int, err error) {
	start := r.i
	if n, end, ok := plainHead(r.b, start); ok {
		r.i = end
		return r.b[start], n, nil
	}
	for r.i < len(r.b) && r.b[r.i] != '\n' {
		r.i++
	}
	if r.i >= len(r.b) || r.i < start+2 || r.b[r.i-1] != '\r' {
		return 0, 0, fmt.Errorf("%w: line cut off at byte %d", ErrReply, start)
	}
	line := r.b[start+1 : r.i-1]
	kind = r.b[start]
	r.i++
	switch kind {
	case '$', '=', '!', '*', '~', '>', '%', '|':
		if n, err = length(line); err != nil {
			return 0, 0, err
		}
		// No value is shorter than its head, so a larger count is a lie.
		if n > len(r.b)-r.i {
			return 0, 0, fmt.Errorf("%w: %d values or bytes announced, %d bytes left", ErrReply, n, len(r.b)-r.i)
		}
	case '+', '-', ':', ',', '#', '(', '_':
	default:
		return 0, 0, fmt.Errorf("%w: unknown kind %q at byte %d", ErrReply, kind, start)
	}
	return kind, n, nil
}

// plainHead reads the heads that a reply is full of: strings, and arrays, of a length that is there.
func plainHead(b []byte, at int) (n, end int, ok bool) {
	if at >= len(b) || b[at] != '$' && b[at] != '*' {
		return 0, 0, false
	}
	first := at + 1
	for at = first; at < len(b) && at < first+9 && b[at]-'0' <= 9; at++ {
		n = 10*n + int(b[at]-'0')
	}
	end = at + 2
	ok = at > first && end <= len(b) && b[at] == '\r' && b[at+1] == '\n' && n <= len(b)-end
	return n, end, ok
}

func length(line []byte) (int, error) {
	if len(line) == 2 && line[0] == '-' && line[1] == '1' {
		return -1, nil
	}
	if len(line) == 0 || len(line) > 10 {
		return 0, fmt.Errorf("%w: length %q", ErrReply, line)
	}
	n := 0
	for _, c := range line {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%w: length %q", ErrReply, line)
		}
		n = n*10 + int(c-'0')
	}
	return n, nil
}
