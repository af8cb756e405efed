package dlq

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/redrive.lua
	redriveText   string
	redriveScript = redisx.NewScript(redriveText)
)

// Queue is the dead letters of one group of one topic.
type Queue struct {
	rdb   redis.UniversalClient
	topic stream.Topic
	group string
}

// Open returns the dead letters of a group. Nothing is created.
func Open(rdb redis.UniversalClient, topic stream.Topic, group string) (*Queue, error) {
	var faults []error
	if rdb == nil {
		faults = append(faults, errors.New("dlq: the Redis client is nil"))
	}
	if err := topic.Validate(); err != nil {
		faults = append(faults, err)
	}
	if !stream.ValidName(group) {
		faults = append(faults, fmt.Errorf("dlq: group name %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", group))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return &Queue{rdb: rdb, topic: topic, group: group}, nil
}

func (q *Queue) deadKey(p int) string { return stream.KeyDead.Key(q.topic.StreamKey(p), q.group) }

// Count returns how many letters there are.
func (q *Queue) Count(ctx context.Context) (int64, error) {
	var total int64
	for p := range q.topic.Count() {
		n, err := q.rdb.XLen(ctx, q.deadKey(p)).Result()
		if err != nil {
			return 0, q.fail("count", err)
		}
		total += n
	}
	return total, nil
}

// Filter selects letters; the zero Filter selects all.
type Filter struct {
	Reasons []Reason  // one of these
	Types   []string  // one of these event types
	Key     string    // the event's key
	Error   string    // a part of the error's text
	Since   time.Time // died then or later
	Until   time.Time // died before
}

func (f Filter) matches(l *Letter) bool {
	return (len(f.Reasons) == 0 || slices.Contains(f.Reasons, l.Reason)) &&
		(len(f.Types) == 0 || slices.Contains(f.Types, l.Entry.Event.Type)) &&
		(f.Key == "" || f.Key == l.Entry.Event.Key) &&
		strings.Contains(l.Error, f.Error) &&
		(f.Since.IsZero() || !l.Died.Before(f.Since)) &&
		(f.Until.IsZero() || l.Died.Before(f.Until))
}

// Page is a part of a list.
type Page struct {
	Letters []Letter
	// Next is where the list goes on, or empty at its end.
	Next string
}

// The page size of List, and how many letters a read takes.
const (
	defaultLimit = 100
	maxLimit     = 1000
	readCount    = 100
)

// List returns letters that match, partition by partition, oldest first, at most limit
// (default 100, at most 1,000). It goes on from a page's Next.
func (q *Queue) List(ctx context.Context, f Filter, next string, limit int) (Page, error) {
	if limit < 0 || limit > maxLimit {
		return Page{}, fmt.Errorf("dlq: limit %d is not 1 to %d", limit, maxLimit)
	}
	if limit == 0 {
		limit = defaultLimit
	}
	from := Ref{}
	if next != "" {
		var err error
		if from, err = ParseRef(next); err != nil {
			return Page{}, err
		}
	}
	page := Page{}
	for p := from.Partition; p < q.topic.Count(); p++ {
		for {
			letters, err := q.read(ctx, p, from.ID)
			if err != nil {
				return Page{}, err
			}
			for i := range letters {
				if len(page.Letters) == limit {
					page.Next = letters[i].Ref()
					return page, nil
				}
				if f.matches(&letters[i]) {
					page.Letters = append(page.Letters, letters[i])
				}
			}
			if len(letters) < readCount {
				break
			}
			from.ID = letters[len(letters)-1].ID.Next()
		}
		from.ID = stream.ID{}
	}
	return page, nil
}

// Get returns one letter, or ErrNotFound.
func (q *Queue) Get(ctx context.Context, ref Ref) (Letter, error) {
	if err := q.check(ref); err != nil {
		return Letter{}, err
	}
	letters, err := q.read(ctx, ref.Partition, ref.ID)
	if err != nil {
		return Letter{}, err
	}
	if len(letters) == 0 || letters[0].ID != ref.ID {
		return Letter{}, q.missing(ref)
	}
	return letters[0], nil
}

func (q *Queue) read(ctx context.Context, p int, from stream.ID) ([]Letter, error) {
	reply, err := redisx.Raw(ctx, q.rdb, "xrange", q.deadKey(p), from.String(), "+", "count", readCount)
	if err != nil {
		return nil, q.fail("read", err)
	}
	defer reply.Free()
	n, err := reply.Array()
	if err != nil {
		return nil, q.fail("read", err)
	}
	letters := make([]Letter, 0, n)
	for range n {
		en, _, err := stream.DecodeEntry(&reply, q.deadKey(p))
		if err != nil {
			return nil, q.fail("read", err)
		}
		letters = append(letters, letterOf(p, en))
	}
	return letters, nil
}

// Redrive gives letters back to their group: they are handled again, with attempts and
// deliveries reset, and no other group sees them. A letter and its return are one step.
// It returns how many went back; the error joins ErrNotFound for each that was not there
// and ErrNoBody for each of which nothing is left to handle.
func (q *Queue) Redrive(ctx context.Context, refs ...Ref) (int, error) {
	done := 0
	var faults []error
	err := q.eachPartition(refs, func(p int, refs []Ref) error {
		keys := []string{q.deadKey(p), stream.KeyRetry.Key(q.topic.StreamKey(p), q.group)}
		replies, err := redriveScript.Run(ctx, q.rdb, keys, ids(refs)...).Int64Slice()
		if err != nil {
			return q.fail("redrive", err)
		}
		for i, reply := range replies {
			switch reply {
			case 1:
				done++
			case 0:
				faults = append(faults, q.missing(refs[i]))
			default:
				faults = append(faults, fmt.Errorf("dlq: letter %s: %w", refs[i], ErrNoBody))
			}
		}
		return nil
	})
	return done, errors.Join(append(faults, err)...)
}

// ErrNoBody says that a letter cannot go back: its entry was trimmed before it was handled.
var ErrNoBody = errors.New("nothing is left of the event; purge the letter")

// Purge deletes letters for good, and returns how many there were.
func (q *Queue) Purge(ctx context.Context, refs ...Ref) (int, error) {
	done := 0
	err := q.eachPartition(refs, func(p int, refs []Ref) error {
		n, err := redisx.Do(ctx, q.rdb, append([]any{"xdel", q.deadKey(p)}, ids(refs)...)...).Int()
		if err != nil {
			return q.fail("purge", err)
		}
		done += n
		return nil
	})
	return done, err
}

// eachPartition calls fn with at most 100 letters of one partition at a time.
func (q *Queue) eachPartition(refs []Ref, fn func(p int, refs []Ref) error) error {
	for _, ref := range refs {
		if err := q.check(ref); err != nil {
			return err
		}
	}
	sorted := slices.Clone(refs)
	slices.SortStableFunc(sorted, func(a, b Ref) int { return a.Partition - b.Partition })
	for len(sorted) > 0 {
		n := 1
		for n < len(sorted) && n < readCount && sorted[n].Partition == sorted[0].Partition {
			n++
		}
		if err := fn(sorted[0].Partition, sorted[:n]); err != nil {
			return err
		}
		sorted = sorted[n:]
	}
	return nil
}

func ids(refs []Ref) []any {
	args := make([]any, len(refs))
	for i, ref := range refs {
		args[i] = ref.ID.String()
	}
	return args
}

func (q *Queue) check(ref Ref) error {
	if ref.Partition < 0 || ref.Partition >= q.topic.Count() {
		return fmt.Errorf("dlq: letter %s: %w: topic %s has %d partitions", ref, ErrNotFound, q.topic.Name, q.topic.Count())
	}
	return nil
}

func (q *Queue) missing(ref Ref) error {
	return fmt.Errorf("dlq: letter %s of group %s, topic %s: %w", ref, q.group, q.topic.Name, ErrNotFound)
}

func (q *Queue) fail(what string, err error) error {
	return fmt.Errorf("dlq: %s letters of group %s, topic %s: %w", what, q.group, q.topic.Name, err)
}
