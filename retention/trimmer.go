// Package retention trims streams without taking from anybody what is not finished.
//
// A policy says what may go; the floor, the ID below which every group and projection has
// finished, says what must stay, and wins.
package retention

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/trim.lua
	trimText   string
	trimScript = redisx.NewScript(trimText)
)

// DefaultKeep is how old an entry must be before it may go.
const DefaultKeep = time.Hour

// Policy says what may go once everybody has finished it.
type Policy struct {
	// Keep is the age that an entry must have. Default 1 hour. Lower: less memory, and less
	// to replay.
	Keep time.Duration
	// KeepAll trims nothing.
	KeepAll bool
	// Exact trims to the entry. Default: by whole nodes of some 100 entries, which costs
	// Redis a fraction.
	Exact bool
}

// Validate reports every rule that the policy breaks, joined.
func (p Policy) Validate() error {
	if p.Keep < 0 {
		return fmt.Errorf("retention: Keep %s is negative", p.Keep)
	}
	return nil
}

// Why says what kept a trim from removing more.
type Why string

// The reasons.
const (
	HeldByAge    Why = "age"           // the policy keeps entries that young
	HeldByGroup  Why = "group"         // a group has not finished
	HeldMissing  Why = "missing group" // a registered group is not at the stream yet, or not any more
	HeldNoGroup  Why = "no group"      // nobody reads the stream
	HeldNoStream Why = "no stream"     // there is none
	HeldByPolicy Why = "keep all"      // the policy trims nothing
	replyFields      = 6
)

// Report is what became of one stream.
type Report struct {
	Stream  string
	Trimmed int64
	// Floor is the ID below which everybody has finished; zero where there is none. Cut is
	// the ID below which entries went, or would go.
	Floor, Cut stream.ID
	Left       int64
	// Held says why not more, Group which group holds it, where one does.
	Held  Why
	Group string
}

// Trim trims one partition of a topic by the policy. groups are those that the registry
// has: one that the stream lacks means that nothing is trimmed, and so does no group at
// all. With dryRun it only reports.
func Trim(ctx context.Context, rdb redis.UniversalClient, streamKey string, groups []stream.Group, policy Policy, dryRun bool) (Report, error) {
	if err := policy.Validate(); err != nil {
		return Report{}, err
	}
	if policy.KeepAll {
		return Report{Stream: streamKey, Held: HeldByPolicy}, nil
	}
	if policy.Keep == 0 {
		policy.Keep = DefaultKeep
	}
	args := []any{policy.Keep.Milliseconds(), flag(policy.Exact), flag(dryRun)}
	for _, g := range groups {
		args = append(args, g.Name)
	}
	reply, err := trimScript.Run(ctx, rdb, []string{streamKey}, args...).Slice()
	if err == nil && len(reply) != replyFields {
		err = redisx.ErrReply
	}
	if err != nil {
		return Report{}, fmt.Errorf("retention: trim %s: %w", streamKey, err)
	}
	return report(streamKey, reply)
}

func report(streamKey string, reply []any) (Report, error) {
	r := Report{Stream: streamKey}
	var floor, cut, why string
	var ok [replyFields]bool
	r.Trimmed, ok[0] = reply[0].(int64)
	floor, ok[1] = reply[1].(string)
	cut, ok[2] = reply[2].(string)
	r.Group, ok[3] = reply[3].(string)
	why, ok[4] = reply[4].(string)
	r.Left, ok[5] = reply[5].(int64)
	if ok != [replyFields]bool{true, true, true, true, true, true} {
		return Report{}, fmt.Errorf("retention: trim %s: %w", streamKey, redisx.ErrReply)
	}
	var errs [2]error
	if floor != "" {
		r.Floor, errs[0] = stream.ParseID(floor)
		r.Cut, errs[1] = stream.ParseID(cut)
	}
	switch {
	case why == "missing":
		r.Held = HeldMissing
	case why == "nogroup":
		r.Held = HeldNoGroup
	case why == "nostream":
		r.Held = HeldNoStream
	case r.Group != "":
		r.Held = HeldByGroup
	default:
		r.Held = HeldByAge
	}
	return r, errors.Join(errs[:]...)
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}
