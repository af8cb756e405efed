package dlq

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Filter selects letters; the zero Filter selects all.
type Filter struct {
	Reasons     []Reason  // one of these
	Types       []string  // one of these event types
	Key         string    // the event's key
	Error       string    // a part of the error's text
	Since       time.Time // died then or later
	Until       time.Time // died before
	MinRedrives int       // given back so often before
}

func (f Filter) validate() error {
	var faults []error
	for _, r := range f.Reasons {
		if !slices.Contains(Reasons(), r) {
			faults = append(faults, fmt.Errorf("dlq: reason %.60q is none of %v", string(r), Reasons()))
		}
	}
	if !f.Until.IsZero() && f.Until.Before(f.Since) {
		faults = append(faults, fmt.Errorf("dlq: Until %s lies before Since %s", f.Until, f.Since))
	}
	if f.MinRedrives < 0 {
		faults = append(faults, fmt.Errorf("dlq: MinRedrives %d is negative", f.MinRedrives))
	}
	return errors.Join(faults...)
}

// clocks is by how much the clocks of two servers may differ, where a letter was imported
// that died at another one.
const clocks = time.Hour

// from returns the ID behind which a letter that matches can be, at least id. A letter's ID
// is the time at which it came into its stream: when it died, or later.
func (f Filter) from(id stream.ID) stream.ID {
	if ms := f.Since.Add(-clocks).UnixMilli(); !f.Since.IsZero() && ms > 0 && uint64(ms) > id.Ms {
		return stream.ID{Ms: uint64(ms)}
	}
	return id
}

func (f Filter) matches(l *Letter) bool {
	return (len(f.Reasons) == 0 || slices.Contains(f.Reasons, l.Reason)) &&
		(len(f.Types) == 0 || slices.Contains(f.Types, l.Entry.Event.Type)) &&
		(f.Key == "" || f.Key == l.Entry.Event.Key) &&
		strings.Contains(l.Error, f.Error) &&
		(f.Since.IsZero() || !l.Died.Before(f.Since)) &&
		(f.Until.IsZero() || l.Died.Before(f.Until)) &&
		l.Redrives >= f.MinRedrives
}
