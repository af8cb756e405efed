package pel

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/holds.lua
	holdsText string
	//go:embed lua/lease.lua
	leaseText string
	//go:embed lua/takeover.lua
	takeoverText string
	//go:embed lua/ackheld.lua
	ackHeldText string
	//go:embed lua/count.lua
	countText string
	//go:embed lua/hold.lua
	holdText string
	//go:embed lua/giveup.lua
	giveUpText string

	leaseScript    = newLeaseScript(leaseText)
	takeoverScript = newLeaseScript(takeoverText)
	ackHeldScript  = newLeaseScript(ackHeldText)
	countScript    = newLeaseScript(countText)
	holdScript     = newLeaseScript(holdText)
	giveUpScript   = newLeaseScript(giveUpText)
)

func newLeaseScript(text string) *redisx.Script { return redisx.NewScript(holdsText + text) }

// ErrLeaseLost says that a partition of an ordered group is leased to another consumer, or to
// this one with another generation; nothing was done.
var ErrLeaseLost = errors.New("partition is leased to another consumer")

// Lessor leases one partition of an ordered group to one consumer, and does for it what only
// the owner of the lease may do: each call checks in Redis, in the step in which it acts,
// that the lease is the consumer's with the generation given. Only Acquire makes it last
// anew. It is safe for use by many goroutines.
type Lessor struct {
	rdb      redis.UniversalClient
	keys     Keys
	consumer string
	ttl      time.Duration
}

// NewLessor returns the lessor of a partition for a consumer whose leases last for ttl after
// it was last heard of.
func NewLessor(rdb redis.UniversalClient, keys Keys, consumer string, ttl time.Duration) *Lessor {
	return &Lessor{rdb: rdb, keys: keys, consumer: consumer, ttl: ttl}
}

// Grant is a lease.
type Grant struct {
	// Generation is greater than that of every lease of the partition before.
	Generation int64
	// Main and Retry are up to where the group was handed the topic's stream and the retry
	// stream.
	Main, Retry stream.ID
}

// Acquire renews the consumer's lease of that generation, or acquires the partition anew
// where the generation is 0 or lost and nobody else holds it. ErrLeaseLost: somebody does.
func (l *Lessor) Acquire(ctx context.Context, generation int64) (Grant, error) {
	reply, err := leaseScript.Run(ctx, l.rdb, []string{l.keys.Hash, l.keys.Stream, l.keys.Retry},
		l.keys.Group, l.consumer, generation, l.ttl.Milliseconds()).Slice()
	if err == nil && len(reply) == 3 {
		err = fmt.Errorf("%w: %v, for %v ms yet", ErrLeaseLost, reply[1], reply[2])
	} else if err == nil && len(reply) != 4 {
		err = redisx.ErrReply
	}
	if err != nil {
		return Grant{}, l.fail("lease", l.keys.Stream, err)
	}
	g := Grant{}
	g.Generation, _ = reply[1].(int64)
	for i, id := range []*stream.ID{&g.Main, &g.Retry} {
		text, _ := reply[2+i].(string)
		if *id, err = stream.ParseID(text); err != nil {
			return Grant{}, l.fail("lease", l.keys.Stream, err)
		}
	}
	return g, nil
}

// GiveUp ends the consumer's lease of that generation.
func (l *Lessor) GiveUp(ctx context.Context, generation int64) error {
	if err := giveUpScript.Run(ctx, l.rdb, []string{l.keys.Hash}, l.consumer, generation).Err(); err != nil {
		return l.fail("give up", l.keys.Stream, err)
	}
	return nil
}

// Stranded is an entry that an earlier owner left pending.
type Stranded struct {
	Entry stream.Entry
	// Carried has its counts. Deliveries is 0 where no owner began to handle it; it counts
	// as 1 from now on.
	Carried Carried
	// Note is what Hold noted of it, Due how long until its retry.
	Note Note
	Due  time.Duration
}

// TakeOver makes entries that earlier owners left pending at streamKey those of this
// consumer, some at a time and in order, beginning with the cursor "-" and going on from
// next until that is empty. It counts no delivery: Count does when a handler runs. Trimmed
// entries become letters, and are returned.
func (l *Lessor) TakeOver(ctx context.Context, generation int64, streamKey, cursor string) (entries []Stranded, trimmed []Reclaimed, next string, err error) {
	reply, err := takeoverScript.Raw(ctx, l.rdb, []string{streamKey, l.keys.Hash, l.keys.Dead, l.keys.Attempts},
		l.keys.Group, l.consumer, generation, flag(streamKey == l.keys.Retry), cursor, callEntries, callBytes)
	if err == nil {
		defer reply.Free()
		entries, trimmed, next, err = l.decodeTakeOver(&reply, streamKey)
	}
	if err == nil && next == "-" {
		err = ErrLeaseLost
	}
	if err != nil {
		return nil, nil, "", l.fail("take over", streamKey, err)
	}
	return entries, trimmed, next, nil
}

func (l *Lessor) decodeTakeOver(r *redisx.Reply, streamKey string) (entries []Stranded, trimmed []Reclaimed, next string, err error) {
	text := func() string {
		b, e := r.Bytes()
		err = errors.Join(err, e)
		return string(b)
	}
	array := func() int {
		n, e := r.Array()
		err = errors.Join(err, e)
		return n
	}
	array()
	next = text()
	for range array() / 3 {
		one := Reclaimed{Stream: streamKey, Group: l.keys.Group, Fate: FateTrimmed}
		id, e := stream.ParseID(text())
		one.ID, one.Consumer, one.Deliveries = id, text(), count(text())
		trimmed, err = append(trimmed, one), errors.Join(err, e)
	}
	for range array() {
		array()
		deliveries, due, note := count(text()), count(text()), parseNote(text())
		if err != nil {
			break
		}
		en, _, e := stream.DecodeEntry(r, streamKey)
		if e != nil {
			return nil, nil, "", e
		}
		carried := CarriedBy(&en, streamKey == l.keys.Retry)
		carried.Deliveries = deliveries
		if note.Attempts > 0 {
			carried.Attempts = note.Attempts
		}
		if !note.First.IsZero() {
			carried.First = note.First
		}
		entries = append(entries, Stranded{Entry: en, Carried: carried, Note: note, Due: time.Duration(due) * time.Millisecond})
	}
	return entries, trimmed, next, err
}

// Leased is a partition and the generation of the consumer's lease of it.
type Leased struct {
	Keys       Keys
	Generation int64
}

// ReadLeased takes delivery of what is new in leased partitions, in the topic's streams and
// in the retry streams, at most count of each, for the consumer that leases them. lost are
// the places of those that it does not lease any more; they are not read. The reply is that
// of an XREADGROUP. Where there is nothing new the error is the nil reply.
//
// A consumer that was paused must not take what belongs to the next owner, so this is a
// transaction: it looks at the leases, and the read is carried out only if no lease was
// touched since the look. A script could do the same, but reading in one halves the rate.
// On a Cluster all partitions of a call share a slot; elsewhere at most MaxLeased go into one. It does not block. After an ambiguous
// error entries may have been taken: TakeOver from behind the last known one returns them.
func ReadLeased(ctx context.Context, rdb redis.UniversalClient, consumer string, count int, leased []Leased) (reply redisx.Reply, lost []int, err error) {
	hashes := make([]string, len(leased))
	for i, l := range leased {
		hashes[i] = l.Keys.Hash
	}
	for { // a renewal or a checkpoint touches a hash too
		err = rdb.Watch(ctx, func(tx *redis.Tx) error {
			var held []Leased
			held, lost, err = lookAtLeases(ctx, tx, consumer, leased)
			if err != nil {
				return err
			}
			if len(held) == 0 {
				return redis.Nil
			}
			pipe := tx.TxPipeline()
			read := readLeasedCmd(ctx, consumer, count, held)
			_ = pipe.Process(ctx, read) // only queues
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
			reply, err = read.Reply(ctx, rdb)
			return err
		}, hashes...)
		if !errors.Is(err, redis.TxFailedErr) || ctx.Err() != nil {
			break
		}
	}
	if err != nil && !redisx.IsNil(err) {
		err = fmt.Errorf("pel: read leased partitions of group %s: %w", leased[0].Keys.Group, err)
	}
	return reply, lost, err
}

// MaxLeased is how many partitions one ReadLeased should read: each is touched once a second
// or more, and then the transaction begins anew.
const MaxLeased = 32

// lookAtLeases returns the leases that last, and the places of the others.
func lookAtLeases(ctx context.Context, tx *redis.Tx, consumer string, leased []Leased) (held []Leased, lost []int, err error) {
	pipe := tx.Pipeline()
	looks := make([]*redis.Cmd, len(leased))
	for i, l := range leased {
		var cmd redis.Cmder
		cmd, looks[i] = redisx.NewCmd(ctx, "hmget", l.Keys.Hash, "lease-owner", "lease-generation")
		_ = pipe.Process(ctx, cmd) // only queues
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, nil, err
	}
	for i, look := range looks {
		values, err := look.StringSlice()
		if err != nil && !errors.Is(err, redis.Nil) {
			values = nil // a field is missing
		}
		if len(values) == 2 && values[0] == consumer && values[1] == strconv.FormatInt(leased[i].Generation, 10) {
			held = append(held, leased[i])
		} else {
			lost = append(lost, i)
		}
	}
	return held, lost, nil
}

func readLeasedCmd(ctx context.Context, consumer string, count int, held []Leased) redisx.RawCmd {
	args := make([]any, 0, 7+4*len(held))
	args = append(args, "xreadgroup", "group", held[0].Keys.Group, consumer, "count", count, "streams")
	for _, l := range held {
		args = append(args, l.Keys.Stream, l.Keys.Retry)
	}
	for range held {
		args = append(args, ">", ">")
	}
	return redisx.NewRaw(ctx, args...)
}

// Ack acks entries of streamKey that were handled, and of which nothing was noted.
func (l *Lessor) Ack(ctx context.Context, generation int64, streamKey string, ids []stream.ID) error {
	for len(ids) > 0 {
		n := min(len(ids), maxAcks)
		args := appendIDs([]any{l.keys.Group, l.consumer, generation, flag(streamKey == l.keys.Retry)}, ids[:n])
		held, err := ackHeldScript.Run(ctx, l.rdb, []string{streamKey, l.keys.Hash}, args...).Int()
		if err == nil && held != 1 {
			err = ErrLeaseLost
		}
		if err != nil {
			return l.fail("ack", streamKey, err)
		}
		ids = ids[n:]
	}
	return nil
}

const maxAcks = 1000 // of one call

// Count sets how often entries count as delivered: one more before a handler runs anew, 0
// when they are given up before one ran.
func (l *Lessor) Count(ctx context.Context, generation int64, streamKey string, deliveries int, ids ...stream.ID) error {
	for len(ids) > 0 {
		n := min(len(ids), callEntries)
		args := appendIDs([]any{l.keys.Group, l.consumer, generation, deliveries}, ids[:n])
		held, err := countScript.Run(ctx, l.rdb, []string{streamKey, l.keys.Hash}, args...).Int()
		if err == nil && held != 1 {
			err = ErrLeaseLost
		}
		if err != nil {
			return l.fail("count", streamKey, err)
		}
		ids = ids[n:]
	}
	return nil
}

// Hold notes what became of an entry that stays pending: its key's later events wait for it.
func (l *Lessor) Hold(ctx context.Context, generation int64, en *stream.Entry, note Note, delay time.Duration) error {
	_, err := l.settle(ctx, generation, false, "hold", en, nil, note.head(), delay.Milliseconds(), note.tail())
	return err
}

// AckHeld acks an entry of which something was noted.
func (l *Lessor) AckHeld(ctx context.Context, generation int64, en *stream.Entry) error {
	_, err := l.settle(ctx, generation, false, "ack", en, nil, "", 0, "")
	return err
}

// DeadLetter makes a delivery a letter. repeated says that an earlier call had an unknown
// outcome; then nothing is done twice.
func (l *Lessor) DeadLetter(ctx context.Context, generation int64, repeated bool, st Settlement) (Status, error) {
	st.Outcome = DeadLetter
	s := &Settler{rdb: l.rdb, keys: l.keys, consumer: l.consumer}
	return l.settle(ctx, generation, repeated, "dead", &st.Entry, s.appendFields(nil, &st), "", 0, "")
}

func (l *Lessor) settle(ctx context.Context, generation int64, repeated bool, outcome string, en *stream.Entry, fields []any, state string, delay int64, tail string) (Status, error) {
	args := append([]any{
		l.keys.Group, l.consumer, generation, flag(en.Stream == l.keys.Retry), flag(repeated),
		outcome, en.ID.String(), state, delay, tail,
	}, fields...)
	reply, err := holdScript.Run(ctx, l.rdb, []string{en.Stream, l.keys.Hash, l.keys.Attempts, l.keys.Dead}, args...).Text()
	if err == nil && reply == "lost" {
		err = ErrLeaseLost
	}
	if err != nil {
		return Lost, l.fail("settle "+en.ID.String(), en.Stream, err)
	}
	return parseStatus(reply)
}

func (l *Lessor) fail(what, where string, err error) error {
	return fmt.Errorf("pel: %s of group %s at %s: %w", what, l.keys.Group, where, err)
}
