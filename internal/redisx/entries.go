package redisx

import (
	"bytes"
	_ "embed"
	"slices"
)

//go:embed entries.lua
var entriesText string

// NewEntriesScript returns a script that adds new entries, which a full server refuses: a text
// that stands behind entries.lua, and gets entries as Entries says them.
func NewEntriesScript(text string) *Script { return NewScript(entriesText + text) }

// Entries are the entries of one call of such a script. What those of one shape have in common
// is said once.
type Entries struct {
	shapes []shape
	each   []int // the shape of each
	fields []any // of all
}

// shape is what entries with the same names have in common.
type shape struct {
	fields []any  // of the first
	common []byte // '1' for each value that all have, '0' for the others
}

// Longer values are payloads: it takes time to compare them, and few are the same.
const maxCommon = 200

// Add adds an entry, whose fields are names and values in turn. What pointers among the values
// point to must not change any more.
func (e *Entries) Add(fields []any) {
	e.fields = append(e.fields, fields...)
	number := slices.IndexFunc(e.shapes, func(s shape) bool { return s.fits(fields) })
	if number < 0 {
		number = len(e.shapes)
		e.shapes = append(e.shapes, shape{e.fields[len(e.fields)-len(fields):], bytes.Repeat([]byte{'1'}, len(fields)/2)})
	} else {
		e.shapes[number].narrow(fields)
	}
	e.each = append(e.each, number)
}

// fits reports whether the fields have the shape's names.
func (s *shape) fits(fields []any) bool {
	if len(s.fields) != len(fields) {
		return false
	}
	for k := 0; k < len(fields); k += 2 {
		if s.fields[k] != fields[k] {
			return false
		}
	}
	return true
}

// narrow leaves in common what the fields have too.
func (s *shape) narrow(fields []any) {
	for k, c := range s.common {
		if c == '1' && !same(s.fields[2*k+1], fields[2*k+1]) {
			s.common[k] = '0'
		}
	}
}

// same reports whether two values are short texts, and the same.
func same(a, b any) bool {
	switch a := a.(type) {
	case string:
		b, ok := b.(string)
		return ok && len(a) <= maxCommon && a == b
	case *string:
		b, ok := b.(*string)
		return ok && len(*a) <= maxCommon && *a == *b
	}
	return false
}

// AppendTo appends the entries to the arguments of the call, as entries.lua reads them.
func (e *Entries) AppendTo(args []any) []any {
	said, rest := 0, e.fields
	for i := 0; i < len(e.each); {
		number, run := e.each[i], 0
		for i < len(e.each) && e.each[i] == number {
			i++
			run++
		}
		args = append(args, number, run)
		s := &e.shapes[number]
		if number == said {
			said++
			args = s.appendTo(args)
		}
		for ; run > 0; run-- {
			args = s.appendValues(args, rest, '0')
			rest = rest[len(s.fields):]
		}
	}
	return args
}

func (s *shape) appendTo(args []any) []any {
	args = append(args, len(s.common))
	for k := range s.common {
		args = append(args, s.fields[2*k])
	}
	return s.appendValues(append(args, s.common), s.fields, '1')
}

// appendValues appends those values that all have in common, or those they have not.
func (s *shape) appendValues(args, fields []any, which byte) []any {
	for k, c := range s.common {
		if c == which {
			args = append(args, fields[2*k+1])
		}
	}
	return args
}
