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
	//go:embed lua/holds.lua
	holdsText string
	//go:embed lua/lease.lua
	leaseText string
	//go:embed lua/takeover.lua
	takeoverText string
	//go:embed lua/take.lua
	takeText string
	//go:embed lua/count.lua
	countText string
	//go:embed lua/hold.lua
	holdText string
	//go:embed lua/giveup.lua
	giveUpText string

	leaseScript    = newLeaseScript(leaseText)
	takeoverScript = newLeaseScript(takeoverText)
	takeScript     = newLeaseScript(takeText)
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
// that the lease is the consumer's with the generation given, and makes it last anew. It is
// safe for use by many goroutines.
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
	// Main and Retry are how far the group was handed the topic's stream and the retry stream.
	Main, Retry Handed
}

// Handed is how far a group was handed a stream: up to the entry ID, the Count-th that the
// stream was ever given (-1: not known).
type Handed struct {
	ID    stream.ID
	Count int64
}

// Acquire renews the consumer's lease of that generation, or acquires the partition anew
// where the generation is 0 or lost and nobody else holds it. ErrLeaseLost: somebody does.
func (l *Lessor) Acquire(ctx context.Context, generation int64) (Grant, error) {
	reply, err := leaseScript.Run(ctx, l.rdb, []string{l.keys.Hash, l.keys.Stream, l.keys.Retry},
		l.keys.Group, l.consumer, generation, l.ttl.Milliseconds()).Slice()
	if err == nil && len(reply) == 4 {
		err = fmt.Errorf("%w: %v, for %v ms yet", ErrLeaseLost, reply[3], reply[2])
	} else if err == nil && len(reply) != 6 {
		err = redisx.ErrReply
	}
	if err != nil {
		return Grant{}, l.fail("lease", l.keys.Stream, err)
	}
	g := Grant{}
	g.Generation, _ = reply[1].(int64)
	for i, h := range []*Handed{&g.Main, &g.Retry} {
		id, _ := reply[2+2*i].(string)
		h.Count, _ = reply[3+2*i].(int64)
		if h.ID, err = stream.ParseID(id); err != nil {
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
		l.keys.Group, l.consumer, generation, l.ttl.Milliseconds(), flag(streamKey == l.keys.Retry), cursor, callEntries, callBytes)
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

// TakeCmd returns a command, for a pipeline, that takes delivery of entries which were read
// from streamKey without the group, in order, and acks those that were handled. from is
// where they were read from: what Grant said of that stream, or the last entry taken and what
// Took said. Took reads the reply. LoadTake comes first.
func (l *Lessor) TakeCmd(ctx context.Context, generation int64, streamKey string, from Handed, acks, ids []stream.ID) (redis.Cmder, *redis.Cmd) {
	return takeScript.NewCmd(ctx, []string{streamKey, l.keys.Hash}, l.takeArgs(generation, streamKey, from, acks, ids)...)
}

func (l *Lessor) takeArgs(generation int64, streamKey string, from Handed, acks, ids []stream.ID) []any {
	args := make([]any, 0, 8+len(acks)+len(ids))
	args = append(args, l.keys.Group, l.consumer, generation, l.ttl.Milliseconds(), flag(streamKey == l.keys.Retry), from.Count, from.ID.String(), len(acks))
	return appendIDs(appendIDs(args, acks), ids)
}

// Took returns how many entries the group was handed by now, from the reply to a TakeCmd.
// ErrLeaseLost also says that the group stands before where they were read from: it was made
// anew, or sought back.
func (l *Lessor) Took(reply *redis.Cmd) (handed int64, err error) {
	handed, err = reply.Int64()
	if err == nil && handed < -1 {
		err = ErrLeaseLost
	}
	if err != nil {
		return 0, l.fail("take", l.keys.Stream, err)
	}
	return handed, nil
}

// LoadTake makes the script of TakeCmd known to the server, which forgets it when it starts.
func (l *Lessor) LoadTake(ctx context.Context) error {
	return takeScript.Load(ctx, l.rdb, l.keys.Stream)
}

// Ack acks entries of streamKey that were handled, without more.
func (l *Lessor) Ack(ctx context.Context, generation int64, streamKey string, ids []stream.ID) error {
	for len(ids) > 0 {
		n := min(len(ids), MaxAcks)
		_, err := l.Took(takeScript.Run(ctx, l.rdb, []string{streamKey, l.keys.Hash}, l.takeArgs(generation, streamKey, Handed{Count: -1}, ids[:n], nil)...))
		if err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// MaxAcks is the most acks that one TakeCmd takes.
const MaxAcks = 1000

// Count sets how often entries count as delivered: one more before a handler runs anew, 0
// when they are given up before one ran.
func (l *Lessor) Count(ctx context.Context, generation int64, streamKey string, deliveries int, ids ...stream.ID) error {
	for len(ids) > 0 {
		n := min(len(ids), callEntries)
		args := appendIDs([]any{l.keys.Group, l.consumer, generation, l.ttl.Milliseconds(), deliveries}, ids[:n])
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
		l.keys.Group, l.consumer, generation, l.ttl.Milliseconds(), flag(en.Stream == l.keys.Retry), flag(repeated),
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
