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
	// AllowEviction publishes also to a Redis whose maxmemory-policy may evict streams.
	AllowEviction bool
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
	// Err is nil for an event that was written. errors.Is(Err, ErrUnknown) says that it
	// may have been.
	Err error
}

// redeclareEvery is how often what uses a topic writes it into the registry again.
const redeclareEvery = time.Minute

// NewPublisher returns a publisher that writes through rdb. The caller keeps rdb and closes it.
func NewPublisher(rdb redis.UniversalClient, config PublisherConfig) (*Publisher, error) {
	if rdb == nil {
		return nil, fmt.Errorf("stream: %w publisher: the Redis client is nil", ErrInvalid)
	}
	return &Publisher{rdb: rdb, config: config, declared: map[Topic]time.Time{}}, nil
}

// Publish writes one event. ErrInvalid and ErrPartitionMismatch say that nothing was
// sent. ErrUnknown says that the reply was lost: the event may stand in the stream, and
// publishing it again may write it twice, with the same id, which handlers with an inbox
// and projections apply once.
func (p *Publisher) Publish(ctx context.Context, topic Topic, e Event) (Result, error) {
	if err := p.prepare(ctx, topic); err != nil {
		return Result{}, err
	}
	e.Stamp(ctx, topic)
	if err := e.Validate(); err != nil {
		return Result{}, err
	}
	cmd, key := add(ctx, topic, &e)
	_ = p.rdb.Process(ctx, cmd) // the error is in cmd
	result := resultOf(cmd, key)
	return result, result.Err
}

// PublishBatch writes the events in one pipeline, in order within each partition, and
// tells what became of each. It is no transaction: where the error is not nil, some may
// have been written. Only if every event is valid anything is sent.
func (p *Publisher) PublishBatch(ctx context.Context, topic Topic, events []Event) ([]Result, error) {
	if err := p.prepare(ctx, topic); err != nil {
		return nil, err
	}
	stamped := make([]Event, len(events))
	var faults []error
	for i, e := range events {
		e.Stamp(ctx, topic)
		if err := e.Validate(); err != nil {
			faults = append(faults, err)
		}
		stamped[i] = e
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	results := make([]Result, len(events))
	for start := 0; start < len(stamped); {
		start += p.send(ctx, topic, stamped[start:], results[start:])
	}
	failed := 0
	var first error
	for i := range results {
		if results[i].Err != nil {
			if failed++; first == nil {
				first = results[i].Err
			}
		}
	}
	if failed > 0 {
		return results, fmt.Errorf("stream: publish to %s: %d of %d events failed, the first: %w", topic.Name, failed, len(events), first)
	}
	return results, nil
}

// The most that one pipeline carries.
const (
	pipelineEvents = 500
	pipelineBytes  = 4 << 20
)

// send writes the first events in one pipeline and returns how many.
func (p *Publisher) send(ctx context.Context, topic Topic, events []Event, results []Result) int {
	pipe := p.rdb.Pipeline()
	cmds := make([]redisx.ID, 0, min(len(events), pipelineEvents))
	for i, size := 0, 0; i < len(events) && i < pipelineEvents && size < pipelineBytes; i++ {
		cmd, key := add(ctx, topic, &events[i])
		results[i].Stream = key
		size += len(events[i].Data)
		cmds = append(cmds, cmd)
		_ = pipe.Process(ctx, cmd) // only queues
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, cmd := range cmds {
		results[i] = resultOf(cmd, results[i].Stream)
	}
	return len(cmds)
}

// add returns the command that writes the event, and the stream that it goes to.
func add(ctx context.Context, topic Topic, e *Event) (redisx.ID, string) {
	key := topic.StreamKey(topic.Partition(e))
	args := make([]any, 0, 3+2*(13+len(e.Attributes)))
	args = append(args, "xadd", key, "*")
	return redisx.NewID(ctx, e.AppendFields(args)...), key
}

func resultOf(cmd redisx.ID, key string) Result {
	text, err := cmd.Result()
	if err != nil {
		return Result{Stream: key, Err: publishError(key, err)}
	}
	id, err := ParseID(text)
	return Result{Stream: key, ID: id, Err: err}
}

func publishError(key string, err error) error {
	if redisx.IsAmbiguous(err) {
		return fmt.Errorf("stream: publish to %s: %w: %w", key, ErrUnknown, err)
	}
	return fmt.Errorf("stream: publish to %s: %w", key, err)
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
		if err := CheckServer(ctx, p.rdb, p.config.AllowEviction, topic.StreamKeys()...); err != nil {
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
