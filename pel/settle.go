package pel

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/settle.lua
	settleText string
	//go:embed lua/ack.lua
	ackText string
	//go:embed lua/extend.lua
	extendText string

	settleScript = redisx.NewScript(settleText)
	ackScript    = redisx.NewScript(ackText)
	extendScript = redisx.NewScript(extendText)
)

// Outcome is how a delivery ends, other than by an ack.
type Outcome string

// The outcomes.
const (
	// Retry hands the event over again after a delay; nobody waits for it meanwhile.
	Retry Outcome = "retry"
	// DeadLetter makes it a letter.
	DeadLetter Outcome = "dead"
	// Release gives it back to the group at once.
	Release Outcome = "release"
)

// Status says what became of one settlement.
type Status int

// The statuses.
const (
	// Settled: it was pending with this consumer, and is settled now.
	Settled Status = iota
	// SettledBefore: it was not pending any more; an earlier call or somebody else
	// settled it, and nothing was done.
	SettledBefore
	// Lost: it is pending with another consumer, which handles it; nothing was done.
	Lost
)

// Settlement is a delivery and how it ends.
type Settlement struct {
	// Entry is the delivery as it was read.
	Entry   stream.Entry
	Outcome Outcome
	// Delay until a retry is due, by the server's clock.
	Delay time.Duration
	// Carried is what the event takes along: its counts with this delivery, unless it is
	// released, which counts nothing.
	Carried Carried
	// Reason and Error describe a letter, Error a retry too.
	Reason dlq.Reason
	Error  string
}

// Carried is the bookkeeping of an event on its way through retries.
type Carried struct {
	// Origin is where the group first read it (dlq.Origin).
	Origin string
	// Attempts counts handler runs, Deliveries hand-overs, Redrives redrives.
	Attempts, Deliveries, Redrives int
	First                          time.Time
	// History is what redriving wrote: the first death, and edits.
	History dlq.History
}

// CarriedBy returns the bookkeeping that an entry of a retry stream brings with it. One
// of the topic's own stream stands at its origin and brings none: what looks like it was
// written by somebody else.
func CarriedBy(en *stream.Entry, fromRetry bool) Carried {
	if !fromRetry {
		return Carried{Origin: dlq.Origin(en.Stream, en.ID)}
	}
	c := Carried{
		Origin: en.Book["origin"], Attempts: count(en.Book["attempts"]),
		Deliveries: count(en.Book["deliveries"]), Redrives: count(en.Book["redrives"]),
		History: dlq.HistoryIn(en),
	}
	if n := count(en.Book["first"]); n > 0 {
		c.First = time.UnixMilli(int64(n)).UTC()
	}
	if c.Origin == "" {
		c.Origin = dlq.Origin(en.Stream, en.ID)
	}
	return c
}

// count reads a number that Streamkeel wrote, and takes what another program may have
// written there (-1, 2^63) for nothing.
func count(s string) int {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<46 {
		return 0
	}
	return int(n)
}

// Bounds of one call to a settling script, which Redis runs while everyone waits.
const (
	callEntries = 100
	callBytes   = 256 << 10
	maxError    = 2048 // bytes of an error's text that are kept
)

// Settler settles the deliveries of one consumer of one group at one stream. It is safe
// for use by many goroutines.
type Settler struct {
	rdb      redis.UniversalClient
	keys     Keys
	consumer string
}

// NewSettler returns a settler for what the consumer has pending at the stream.
func NewSettler(rdb redis.UniversalClient, keys Keys, consumer string) *Settler {
	return &Settler{rdb: rdb, keys: keys, consumer: consumer}
}

// Settle settles the deliveries, each in one atomic step: it is added where it goes and
// removed from the pending list, or neither. repeated says that an earlier call with the
// same settlements had an unknown outcome; then nothing is done twice.
//
// The error joins those of single deliveries, which stay pending, and one of the call:
// where redisx finds it ambiguous some may have been settled, and calling again is right.
// A delivery's status is meaningful where its error is nil.
func (s *Settler) Settle(ctx context.Context, repeated bool, settlements ...Settlement) ([]Status, error) {
	statuses := make([]Status, 0, len(settlements))
	var faults []error
	for len(settlements) > 0 {
		n, args := s.args(repeated, settlements)
		keys := []string{settlements[0].Entry.Stream, s.keys.Due, s.keys.Retry, s.keys.Dead}
		replies, err := settleScript.Run(ctx, s.rdb, keys, args...).StringSlice()
		if err != nil {
			return statuses, fmt.Errorf("pel: settle %s of group %s: %w", settlements[0].Entry.Stream, s.keys.Group, err)
		}
		for i, reply := range replies {
			status, err := parseStatus(reply)
			if err != nil {
				faults = append(faults, fmt.Errorf("pel: settle %s of %s: %w", settlements[i].Entry.ID, settlements[i].Entry.Stream, err))
			}
			statuses = append(statuses, status)
		}
		settlements = settlements[n:]
	}
	return statuses, errors.Join(faults...)
}

func parseStatus(reply string) (Status, error) {
	switch reply {
	case "ok":
		return Settled, nil
	case "done":
		return SettledBefore, nil
	case "lost":
		return Lost, nil
	}
	return Lost, redisx.ServerError(reply)
}

// args returns the arguments for the first settlements, as many as one call takes: all
// of the same stream.
func (s *Settler) args(repeated bool, settlements []Settlement) (n int, args []any) {
	from := settlements[0].Entry.Stream
	args = append(args, s.keys.Group, s.consumer, flag(from == s.keys.Retry), flag(repeated))
	bytes := 0
	for n < len(settlements) && n < callEntries && bytes < callBytes && settlements[n].Entry.Stream == from {
		st := &settlements[n]
		args = append(args, string(st.Outcome), st.Entry.ID.String(), st.Delay.Milliseconds(), 0)
		head := len(args)
		args = s.appendFields(args, st)
		args[head-1] = len(args) - head
		for _, arg := range args[head:] {
			if text, ok := arg.(string); ok {
				bytes += len(text)
			}
		}
		n++
	}
	return n, args
}

// appendFields appends the entry as it will stand.
func (s *Settler) appendFields(args []any, st *Settlement) []any {
	for name, value := range st.Entry.Fields() {
		if !strings.HasPrefix(name, "sk-") {
			args = append(args, name, value)
		}
	}
	return s.appendBook(args, st)
}

func (s *Settler) appendBook(args []any, st *Settlement) []any {
	c := st.Carried
	args = append(args, "sk-origin", c.Origin, "sk-attempts", c.Attempts, "sk-deliveries", c.Deliveries)
	if !c.First.IsZero() {
		args = append(args, "sk-first", c.First.UnixMilli())
	}
	if c.Redrives > 0 {
		args = append(args, "sk-redrives", c.Redrives)
	}
	args = c.History.AppendFields(args)
	if st.Error != "" {
		args = append(args, "sk-error", strings.ToValidUTF8(st.Error[:min(len(st.Error), maxError)], "?"))
	}
	if st.Outcome == DeadLetter {
		args = append(args, "sk-group", s.keys.Group, "sk-consumer", s.consumer, "sk-reason", string(st.Reason))
	}
	return args
}

// AckCmd returns a command that acks entries of the topic's stream, for a pipeline. Its
// reply is how many were pending.
func (s *Settler) AckCmd(ctx context.Context, ids []stream.ID) (redis.Cmder, *redis.Cmd) {
	args := make([]any, 0, 3+len(ids))
	args = append(args, "xack", s.keys.Stream, s.keys.Group)
	return redisx.NewCmd(ctx, appendIDs(args, ids)...)
}

// AckRetries acks entries of the group's retry stream, and deletes them in the same
// step. It returns how many were pending.
func (s *Settler) AckRetries(ctx context.Context, ids []stream.ID) (int, error) {
	acked := 0
	for len(ids) > 0 {
		n := min(len(ids), callEntries)
		args := appendIDs(append(make([]any, 0, 1+n), s.keys.Group), ids[:n])
		got, err := ackScript.Run(ctx, s.rdb, []string{s.keys.Retry}, args...).Int()
		if err != nil {
			return acked, fmt.Errorf("pel: ack %s of group %s: %w", s.keys.Retry, s.keys.Group, err)
		}
		acked += got
		ids = ids[n:]
	}
	return acked, nil
}

// Held says whether an entry that a consumer has in hand is still its own.
type Held int

// What Extend answers for an entry.
const (
	// HeldLost: it is pending with another consumer, or was settled.
	HeldLost Held = -1
	// HeldGone: it was trimmed from the stream; the consumer has the last copy, and may
	// still settle it.
	HeldGone Held = 0
	// HeldExtended: its idle time starts anew.
	HeldExtended Held = 1
)

// Extend is the heartbeat for what the consumer has in hand at streamKey (the topic's
// stream or the retry stream). It resets idle times, counts no delivery, takes nothing
// that went to another consumer, and tells the group that this consumer lives, also with no IDs.
func (s *Settler) Extend(ctx context.Context, streamKey string, ids []stream.ID) ([]Held, error) {
	held := make([]Held, 0, len(ids))
	for first := true; first || len(ids) > 0; first = false {
		n := min(len(ids), callEntries)
		args := appendIDs(append(make([]any, 0, 2+n), s.keys.Group, s.consumer), ids[:n])
		replies, err := extendScript.Run(ctx, s.rdb, []string{streamKey, s.keys.Members}, args...).Int64Slice()
		if err != nil {
			return held, fmt.Errorf("pel: extend %s of group %s: %w", streamKey, s.keys.Group, err)
		}
		for _, reply := range replies {
			held = append(held, Held(reply))
		}
		ids = ids[n:]
	}
	return held, nil
}

// appendIDs appends the IDs as text, which all of them share.
func appendIDs(args []any, ids []stream.ID) []any {
	text, ends := make([]byte, 0, 20*len(ids)), make([]int, len(ids))
	for i, id := range ids {
		text, _ = id.AppendText(text)
		ends[i] = len(text)
	}
	all, texts, start := string(text), make([]string, len(ids)), 0
	for i, end := range ends {
		texts[i], start = all[start:end], end
		args = append(args, &texts[i])
	}
	return args
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}
