package dlq

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/redrive.lua
	redriveText   string
	redriveScript = redisx.NewScript(redriveText)
)

// ErrNoBody says that a letter cannot go back: its entry was trimmed before it was handled.
var ErrNoBody = errors.New("nothing is left of the event; purge the letter")

// Redrive gives letters back to their group: they are handled again, with fresh attempts
// and deliveries, and no other group sees them. A letter and its return are one step: where
// several redrive the same letters, each goes back once.
//
// It returns how many went back; the error joins ErrNotFound for each that was not there, and
// ErrNoBody for each of which nothing is left to handle. After any other error those that did
// not go back are still letters, and calling again is right.
func (q *Queue) Redrive(ctx context.Context, refs ...Ref) (int, error) {
	run := redriveRun{q: q}
	err := run.named(ctx, refs)
	return run.sum.Done, err
}

// redriven returns what the script's reply says of a letter: nil where it went back.
func (q *Queue) redriven(ref Ref, reply string) error {
	switch reply {
	case "ok":
		return nil
	case "gone":
		return q.missing(ref)
	case "empty":
		return fmt.Errorf("dlq: letter %s: %w", ref, ErrNoBody)
	}
	return fmt.Errorf("dlq: letter %s: %w", ref, redisx.ServerError(reply))
}

// giveBack runs the script for letters of one partition, in calls of bounded size. The
// replies are those of the first letters, all of them where err is nil.
func (q *Queue) giveBack(ctx context.Context, p int, keep bool, e edit, refs []Ref) (replies []string, err error) {
	keys := []string{q.deadKey(p), stream.KeyRetry.Key(q.topic.StreamKey(p), q.group)}
	for len(replies) < len(refs) {
		args := append(append([]any{callBytes, keep}, e[:]...), ids(refs[len(replies):])...)
		more, err := redriveScript.Run(ctx, q.rdb, keys, args...).StringSlice()
		if err != nil {
			return replies, q.fail("redrive", err)
		}
		replies = append(replies, more...)
	}
	return replies, nil
}

// edit is what the script takes of an Edit; the zero edit changes nothing.
type edit [5]any

// Edit is a payload to put in the place of a letter's.
type Edit struct {
	// Data is the payload.
	Data []byte
	// ContentType says what Data is. Default: as before.
	ContentType string
	// By is who says so: a name, at most 200 bytes. It is written beside the event.
	By string
	// KeepAttempts gives the event back with the attempts that it has.
	KeepAttempts bool
}

// RedriveEdited gives a letter back with another payload. The event keeps its id: other groups
// and projections know it as it was published. Who edited it, when, and the digest of the
// payload that was published go with it, into its next letter too.
//
// A payload that cannot be decoded as its content type is refused (stream.ErrUndecodable),
// unless nothing is known of that type; so is one of more than stream.MaxData bytes.
func (q *Queue) RedriveEdited(ctx context.Context, ref Ref, e Edit) error {
	l, err := q.Get(ctx, ref)
	if err != nil {
		return err
	}
	if len(l.Fields()) == 0 {
		return q.redriven(ref, "empty")
	}
	event := l.Entry.Event
	original := sha256.Sum256(event.Data)
	event.Data = e.Data
	if e.ContentType != "" {
		event.ContentType = e.ContentType
	}
	if err := checkEdit(event, e); err != nil {
		return fmt.Errorf("dlq: edit of letter %s: %w", ref, err)
	}
	args := edit{true, e.ContentType, e.Data, e.By, hex.EncodeToString(original[:])}
	replies, err := q.giveBack(ctx, ref.Partition, e.KeepAttempts, args, []Ref{ref})
	if err != nil {
		return err
	}
	return q.redriven(ref, replies[0])
}

const maxEditor = 200

func checkEdit(event stream.Event, e Edit) error {
	var faults []error
	if len(e.By) > maxEditor {
		faults = append(faults, fmt.Errorf("dlq: By has %d bytes, %d are allowed", len(e.By), maxEditor))
	}
	// The other fields are as they were published, or are malformed and stay so.
	check := stream.NewEvent("edited", "", event.ContentType, event.Data)
	if err := check.Validate(); err != nil {
		faults = append(faults, err)
	} else if codec := stream.CodecFor(event.ContentType); codec != nil {
		var v any
		faults = append(faults, codec.Decode(event.Data, &v))
	}
	return errors.Join(faults...)
}

// Redrive says which letters go back to their group, and how. The zero Redrive is all of
// them, as fast as Redis takes them, with fresh attempts.
type Redrive struct {
	// Letters are those that go back, whatever the Filter, Limit and MaxRedrives; each that
	// does not is part of the error. Default: all that match the Filter.
	Letters []Ref
	// Filter selects the letters. Default: all.
	Filter Filter
	// Limit is how many go back at the most. Default: no limit.
	Limit int
	// PerSecond is how many go back in a second, so that the group, and what it calls, can
	// keep pace. Default: no limit.
	PerSecond int
	// KeepAttempts gives events back with the attempts that they have: one that failed as
	// often as its group's policy allows gets one attempt more. Deliveries start anew, or no
	// handler would see it.
	KeepAttempts bool
	// MaxRedrives leaves out, and counts, letters that were given back so often before:
	// something that redrives by itself must not loop unseen. Default 10. Too low, and an
	// event is stranded by an outage that lasted for some redrives.
	MaxRedrives int
	// DryRun only counts.
	DryRun bool
	// Progress is told after each step. Default: nobody.
	Progress func(Redriven)
}

// Redriven counts what became of letters that were to go back.
type Redriven struct {
	// Done went back, or would with DryRun.
	Done int
	// Gone were redriven or purged by somebody else.
	Gone int
	// NoBody have no body left (reason trimmed) and stay.
	NoBody int
	// Looping were given back MaxRedrives times before and stay.
	Looping int
}

const defaultMaxRedrives = 10

func (r *Redrive) validate() error {
	var faults []error
	for _, f := range []struct {
		name  string
		value int
	}{{"Limit", r.Limit}, {"PerSecond", r.PerSecond}, {"MaxRedrives", r.MaxRedrives}} {
		if f.value < 0 {
			faults = append(faults, fmt.Errorf("dlq: %s %d is negative", f.name, f.value))
		}
	}
	return errors.Join(append(faults, r.Filter.validate())...)
}

// RedriveAll gives back the letters that match, those that are there now: one that dies again
// meanwhile is not taken twice. Each goes back in one step of its own, so that it may be ended
// and begun again at any point, and run beside itself. It returns what was done, also with an
// error: one of ctx, of the server, or of a letter that Redis refused to move, which stays.
func (q *Queue) RedriveAll(ctx context.Context, r Redrive) (Redriven, error) {
	if err := r.validate(); err != nil {
		return Redriven{}, err
	}
	if r.MaxRedrives == 0 {
		r.MaxRedrives = defaultMaxRedrives
	}
	run := redriveRun{q: q, how: r}
	if len(r.Letters) > 0 {
		err := run.named(ctx, r.Letters)
		return run.sum, err
	}
	for l, err := range q.All(ctx, r.Filter) {
		if err != nil {
			return run.sum, err
		}
		if err := run.take(ctx, &l); err != nil {
			return run.sum, err
		}
		if r.Limit > 0 && run.sum.Done+len(run.refs) >= r.Limit {
			if err := run.flush(ctx); err != nil || run.sum.Done >= r.Limit {
				return run.sum, err
			}
		}
	}
	err := run.flush(ctx)
	return run.sum, err
}

// redriveRun collects letters of one partition until they are worth a call.
type redriveRun struct {
	q    *Queue
	how  Redrive
	refs []Ref
	next time.Time // when the next call may go out
	sum  Redriven
}

func (r *redriveRun) take(ctx context.Context, l *Letter) error {
	switch {
	case len(l.Fields()) == 0:
		r.sum.NoBody++
		return nil
	case l.Redrives >= r.how.MaxRedrives:
		r.sum.Looping++
		return nil
	case len(r.refs) > 0 && (r.refs[0].Partition != l.Partition || len(r.refs) == r.how.batch()):
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	r.refs = append(r.refs, Ref{l.Partition, l.ID})
	return nil
}

// batch is how many letters a call takes: a tenth of a second's, where there is a limit.
func (r *Redrive) batch() int {
	if r.PerSecond == 0 {
		return readCount
	}
	return min(max(r.PerSecond/10, 1), readCount)
}

// named gives back these letters.
func (r *redriveRun) named(ctx context.Context, refs []Ref) error {
	var faults []error
	err := r.q.eachPartition(refs, r.how.batch(), func(refs []Ref) error {
		r.refs = refs
		replies, err := r.call(ctx)
		for i, reply := range replies {
			faults = append(faults, r.q.redriven(refs[i], reply))
		}
		return err
	})
	return errors.Join(append(faults, err)...)
}

// flush gives back what was collected.
func (r *redriveRun) flush(ctx context.Context) error {
	refs := r.refs
	replies, err := r.call(ctx)
	faults := []error{err}
	for i, reply := range replies {
		if reply != "ok" && reply != "gone" && reply != "empty" {
			faults = append(faults, r.q.redriven(refs[i], reply))
		}
	}
	return errors.Join(faults...)
}

// call gives back what was collected, when it is its turn, counts, and returns the replies.
func (r *redriveRun) call(ctx context.Context) ([]string, error) {
	refs := r.refs
	r.refs = nil
	switch {
	case len(refs) == 0:
		return nil, nil
	case r.how.DryRun:
		r.sum.Done += len(refs)
		return nil, nil
	case r.how.PerSecond > 0:
		if !redisx.Pause(ctx, time.Until(r.next)) {
			return nil, ctx.Err()
		}
		r.next = time.Now().Add(time.Duration(len(refs)) * time.Second / time.Duration(r.how.PerSecond))
	}
	replies, err := r.q.giveBack(ctx, refs[0].Partition, r.how.KeepAttempts, edit{}, refs)
	for _, reply := range replies {
		switch reply {
		case "ok":
			r.sum.Done++
		case "gone":
			r.sum.Gone++
		case "empty":
			r.sum.NoBody++
		}
	}
	if r.how.Progress != nil {
		r.how.Progress(r.sum)
	}
	return replies, err
}
