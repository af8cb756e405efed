package pel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// Totals is what a group has open at a stream, or, after [Sum], at several. It is a look
// from outside: the numbers of one stream were read within one round trip, while the group
// went on.
type Totals struct {
	// Missing counts the streams that lack the group (0 or 1): it was never made there, or
	// vanished and is not healed yet. Nothing is trimmed until it is back.
	Missing int
	// Length is the number of entries in the topic's stream, finished ones too.
	Length int64
	// Pending counts the deliveries that were not settled, of the topic's stream and of the
	// retry stream.
	Pending int64
	// Oldest is for how long the oldest of them has been in its stream, by the server's
	// clock; 0 where nothing is pending. A retried event counts from its move to the retry
	// stream, and an entry that was written with an ID of its own by that ID.
	Oldest time.Duration
	// Lag counts the entries of the topic's stream that were not delivered yet. Redis cannot
	// always tell it (after deletions, or for a group that starts in the middle): then
	// LagKnown is false, and Lag is not the number of anything.
	Lag      int64
	LagKnown bool
	// Retry counts the entries of the retry stream, Due the retries that wait for their time.
	Retry, Due int64
	// Overdue is for how long the earliest of those has been due; more than seconds means that
	// nobody does the group's upkeep. 0 where none is due.
	Overdue time.Duration
	// Letters counts the dead letters.
	Letters int64
	// Consumers counts the consumers that were heard of lately. Of several streams it is the
	// largest number, since consumers read all of a topic.
	Consumers int64
	// Err says why the stream could not be inspected (a key of another type, a missing
	// permission); then nothing else is set.
	Err error
}

// Sum adds up the totals of several streams. Lag is known if it is known of each. What has an
// Err is left out, and the sum has the first such Err.
func Sum(totals ...Totals) Totals {
	sum := Totals{LagKnown: len(totals) > 0}
	for _, t := range totals {
		if t.Err != nil {
			sum.LagKnown = false
			if sum.Err == nil {
				sum.Err = t.Err
			}
			continue
		}
		sum.Missing += t.Missing
		sum.Length += t.Length
		sum.Pending += t.Pending
		sum.Oldest = max(sum.Oldest, t.Oldest)
		sum.Lag += t.Lag
		sum.LagKnown = sum.LagKnown && t.LagKnown
		sum.Retry += t.Retry
		sum.Due += t.Due
		sum.Overdue = max(sum.Overdue, t.Overdue)
		sum.Letters += t.Letters
		sum.Consumers = max(sum.Consumers, t.Consumers)
	}
	return sum
}

// inspectKeys is how many streams one round trip inspects.
const inspectKeys = 50

// Inspect returns the totals of each of the keys, in their order. It only reads, in
// pipelines of at most 450 commands, none of which depends on how much is pending: XPENDING,
// XINFO GROUPS, XLEN, ZCARD, ZRANGE and TIME.
//
// The error joins the Err of each; an unreachable server ends the call with that alone.
func Inspect(ctx context.Context, rdb redis.UniversalClient, keys ...Keys) ([]Totals, error) {
	all := make([]Totals, 0, len(keys))
	var faults []error
	clocks := clocks{rdb: rdb, now: map[redis.UniversalClient]time.Time{}}
	for len(keys) > 0 {
		n := min(len(keys), inspectKeys)
		looks := make([]look, n)
		pipe := rdb.Pipeline()
		for i := range looks {
			looks[i] = newLook(ctx, pipe, keys[i])
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
		for i := range looks {
			t, err := looks[i].totals(ctx, &clocks)
			if err != nil {
				err = fmt.Errorf("pel: inspect %s of group %s: %w", keys[i].Stream, keys[i].Group, err)
				if !redisx.IsServer(err) || redisx.IsUnavailable(err) {
					return nil, err
				}
				t = Totals{Err: err}
				faults = append(faults, err)
			}
			all = append(all, t)
		}
		keys = keys[n:]
	}
	return all, errors.Join(faults...)
}

// look is the commands that inspect one stream.
type look struct {
	keys             Keys
	main, retried    *redis.XPendingCmd
	groups           *redis.XInfoGroupsCmd
	length           *redis.IntCmd
	retry, due, dead *redis.IntCmd
	members          *redis.IntCmd
	firstDue         *redis.ZSliceCmd
}

func newLook(ctx context.Context, pipe redis.Pipeliner, k Keys) look {
	return look{
		keys: k,
		main: pipe.XPending(ctx, k.Stream, k.Group), retried: pipe.XPending(ctx, k.Retry, k.Group),
		groups: pipe.XInfoGroups(ctx, k.Stream), length: pipe.XLen(ctx, k.Stream),
		retry: pipe.XLen(ctx, k.Retry), due: pipe.ZCard(ctx, k.Due), dead: pipe.XLen(ctx, k.Dead),
		members: pipe.ZCard(ctx, k.Members), firstDue: pipe.ZRangeWithScores(ctx, k.Due, 0, 0),
	}
}

func (l *look) totals(ctx context.Context, clocks *clocks) (Totals, error) {
	missing := redisx.IsNoGroup(l.main.Err())
	for _, cmd := range []redis.Cmder{l.main, l.retried, l.groups, l.length, l.retry, l.due, l.dead, l.members, l.firstDue} {
		err := cmd.Err()
		if err == nil || redisx.IsNil(err) || redisx.IsNoGroup(err) || (missing && cmd == redis.Cmder(l.groups)) {
			continue
		}
		return Totals{}, err
	}
	now, err := clocks.of(ctx, l.keys.Stream)
	if err != nil {
		return Totals{}, err
	}
	t := Totals{
		Length: l.length.Val(), Retry: l.retry.Val(), Due: l.due.Val(), Letters: l.dead.Val(), Consumers: l.members.Val(),
	}
	for _, cmd := range []*redis.XPendingCmd{l.main, l.retried} {
		pending := cmd.Val()
		if cmd.Err() != nil || pending == nil || pending.Count == 0 {
			continue
		}
		t.Pending += pending.Count
		oldest, err := stream.ParseID(pending.Lower)
		if err != nil {
			return Totals{}, err
		}
		t.Oldest = max(t.Oldest, since(now, oldest.Ms))
	}
	if missing {
		t.Missing = 1
	}
	for _, g := range l.groups.Val() {
		if g.Name == l.keys.Group && g.Lag >= 0 {
			t.Lag, t.LagKnown = g.Lag, true
		}
	}
	if first := l.firstDue.Val(); len(first) > 0 && first[0].Score > 0 {
		t.Overdue = since(now, uint64(first[0].Score))
	}
	return t, nil
}

// since returns how long ago a time in milliseconds was: 0 where it is to come, and at most
// the 292 years that a Duration holds.
func since(now time.Time, ms uint64) time.Duration {
	if ms > 1<<60 { // not a time
		return 0
	}
	return max(now.Sub(time.UnixMilli(int64(ms))), 0)
}

// clocks asks each server once what time it is.
type clocks struct {
	rdb redis.UniversalClient
	now map[redis.UniversalClient]time.Time
}

func (c *clocks) of(ctx context.Context, key string) (time.Time, error) {
	node, err := redisx.NodeFor(ctx, c.rdb, key)
	if err != nil {
		return time.Time{}, err
	}
	if now, asked := c.now[node]; asked {
		return now, nil
	}
	now, err := node.Time(ctx).Result()
	if err != nil {
		return time.Time{}, err
	}
	c.now[node] = now
	return now, nil
}
