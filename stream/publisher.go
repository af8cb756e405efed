package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// PublisherConfig configures a [Publisher]. The zero value is the safe default.
type PublisherConfig struct {
	// Replicas is how many replicas must have an event before it counts as published (WAIT,
	// on the same connection). Default 0: the primary alone, whose failover may lose it.
	Replicas int
	// Fsync waits until the primary, and each of Replicas, has an event in its append-only
	// file on disk (WAITAOF, Redis 7.2 and later). Default: as the server's appendfsync says.
	Fsync bool
	// DurableTimeout is how long to wait for Replicas and Fsync. Default 1 second; it must be
	// below the client's ReadTimeout. Then the outcome is ErrNotDurable.
	DurableTimeout time.Duration
	// MaxLen is how many entries a partition may hold before publishing to it is refused with
	// ErrBackpressure; Reject must be set with it. It is looked up once a batch, so it may be
	// overshot by one batch of each publisher. Default: no limit.
	MaxLen int64
	// Reject is what happens at MaxLen. Nothing else can be asked for: publishing never trims,
	// which is retention's work.
	Reject bool
	// AllowEviction publishes also to a Redis whose maxmemory-policy may evict streams.
	AllowEviction bool
}

func (c PublisherConfig) withDefaults() PublisherConfig {
	if c.DurableTimeout == 0 {
		c.DurableTimeout = time.Second
	}
	return c
}

func (c PublisherConfig) validate(rdb redis.UniversalClient) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if rdb == nil {
		return fmt.Errorf("stream: %w publisher: the Redis client is nil", ErrInvalid)
	}
	if c.Replicas < 0 {
		fault("Replicas %d is negative", c.Replicas)
	}
	if c.DurableTimeout < time.Millisecond {
		fault("DurableTimeout %s is below 1ms", c.DurableTimeout)
	}
	if timeout := redisx.ReadTimeout(rdb); (c.Replicas > 0 || c.Fsync) && timeout > 0 && c.DurableTimeout >= timeout {
		fault("DurableTimeout %s must be below the client's ReadTimeout %s", c.DurableTimeout, timeout)
	}
	if c.MaxLen < 0 {
		fault("MaxLen %d is negative", c.MaxLen)
	}
	if (c.MaxLen > 0) != c.Reject {
		fault("MaxLen and Reject go together")
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("stream: %w publisher: %w", ErrInvalid, errors.Join(faults...))
}

// Publisher writes events to Redis directly, outside any database transaction. It is
// safe for use by many goroutines.
//
// Every event is sent at most once: the retries of go-redis, which would write an event
// again after a lost reply, are off for its commands, through the caller's own client.
type Publisher struct {
	rdb    redis.UniversalClient
	config PublisherConfig

	mu       sync.Mutex
	declared map[Topic]time.Time // when each topic was last written into the registry
}

// Result is what became of one event.
type Result struct {
	// Stream and ID say where the event stands.
	Stream string
	ID     ID
	// Duplicate says that it was published before, within the topic's Dedup window; ID is
	// the one that it got then.
	Duplicate bool
	// Err is nil for an event that was written. errors.Is(Err, ErrUnknown) says that it
	// may have been.
	Err error
}

// redeclareEvery is how often what uses a topic writes it into the registry again.
const redeclareEvery = time.Minute

// NewPublisher returns a publisher that writes through rdb. The caller keeps rdb and closes it.
func NewPublisher(rdb redis.UniversalClient, config PublisherConfig) (*Publisher, error) {
	config = config.withDefaults()
	if err := config.validate(rdb); err != nil {
		return nil, err
	}
	return &Publisher{rdb: rdb, config: config, declared: map[Topic]time.Time{}}, nil
}

// Publish writes one event to the partition of its key. ErrInvalid and
// ErrPartitionMismatch say that nothing was sent. ErrUnknown says that the reply was lost:
// the event may stand in the stream, and publishing it again may write it twice, with
// the same id, which handlers with an inbox apply once; if the topic has Dedup, it is
// written once.
func (p *Publisher) Publish(ctx context.Context, topic Topic, e Event) (Result, error) {
	if err := p.prepare(ctx, topic); err != nil {
		return Result{}, err
	}
	e.Stamp(ctx, topic)
	if err := e.Validate(); err != nil {
		return Result{}, err
	}
	key := topic.StreamKey(topic.Partition(&e))
	if p.plain(topic) {
		cmd := add(ctx, key, &e)
		_ = p.rdb.Process(ctx, cmd) // the error is in cmd
		result := resultOf(cmd.Result())
		result.Stream, result.Err = key, publishError(key, result.Err)
		return result, result.Err
	}
	results := []Result{{Stream: key}}
	p.send(ctx, topic, []Event{e}, results)
	return results[0], results[0].Err
}

// PublishBatch writes the events in pipelines, in order within each partition, and tells
// what became of each. It is no transaction: where the error is not nil, some may have
// been written. Only if every event is valid anything is sent. It allocates about 4 times an
// event, whatever their number. go-redis sends a pipeline in pieces of
// redis.Options.PipelineWriteBufferSize (128 KiB); with 32 KiB the server begins sooner, and
// batches of 500 events of 600 bytes were published 8% faster over loopback.
func (p *Publisher) PublishBatch(ctx context.Context, topic Topic, events []Event) ([]Result, error) {
	return p.publishBatch(ctx, topic, events, func(e *Event) int { return topic.Partition(e) })
}

// PublishTo is PublishBatch to one partition, whatever the events' keys.
func (p *Publisher) PublishTo(ctx context.Context, topic Topic, partition int, events []Event) ([]Result, error) {
	if partition < 0 || partition >= topic.Count() {
		return nil, fmt.Errorf("stream: %w partition %d: topic %s has %d", ErrInvalid, partition, topic.Name, topic.Count())
	}
	return p.publishBatch(ctx, topic, events, func(*Event) int { return partition })
}

func (p *Publisher) publishBatch(ctx context.Context, topic Topic, events []Event, partition func(*Event) int) ([]Result, error) {
	if err := p.prepare(ctx, topic); err != nil {
		return nil, err
	}
	stamped := make([]Event, len(events))
	results := make([]Result, len(events))
	keys := topic.StreamKeys()
	var faults []error
	for i := range events {
		e := &stamped[i]
		*e = events[i]
		e.Stamp(ctx, topic)
		if err := e.Validate(); err != nil {
			faults = append(faults, err)
			continue
		}
		results[i].Stream = keys[partition(e)]
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	for start := 0; start < len(stamped); {
		n := chunk(stamped[start:])
		p.send(ctx, topic, stamped[start:start+n], results[start:start+n])
		start += n
	}
	return results, joinResults(topic, results)
}

// joinResults makes one error of those of single events.
func joinResults(topic Topic, results []Result) error {
	failed := 0
	var first error
	for i := range results {
		if results[i].Err != nil {
			if failed++; first == nil {
				first = results[i].Err
			}
		}
	}
	if failed == 0 {
		return nil
	}
	return fmt.Errorf("stream: publish to topic %s: %d of %d events failed, the first: %w", topic.Name, failed, len(results), first)
}

// prepare writes the topic into the registry, at its first use and every minute. A user
// who may write only to the streams leaves that to the consumers.
func (p *Publisher) prepare(ctx context.Context, topic Topic) error {
	p.mu.Lock()
	last, known := p.declared[topic]
	due := time.Since(last) > redeclareEvery
	if known && due {
		p.declared[topic] = time.Now() // one caller does it, the others go on
	}
	p.mu.Unlock()
	if !due {
		return nil
	}
	if err := topic.Validate(); err != nil {
		return err
	}
	if !known {
		if err := p.checkServers(ctx, topic); err != nil {
			return err
		}
	}
	if err := Declare(ctx, p.rdb, topic); err != nil && !redisx.IsNoPerm(err) {
		return err
	}
	p.mu.Lock()
	p.declared[topic] = time.Now()
	p.mu.Unlock()
	return nil
}

func (p *Publisher) checkServers(ctx context.Context, topic Topic) error {
	if err := CheckServer(ctx, p.rdb, p.config.AllowEviction, topic.StreamKeys()...); err != nil {
		return err
	}
	if !p.config.Fsync {
		return nil
	}
	server, err := redisx.Probe(ctx, p.rdb, topic.StreamKey(0))
	if err == nil && !server.AtLeast(7, 2) {
		err = fmt.Errorf("%w: Fsync needs WAITAOF, which %s %s does not have (7.2 does)", ErrUnsupportedServer, server.Name, server.Version)
	}
	if err != nil {
		return fmt.Errorf("stream: check Redis: %w", err)
	}
	return nil
}
