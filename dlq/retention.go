package dlq

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/discard.lua
	discardText   string
	discardScript = redisx.NewScript(discardText)
)

// Full says what happens to letters beyond a [Retention]'s MaxLen.
type Full string

// What happens to them.
const (
	// FullKeep keeps them all, and reports how many are too many. It is the default.
	FullKeep Full = ""
	// FullDiscard deletes the oldest, counted, and archived before.
	FullDiscard Full = "discard"
	// FullPause keeps them all, and has the group's upkeep (package consumergroup, the
	// reclaimer daemon) pause the group until letters were redriven or purged. Some seconds of
	// events may die meanwhile.
	FullPause Full = "pause"
)

// Retention bounds a group's letters. The zero Retention keeps all for ever. Nothing is ever
// discarded silently: reports and a counter in Redis tell how much was, and why.
type Retention struct {
	// MaxLen is how many letters a partition is to hold. Default: no limit.
	MaxLen int64
	// OnFull says what happens to more. Default FullKeep.
	OnFull Full
	// MaxAge is for how long a letter stays, by the server's clock, from when it came into the
	// stream. Older ones are discarded. Default: for ever. Keep it well above the time in which
	// somebody looks.
	MaxAge time.Duration
	// Archive gets letters before they are discarded; where it fails nothing is. It may get a
	// letter twice. Default: none.
	Archive func(ctx context.Context, letters []Letter) error
}

// Validate reports every rule that the retention breaks, joined.
func (r Retention) Validate() error {
	var faults []error
	if r.MaxLen < 0 {
		faults = append(faults, fmt.Errorf("dlq: MaxLen %d is negative", r.MaxLen))
	}
	if r.MaxAge < 0 || r.MaxAge > 0 && r.MaxAge < time.Millisecond {
		faults = append(faults, fmt.Errorf("dlq: MaxAge %s must be 1ms or more", r.MaxAge))
	}
	if r.OnFull != FullKeep && r.OnFull != FullDiscard && r.OnFull != FullPause {
		faults = append(faults, fmt.Errorf("dlq: OnFull %.60q is none of %q, %q and %q", string(r.OnFull), string(FullKeep), string(FullDiscard), string(FullPause)))
	}
	if r.OnFull != FullKeep && r.MaxLen == 0 {
		faults = append(faults, fmt.Errorf("dlq: OnFull %.60s needs MaxLen", string(r.OnFull)))
	}
	return errors.Join(faults...)
}

// Report says what a retention found and did.
type Report struct {
	// Letters stand there now. Over of them are beyond MaxLen, and were kept.
	Letters, Over int64
	// Discarded counts the letters that were discarded, by reason.
	Discarded map[Reason]int
}

// Trim discards the letters that the retention says may go, the oldest first. Any number of
// processes may do it at the same time. It returns what was done, also with an error.
func (q *Queue) Trim(ctx context.Context, r Retention) (Report, error) {
	report := Report{Discarded: map[Reason]int{}}
	if err := r.Validate(); err != nil {
		return report, err
	}
	for p := range q.topic.Count() {
		if err := q.trim(ctx, p, r, &report); err != nil {
			return report, err
		}
	}
	return report, nil
}

func (q *Queue) trim(ctx context.Context, p int, r Retention, report *Report) error {
	for {
		length, err := q.rdb.XLen(ctx, q.deadKey(p)).Result()
		if err != nil {
			return q.fail("trim", err)
		}
		old, err := q.disposable(ctx, p, r, length)
		if err != nil {
			return err
		}
		discarded := 0
		if len(old) > 0 {
			if discarded, err = q.discard(ctx, p, r, old, report); err != nil {
				return err
			}
		}
		if length -= int64(discarded); len(old) == readCount {
			continue
		}
		report.Letters += length
		if r.MaxLen > 0 {
			report.Over += max(length-r.MaxLen, 0)
		}
		return nil
	}
}

// disposable returns the oldest letters that may go.
func (q *Queue) disposable(ctx context.Context, p int, r Retention, length int64) ([]Letter, error) {
	over := int64(0)
	if r.OnFull == FullDiscard {
		over = length - r.MaxLen
	}
	oldest := stream.ID{}
	if r.MaxAge > 0 && length > 0 {
		node, err := redisx.NodeFor(ctx, q.rdb, q.deadKey(p))
		if err != nil {
			return nil, q.fail("trim", err)
		}
		now, err := node.Time(ctx).Result()
		if err != nil {
			return nil, q.fail("trim", err)
		}
		oldest.Ms = uint64(max(now.Add(-r.MaxAge).UnixMilli(), 0))
	}
	if over <= 0 && oldest.IsZero() {
		return nil, nil
	}
	letters, err := q.read(ctx, p, stream.ID{}, "+")
	if err != nil {
		return nil, err
	}
	n := 0
	for n < len(letters) && (int64(n) < over || letters[n].ID.Compare(oldest) < 0) {
		n++
	}
	return letters[:n], nil
}

func (q *Queue) discard(ctx context.Context, p int, r Retention, old []Letter, report *Report) (int, error) {
	if r.Archive != nil {
		if err := r.Archive(ctx, old); err != nil {
			return 0, q.fail("archive", err)
		}
	}
	most, age := int64(-1), int64(-1)
	if r.OnFull == FullDiscard {
		most = r.MaxLen
	}
	if r.MaxAge > 0 {
		age = r.MaxAge.Milliseconds()
	}
	args := []any{most, age}
	reasons := map[string]Reason{}
	for i := range old {
		args = append(args, old[i].ID.String())
		reasons[old[i].ID.String()] = old[i].Reason
	}
	keys := []string{q.deadKey(p), stream.KeyGroup.Key(q.topic.StreamKey(p), q.group)}
	deleted, err := discardScript.Run(ctx, q.rdb, keys, args...).StringSlice()
	if err != nil {
		return 0, q.fail("discard", err)
	}
	for _, id := range deleted {
		report.Discarded[reasons[id]]++
	}
	return len(deleted), nil
}

// Discarded returns how many letters retentions have discarded since the group was made.
func (q *Queue) Discarded(ctx context.Context) (int64, error) {
	var total int64
	for p := range q.topic.Count() {
		n, err := q.rdb.HGet(ctx, stream.KeyGroup.Key(q.topic.StreamKey(p), q.group), "discarded").Int64()
		if err != nil && !redisx.IsNil(err) {
			return 0, q.fail("count discarded", err)
		}
		total += n
	}
	return total, nil
}
