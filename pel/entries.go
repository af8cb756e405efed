package pel

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// Member is a consumer as Redis knows it at one stream of a topic.
type Member struct {
	Name string
	// Pending counts what it has in hand, of the topic's stream and of the retry stream.
	Pending int64
	// Silent is for how long nothing was heard of it, neither a read nor a heartbeat.
	Silent time.Duration
}

// Members returns the group's consumers at a stream, by name: those that live, and those
// whose name nobody has deleted yet. Where the group is missing there are none.
func Members(ctx context.Context, rdb redis.UniversalClient, k Keys) ([]Member, error) {
	pipe := rdb.Pipeline()
	cmds := []*redis.XInfoConsumersCmd{pipe.XInfoConsumers(ctx, k.Stream, k.Group), pipe.XInfoConsumers(ctx, k.Retry, k.Group)}
	lengths := []*redis.IntCmd{pipe.XLen(ctx, k.Stream), pipe.XLen(ctx, k.Retry)}
	beats := pipe.ZRangeWithScores(ctx, k.Members, 0, -1)
	_, _ = pipe.Exec(ctx) // each command has its own error
	clock := clocks{rdb: rdb, now: map[redis.UniversalClient]time.Time{}}
	now, err := clock.of(ctx, k.Stream)
	if err == nil {
		err = beats.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("pel: members of group %s at %s: %w", k.Group, k.Stream, err)
	}
	members := map[string]*Member{}
	heard := func(name string, pending int64, silent time.Duration) {
		m := members[name]
		if m == nil {
			m = &Member{Name: name, Silent: silent}
			members[name] = m
		}
		m.Pending += pending
		m.Silent = min(m.Silent, silent)
	}
	for i, cmd := range cmds {
		consumers, err := cmd.Result()
		noStream := redisx.IsServer(err) && !redisx.IsNoPerm(err) && lengths[i].Err() == nil && lengths[i].Val() == 0
		if err != nil && !redisx.IsNoGroup(err) && !noStream {
			return nil, fmt.Errorf("pel: members of group %s at %s: %w", k.Group, k.Stream, err)
		}
		for _, c := range consumers {
			heard(c.Name, c.Pending, c.Idle)
		}
	}
	for _, beat := range beats.Val() {
		if name, ok := beat.Member.(string); ok && beat.Score > 0 {
			heard(name, 0, since(now, uint64(beat.Score)))
		}
	}
	all := make([]Member, 0, len(members))
	for _, m := range members {
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// PendingEntry is a delivery that was not settled.
type PendingEntry struct {
	// Stream is the topic's stream or the group's retry stream, ID the entry in it.
	Stream string
	ID     stream.ID
	// Consumer has it in hand, and last took or extended it Idle ago.
	Consumer string
	Idle     time.Duration
	// Carried has its counts, this delivery included. What an entry of the topic's stream
	// brings is only its deliveries: it was not retried yet.
	Carried Carried
}

// EntryFilter selects pending entries; the zero EntryFilter selects all.
type EntryFilter struct {
	Consumer      string        // in the hands of this one
	MinIdle       time.Duration // for at least so long
	MinDeliveries int           // handed over at least so often
}

// EntryPage is a part of a list of pending entries.
type EntryPage struct {
	Entries []PendingEntry
	// Next is where the list goes on, or empty at its end.
	Next string
}

// The page size of Entries, and how many entries one call looks at: fewer of a retry stream,
// whose entries are read too, since they carry their counts.
const (
	defaultPage  = 100
	maxPage      = 1000
	lookMain     = 500
	lookRetry    = 20
	retryPlace   = "retry"
	mainPlace    = "main"
	fromTheStart = "-"
)

// Entries returns pending entries that match, those of the topic's stream before those of the
// retry stream, oldest first, at most limit (default 100, at most 1,000). It goes on from a
// page's Next. It only reads, in calls that look at 500 entries each, so that a list of any
// length blocks nobody; a filter that matches little makes many of them.
func Entries(ctx context.Context, rdb redis.UniversalClient, k Keys, f EntryFilter, next string, limit int) (EntryPage, error) {
	if limit < 0 || limit > maxPage {
		return EntryPage{}, fmt.Errorf("pel: limit %d is not 1 to %d", limit, maxPage)
	}
	if limit == 0 {
		limit = defaultPage
	}
	place, from := mainPlace, fromTheStart
	if next != "" {
		var found bool
		place, from, found = strings.Cut(next, "/")
		id, err := stream.ParseID(from)
		if !found || err != nil || (place != mainPlace && place != retryPlace) {
			return EntryPage{}, fmt.Errorf("pel: %.60q is not the Next of a page", next)
		}
		from = id.String()
	}
	page := EntryPage{}
	for {
		key, look := k.Stream, lookMain
		if place == retryPlace {
			key, look = k.Retry, lookRetry
		}
		entries, err := readPending(ctx, rdb, k, key, f.Consumer, from, look)
		if err != nil {
			return EntryPage{}, fmt.Errorf("pel: pending entries of group %s at %s: %w", k.Group, key, err)
		}
		for _, en := range entries {
			if len(page.Entries) == limit {
				page.Next = place + "/" + en.ID.String()
				return page, nil
			}
			if en.Idle >= f.MinIdle && en.Carried.Deliveries >= f.MinDeliveries {
				page.Entries = append(page.Entries, en)
			}
		}
		switch {
		case len(entries) == look:
			from = entries[look-1].ID.Next().String()
		case place == mainPlace:
			place, from = retryPlace, fromTheStart
		default:
			return page, nil
		}
	}
}

// readPending looks at some entries of a pending list, from an ID on.
func readPending(ctx context.Context, rdb redis.UniversalClient, k Keys, key, consumer, from string, count int) ([]PendingEntry, error) {
	// No IDLE here: with it one call may look at the whole list.
	pending, err := rdb.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: key, Group: k.Group, Consumer: consumer, Start: from, End: "+", Count: int64(count),
	}).Result()
	if redisx.IsNoGroup(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	entries := make([]PendingEntry, len(pending))
	var bodies []redisx.RawCmd
	pipe := rdb.Pipeline()
	for i, p := range pending {
		id, err := stream.ParseID(p.ID)
		if err != nil {
			return nil, err
		}
		entries[i] = PendingEntry{Stream: key, ID: id, Consumer: p.Consumer, Idle: p.Idle, Carried: Carried{Deliveries: int(p.RetryCount)}}
		if key == k.Retry {
			cmd := redisx.NewRaw(ctx, "xrange", key, p.ID, p.ID)
			bodies = append(bodies, cmd)
			_ = pipe.Process(ctx, cmd) // only queues
		}
	}
	if len(bodies) == 0 {
		return entries, nil
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, cmd := range bodies {
		carried, err := carriedIn(ctx, rdb, cmd, key)
		if err != nil {
			return nil, err
		}
		carried.Deliveries += entries[i].Carried.Deliveries
		entries[i].Carried = carried
	}
	return entries, nil
}

// carriedIn returns what the retry entry in a reply carries; nothing where it is gone.
func carriedIn(ctx context.Context, rdb redis.UniversalClient, cmd redisx.RawCmd, key string) (Carried, error) {
	reply, err := cmd.Reply(ctx, rdb)
	if err != nil {
		return Carried{}, err
	}
	n, err := reply.Array()
	if err != nil || n <= 0 {
		return Carried{}, err
	}
	en, _, err := stream.DecodeEntry(&reply, key)
	if err != nil {
		return Carried{}, err
	}
	return CarriedBy(&en, true), nil
}
