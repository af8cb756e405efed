package redisx

import _ "embed"

//go:embed entries.lua
var entriesText string

// NewEntriesScript returns a script that adds new entries, which a full server refuses: a text
// that stands behind entries.lua, and gets entries as Entries appends them.
func NewEntriesScript(text string) *Script { return NewScript(entriesText + text) }

// Entries appends entries to the arguments of one call of such a script.
type Entries struct {
	shapes [][]any // names
	last   int     // the shape of the last entry
	run    int     // how many entries before have that shape
	at     int     // where in the arguments this stands
}

// Append appends an entry, whose fields are names and values in turn.
func (e *Entries) Append(args, fields []any) []any {
	shape := e.shape(fields)
	if e.run == 0 || shape != e.last {
		args = append(args, shape, nil)
		e.last, e.run, e.at = shape, 0, len(args)-1
	}
	e.run++
	args[e.at] = e.run
	if shape == len(e.shapes) {
		names := make([]any, len(fields)/2)
		for i := range names {
			names[i] = fields[2*i]
		}
		e.shapes = append(e.shapes, names)
		args = append(append(args, len(names)), names...)
	}
	for i := 1; i < len(fields); i += 2 {
		args = append(args, fields[i])
	}
	return args
}

// shape returns the index of the shape that the fields have, or the next one.
func (e *Entries) shape(fields []any) int {
next:
	for i, names := range e.shapes {
		if len(names) != len(fields)/2 {
			continue
		}
		for k, name := range names {
			if name != fields[2*k] {
				continue next
			}
		}
		return i
	}
	return len(e.shapes)
}
