package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// ReaderConfig configures a [Reader].
type ReaderConfig struct {
	// Topic to read. Required.
	Topic Topic
	// From has, by stream key, the ID behind which reading starts. Default: the start
	// of each partition that has none.
	From map[string]ID
	// Count is how many entries of a partition one read takes at the most. Default 256.
	Count int
}

// Reader reads a topic without a consumer group: it changes nothing in Redis, and any
// number may read the same. Entries of a partition come in order; partitions are read
// side by side. It is used by one goroutine at a time.
type Reader struct {
	rdb    redis.UniversalClient
	config ReaderConfig
	keys   []string
	next   map[string]ID
}

// NewReader returns a reader. The caller keeps rdb and closes it.
func NewReader(rdb redis.UniversalClient, config ReaderConfig) (*Reader, error) {
	var faults []error
	if rdb == nil {
		faults = append(faults, errors.New("the Redis client is nil"))
	}
	if err := config.Topic.Validate(); err != nil {
		faults = append(faults, err)
	}
	if config.Count < 0 {
		faults = append(faults, fmt.Errorf("Count %d is negative", config.Count))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("stream: %w reader: %w", ErrInvalid, errors.Join(faults...))
	}
	if config.Count == 0 {
		config.Count = 256
	}
	r := &Reader{rdb: rdb, config: config, keys: config.Topic.StreamKeys(), next: map[string]ID{}}
	for _, key := range r.keys {
		r.next[key] = config.From[key]
	}
	return r, nil
}

// Position returns the ID behind which the stream is read next.
func (r *Reader) Position(streamKey string) ID { return r.next[streamKey] }

// Seek reads the stream next from behind id.
func (r *Reader) Seek(streamKey string, id ID) { r.next[streamKey] = id }

// Read returns the next entries, or none after waiting for at most two seconds. After an
// error the position is that before, so that reading again misses nothing.
func (r *Reader) Read(ctx context.Context) ([]Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var entries []Entry
	var err error
	if redisx.IsCluster(r.rdb) && len(r.keys) > 1 {
		entries, err = r.readSlots(ctx)
	} else {
		entries, err = r.read(ctx, redisx.BlockFor(r.rdb).Milliseconds(), r.keys)
	}
	if err != nil {
		return nil, err
	}
	for i := range entries {
		r.next[entries[i].Stream] = entries[i].ID
	}
	return entries, nil
}

// readSlots reads each partition by itself, since one XREAD must keep to one slot.
func (r *Reader) readSlots(ctx context.Context) ([]Entry, error) {
	const block = 100 // ms; the slowest partition decides when Read returns
	var mu sync.Mutex
	var all []Entry
	g, ctx := errgroup.WithContext(ctx)
	for _, key := range r.keys {
		g.Go(func() error {
			entries, err := r.read(ctx, block, []string{key})
			mu.Lock()
			defer mu.Unlock()
			all = append(all, entries...)
			return err
		})
	}
	return all, g.Wait()
}

func (r *Reader) read(ctx context.Context, blockMs int64, keys []string) ([]Entry, error) {
	args := make([]any, 0, 6+2*len(keys))
	args = append(args, "xread", "count", r.config.Count, "block", blockMs, "streams")
	for _, key := range keys {
		args = append(args, key)
	}
	for _, key := range keys {
		args = append(args, r.next[key].String())
	}
	reply, err := redisx.Raw(ctx, r.rdb, args...)
	if redisx.IsNil(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stream: read topic %s: %w", r.config.Topic.Name, err)
	}
	defer reply.Free()
	entries := make([]Entry, 0, r.config.Count)
	err = DecodeEntries(&reply, func(en Entry, _ bool) error {
		entries = append(entries, en)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("stream: read topic %s: %w", r.config.Topic.Name, err)
	}
	return entries, nil
}
