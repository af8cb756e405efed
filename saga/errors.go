package saga

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrInvalid says that a flow, a config or a call breaks a rule.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound says that this database knows no such saga, or no such step of it.
	ErrNotFound = errors.New("not found")
	// ErrState says that the saga is not in a state in which that can be done.
	ErrState = errors.New("wrong state")
)

type refusal struct{ err error }

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

// Refuse says that a step cannot be done, and never will be: the saga is aborted, and the
// steps that were done are undone, in every service. What the refusing step wrote is rolled
// back, so that its own compensation has nothing to undo and does not run.
func Refuse(err error) error {
	if err == nil {
		err = errors.New("refused")
	}
	return refusal{err}
}

// text makes of an error something that Postgres keeps, and a person reads.
func text(err error) string {
	const limit = 1000
	s := err.Error()
	return strings.ReplaceAll(strings.ToValidUTF8(s[:min(len(s), limit)], ""), "\x00", "")
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("saga: %w: "+format, append([]any{ErrInvalid}, args...)...)
}
