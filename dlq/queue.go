package dlq

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
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

// Page is a part of a list.
type Page struct {
	Letters []Letter
	// Next is where the list goes on, or empty at its end.
	Next string
}

// The page size of List, and how many letters a read or a call takes.
const (
	defaultLimit = 100
	maxLimit     = 1000
	readCount    = 100
	callBytes    = 256 << 10 // of letters that one call of a script takes
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
	if err := f.validate(); err != nil {
		return Page{}, err
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
			letters, err := q.read(ctx, p, f.from(from.ID), "+")
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
	letters, err := q.read(ctx, ref.Partition, ref.ID, ref.ID.String())
	if err != nil {
		return Letter{}, err
	}
	if len(letters) == 0 {
		return Letter{}, q.missing(ref)
	}
	return letters[0], nil
}

// All returns the letters that match, partition by partition, oldest first, as one sequence.
// Of each partition it takes those that were there when its turn came: a letter that is given
// back meanwhile and dies again is not met twice. An error, which is yielded, ends it.
func (q *Queue) All(ctx context.Context, f Filter) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		err := f.validate()
		for p := 0; err == nil && p < q.topic.Count(); p++ {
			var more bool
			if more, err = q.allOf(ctx, p, f, yield); !more {
				break
			}
		}
		if err != nil {
			yield(Letter{}, err)
		}
	}
}

func (q *Queue) allOf(ctx context.Context, p int, f Filter, yield func(Letter, error) bool) (more bool, err error) {
	last, err := q.rdb.XRevRangeN(ctx, q.deadKey(p), "+", "-", 1).Result()
	if err != nil || len(last) == 0 {
		return err == nil, q.fail("read", err)
	}
	for from := f.from(stream.ID{}); ; {
		letters, err := q.read(ctx, p, from, last[0].ID)
		if err != nil {
			return false, err
		}
		for i := range letters {
			if f.matches(&letters[i]) && !yield(letters[i], nil) {
				return false, nil
			}
		}
		if len(letters) < readCount {
			return true, nil
		}
		from = letters[len(letters)-1].ID.Next()
	}
}

func (q *Queue) read(ctx context.Context, p int, from stream.ID, to string) ([]Letter, error) {
	reply, err := redisx.Raw(ctx, q.rdb, "xrange", q.deadKey(p), from.String(), to, "count", readCount)
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

// Purge deletes letters for good, and returns how many there were.
func (q *Queue) Purge(ctx context.Context, refs ...Ref) (int, error) {
	done := 0
	err := q.eachPartition(refs, readCount, func(refs []Ref) error {
		n, err := redisx.Do(ctx, q.rdb, append([]any{"xdel", q.deadKey(refs[0].Partition)}, ids(refs)...)...).Int()
		done += n
		return q.fail("purge", err)
	})
	return done, err
}

// eachPartition calls fn with at most n letters of one partition at a time.
func (q *Queue) eachPartition(refs []Ref, n int, fn func(refs []Ref) error) error {
	for _, ref := range refs {
		if err := q.check(ref); err != nil {
			return err
		}
	}
	sorted := slices.SortedStableFunc(slices.Values(refs), func(a, b Ref) int { return a.Partition - b.Partition })
	for len(sorted) > 0 {
		take := 1
		for take < min(n, len(sorted)) && sorted[take].Partition == sorted[0].Partition {
			take++
		}
		if err := fn(sorted[:take]); err != nil {
			return err
		}
		sorted = sorted[take:]
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
	if err == nil {
		return nil
	}
	return fmt.Errorf("dlq: %s letters of group %s, topic %s: %w", what, q.group, q.topic.Name, err)
}
