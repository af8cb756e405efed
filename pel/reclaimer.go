package pel

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
	//go:embed lua/reclaim.lua
	reclaimText   string
	reclaimScript = redisx.NewScript(reclaimText)
)

// Defaults of a group's limits.
const (
	DefaultMinIdle       = time.Minute
	DefaultMaxDeliveries = 20
	// MinMinIdle is the lowest MinIdle: below it a busy machine looks like a dead one.
	MinMinIdle = 500 * time.Millisecond
)

// Limits are a group's limits on hand-overs.
type Limits struct {
	// MinIdle is how long a consumer must have been silent before what it has in hand is
	// taken from it. Consumers tell that they live every third of it. Default 1 minute, at
	// least 500 ms. Too low: a slow network costs a second delivery. Too high: the work of a
	// process that died waits.
	MinIdle time.Duration
	// MaxDeliveries is how often an event is handed over before it goes to the dead letters
	// with reason "deliveries". It bounds crashes; failing handlers are bounded by attempts.
	// Default 20.
	MaxDeliveries int
}

// WithDefaults returns the limits with defaults in place of zeros.
func (l Limits) WithDefaults() Limits {
	if l.MinIdle == 0 {
		l.MinIdle = DefaultMinIdle
	}
	if l.MaxDeliveries == 0 {
		l.MaxDeliveries = DefaultMaxDeliveries
	}
	return l
}

// Validate reports every limit that is out of bounds, joined.
func (l Limits) Validate() error {
	var faults []error
	if l.MinIdle < MinMinIdle {
		faults = append(faults, fmt.Errorf("pel: MinIdle %s must be at least %s", l.MinIdle, MinMinIdle))
	}
	if l.MaxDeliveries < 1 {
		faults = append(faults, fmt.Errorf("pel: MaxDeliveries %d must be at least 1", l.MaxDeliveries))
	}
	return errors.Join(faults...)
}

// Reclaimed is an entry that a sweep took from a silent consumer.
type Reclaimed struct {
	Stream     string
	ID         stream.ID
	Group      string
	Consumer   string
	Deliveries int
	Fate       Fate
}

// Fate is where a sweep put an entry.
type Fate string

// The fates.
const (
	// FateMoved: to the group's retry stream, for any of its consumers.
	FateMoved Fate = "moved"
	// FateDeliveries: to the dead letters, it was handed over too often.
	FateDeliveries Fate = "deliveries"
	// FateTrimmed: a letter says that its body is gone.
	FateTrimmed Fate = "trimmed"
)

// Reclaimer takes over entries whose consumer went silent. It moves them to the group's
// retry stream, where any consumer of the group gets them, or to the dead letters. Any
// number of reclaimers may work on the same group.
//
// It spares the living: before a sweep it must have reached this Redis without a gap for
// MinIdle, since idle times are absolute, and after an outage everything in the hands of
// live consumers looks abandoned until they have told that they live.
type Reclaimer struct {
	rdb    redis.UniversalClient
	limits Limits
	reach  *Reach
}

// NewReclaimer returns a reclaimer with the group's limits. reach watches the server;
// reclaimers of one client share it.
func NewReclaimer(rdb redis.UniversalClient, limits Limits, reach *Reach) (*Reclaimer, error) {
	limits = limits.WithDefaults()
	if err := limits.Validate(); err != nil {
		return nil, err
	}
	if rdb == nil || reach == nil {
		return nil, errors.New("pel: NewReclaimer needs a Redis client and a Reach")
	}
	return &Reclaimer{rdb: rdb, limits: limits, reach: reach}, nil
}

// Bounds of a sweep's steps.
const (
	sweepExamine = 200             // entries that a call looks at
	sweepFewest  = callEntries / 8 // that it moves at the most, where calls time out
	// After calls that moved something the sweep pauses for a fifth of their time, so that the
	// server never works for it alone. Pauses are saved up: a timer makes short ones longer.
	sweepShare = 5
	sweepPause = 2 * time.Millisecond
)

// Sweep goes once through the pending lists of the group, of the topic's stream and of
// the retry stream, in bounded calls, and reports each entry that it took to fn. Where the
// server was not in reach without a gap for MinIdle it does nothing. A call that times out
// is repeated with half as many entries, a few times; what it took nevertheless is not
// reported. Any other error ends the sweep, and the next one starts over.
func (r *Reclaimer) Sweep(ctx context.Context, k Keys, fn func(Reclaimed)) error {
	return r.sweep(ctx, k, false, fn)
}

// SweepOrdered is Sweep for an ordered group. It takes only what was trimmed from the
// stream, since that would hold retention for ever, and only where nobody leases the
// partition: everything else is finished by the next owner, in order.
func (r *Reclaimer) SweepOrdered(ctx context.Context, k Keys, fn func(Reclaimed)) error {
	return r.sweep(ctx, k, true, fn)
}

func (r *Reclaimer) sweep(ctx context.Context, k Keys, ordered bool, fn func(Reclaimed)) error {
	most := callEntries
	var owed time.Duration
	for _, from := range []string{k.Stream, k.Retry} {
		cursor := "-"
		for cursor != "" {
			if r.reach.Since(k.Stream) < r.limits.MinIdle {
				return nil
			}
			began := time.Now()
			taken, next, err := r.step(ctx, k, ordered, from, cursor, most)
			if redisx.IsTimeout(err) && most > sweepFewest && ctx.Err() == nil {
				most /= 2
				continue
			}
			if redisx.IsNoGroup(err) {
				break
			}
			if err != nil {
				return fmt.Errorf("pel: sweep %s of group %s: %w", from, k.Group, err)
			}
			for _, one := range taken {
				fn(one)
			}
			cursor = next
			if owed += time.Since(began) / sweepShare; cursor != "" && len(taken) > 0 && owed >= sweepPause {
				if !redisx.Pause(ctx, owed) {
					return ctx.Err()
				}
				owed = 0
			}
		}
	}
	return nil
}

func (r *Reclaimer) step(ctx context.Context, k Keys, ordered bool, from, cursor string, most int) (taken []Reclaimed, next string, err error) {
	reply, err := reclaimScript.Run(ctx, r.rdb, []string{from, k.Retry, k.Dead, k.Hash, k.Attempts},
		k.Group, r.limits.MinIdle.Milliseconds(), r.limits.MaxDeliveries, cursor,
		sweepExamine, most, callBytes, flag(from == k.Retry), flag(ordered)).Slice()
	if err != nil {
		return nil, "", err
	}
	if len(reply) < 2 || (len(reply)-2)%4 != 0 {
		return nil, "", redisx.ErrReply
	}
	next, _ = reply[0].(string)
	for i := 2; i < len(reply); i += 4 {
		fate, _ := reply[i].(string)
		idText, _ := reply[i+1].(string)
		consumer, _ := reply[i+2].(string)
		deliveries, _ := reply[i+3].(int64)
		id, err := stream.ParseID(idText)
		if err != nil {
			return nil, "", err
		}
		taken = append(taken, Reclaimed{
			Stream: from, ID: id, Group: k.Group, Consumer: consumer, Deliveries: int(deliveries), Fate: Fate(fate),
		})
	}
	return taken, next, nil
}
