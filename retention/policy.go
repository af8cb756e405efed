// Package retention trims streams without taking from anybody what is not finished.
//
// A [Policy] says what may go: by age, length and bytes. The floor, the ID below which every
// group and projection has finished, says what must stay, and wins. Only a policy's
// AgeBeatsAck passes it, and then everything that was discarded is counted and listed.
package retention

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Defaults of a policy.
const (
	DefaultKeep       = time.Hour
	DefaultStaleAfter = 24 * time.Hour
)

// Policy says what may go once everybody has finished it.
type Policy struct {
	// Keep is the age above which entries may go. Default 1 hour. Lower: less memory, and
	// less to replay.
	Keep time.Duration
	// MaxLen lets also younger entries go while a stream has more than that. Default: no
	// limit. The floor may keep a stream longer.
	MaxLen int64
	// MaxBytes lets also younger entries go while a stream takes more memory than that, as
	// Redis estimates it. Default: no limit. The floor may keep a stream larger.
	MaxBytes int64
	// AgeBeatsAck is the age above which entries go whether somebody has finished them or
	// not; the report counts and lists what was discarded. What was pending becomes a letter with
	// reason trimmed. Default 0: never; else at least Keep.
	AgeBeatsAck time.Duration
	// StaleAfter is how old a group's oldest unfinished entry must be for the group to be
	// reported as stale: it holds the stream. Default 24 hours.
	StaleAfter time.Duration
	// KeepAll trims nothing.
	KeepAll bool
	// Exact trims to the entry. Default: by whole nodes of some 100 entries, which costs
	// Redis a fraction. What is discarded, archived, or goes by MaxLen and MaxBytes goes exactly.
	Exact bool
	// Archive gets entries before they are trimmed; nothing is trimmed that it does not have.
	// Default: none.
	Archive Archive
}

// Archive keeps entries that were trimmed. Read makes archive and stream one log.
type Archive interface {
	stream.Archive
	// Append stores entries of a stream, in order. It may be called again with entries that
	// it has; those change nothing. When it returns nil they must be safe.
	Append(ctx context.Context, streamKey string, entries []stream.Entry) error
}

// Validate reports every rule that the policy breaks, joined.
func (p Policy) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("retention: "+format, args...)) }
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"Keep", p.Keep}, {"AgeBeatsAck", p.AgeBeatsAck}, {"StaleAfter", p.StaleAfter}} {
		if f.value < 0 {
			fault("%s %s is negative", f.name, f.value)
		}
	}
	if p.MaxLen < 0 {
		fault("MaxLen %d is negative", p.MaxLen)
	}
	if p.MaxBytes < 0 {
		fault("MaxBytes %d is negative", p.MaxBytes)
	}
	if keep := p.withDefaults().Keep; p.AgeBeatsAck > 0 && p.AgeBeatsAck < keep {
		fault("AgeBeatsAck %s must be at least Keep %s", p.AgeBeatsAck, keep)
	}
	if p.KeepAll && (p.MaxLen > 0 || p.MaxBytes > 0 || p.AgeBeatsAck > 0) {
		fault("KeepAll excludes MaxLen, MaxBytes and AgeBeatsAck")
	}
	return errors.Join(faults...)
}

func (p Policy) withDefaults() Policy {
	if p.Keep == 0 {
		p.Keep = DefaultKeep
	}
	if p.StaleAfter == 0 {
		p.StaleAfter = DefaultStaleAfter
	}
	return p
}
