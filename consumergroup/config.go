package consumergroup

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

// Config configures a [Consumer]. Topics, Group and Handler are required; every other
// zero is a safe default.
type Config struct {
	// Topics to consume, all partitions of each.
	Topics []stream.Topic
	// Group is the consumer group: each event of the topics is handled by one consumer of
	// the group, and by every group. [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
	Group string
	// Handler handles the events: a [Mux], or anything else.
	Handler Handler
	// Middleware wraps Handler, the first given outermost: see [Logging], [Recovery],
	// [Timeout], [Validation].
	Middleware []Middleware
	// Start is where a new group begins. Default FromStart: nothing is missed. A group that
	// exists goes on where it is.
	Start Start
	// Concurrency is how many handlers run at the same time. Default 16. As many events wait
	// for them while they are slow, and more the faster they are, up to some hundreds.
	Concurrency int
	// HandlerTimeout ends the context of a handler that runs longer. Default 30 seconds. A
	// handler that goes on all the same keeps its worker, and its entry is handed to another
	// consumer MinIdle later.
	HandlerTimeout time.Duration
	// Retry is what happens to events whose handler fails.
	Retry Policy
	// Limits bound hand-overs: MinIdle and MaxDeliveries.
	pel.Limits
	// Rate limits how many events the group takes, over all its consumers. Default: no limit.
	Rate Rate
	// Weights shares the workers out between topics, by their names, while more than one has
	// a backlog: a topic with weight 3 gets three events handled for one of a topic with
	// weight 1. No topic starves. Default: 1 each. Not for groups with Ordered, or on a
	// Cluster, whose slots are read apart.
	Weights map[string]int
	// Ordered hands the events of one key over one after the other, also through failures,
	// crashes and consumers that come and go. The partitions are leased to the consumers of
	// the group, so that no more consumers than partitions have work; within a partition
	// keys are handled at the same time. A consumer that says otherwise than the living ones
	// of its group is refused.
	// Where an owner was paused for longer than MinIdle, a handler of its may still run
	// while the next owner has begun: Metadata.Generation lets a database refuse it.
	Ordered bool
	// KeyOrder makes this process handle the events of one key one after the other, in the
	// order in which it got them. It needs no leases and holds for nothing else: events that
	// are retried come later, and other processes may have events of the same key. It has no
	// effect on a group with Ordered, which keeps more.
	KeyOrder bool
	// OnPoison says what an ordered group does with an event that cannot be handled.
	// Default: a letter, and its key goes on.
	OnPoison OnPoison
	// MaxHeld is how many events of a partition of an ordered group may wait behind ones
	// that failed; at that number the partition is not read on. Default 10,000. They are
	// held in memory.
	MaxHeld int
	// Unhandled says what to do with event types that a Mux does not name. Default: ack and
	// count them.
	Unhandled Unhandled
	// ShutdownTimeout is how long handlers in flight may go on after Run's context ended.
	// Default 30 seconds. Then their context ends, and what they have in hand is released.
	ShutdownTimeout time.Duration
	// Retention is by what the topics are trimmed. Default: what every group has finished,
	// at least an hour old.
	Retention retention.Policy
	// Letters bounds the group's dead letters. Default: all are kept.
	Letters dlq.Retention
	// DisableUpkeep leaves due retries, silent consumers, and trimming to other consumers of
	// the group or to the reclaimer daemon. One of them must do it.
	DisableUpkeep bool
	// AllowEviction runs also on a Redis whose maxmemory-policy may evict streams.
	AllowEviction bool
	// Name is the readable part of the consumer's name in Redis, [A-Za-z0-9._-]{1,64};
	// a random part per consumer follows. Default: the host's name.
	Name string
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
	// Observer is told of every delivery's moments. Default: nobody.
	Observer Observer
}

// Start is where a new group begins.
type Start struct{ id string }

var (
	// FromStart begins with the oldest entry that the stream holds.
	FromStart = Start{"0"}
	// FromNow begins with what is published from now on.
	FromNow = Start{"$"}
)

// FromTime begins with what was published at t or later.
func FromTime(t time.Time) Start {
	return Start{stream.ID{Ms: uint64(max(t.UnixMilli()-1, 0)), Seq: ^uint64(0)}.String()}
}

// FromID begins behind an entry's ID.
func FromID(id stream.ID) Start { return Start{id.String()} }

// Unhandled says what to do with events that no handler is for.
type Unhandled int

// What to do with them.
const (
	// UnhandledAck acks and counts them, and logs each type once.
	UnhandledAck Unhandled = iota
	// UnhandledDeadLetter makes them letters.
	UnhandledDeadLetter
)

const (
	maxConcurrency = 4096
	maxWeight      = 100
)

func (c Config) withDefaults() Config {
	if c.Start.id == "" {
		c.Start = FromStart
	}
	if c.Concurrency == 0 {
		c.Concurrency = 16
	}
	if c.HandlerTimeout == 0 {
		c.HandlerTimeout = 30 * time.Second
	}
	if c.ShutdownTimeout == 0 {
		c.ShutdownTimeout = 30 * time.Second
	}
	c.KeyOrder = c.KeyOrder && !c.Ordered
	if c.MaxHeld == 0 {
		c.MaxHeld = 10_000
	}
	if c.Name == "" {
		c.Name = hostName()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Limits = c.Limits.WithDefaults()
	c.Retry = c.Retry.withDefaults()
	c.Rate = c.Rate.withDefaults()
	return c
}

func (c Config) kind() stream.GroupKind {
	if c.Ordered {
		return stream.GroupOrdered
	}
	return stream.GroupWork
}

// weight returns the weight of a topic.
func (c Config) weight(topic string) int {
	if w, ok := c.Weights[topic]; ok {
		return w
	}
	return 1
}

// validate reports every fault of a config with defaults, joined.
func (c Config) validate(rdb redis.UniversalClient) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if rdb == nil {
		fault("the Redis client is nil")
	}
	if len(c.Topics) == 0 {
		fault("Topics is empty")
	}
	seen := map[string]bool{}
	for _, t := range c.Topics {
		if err := t.Validate(); err != nil {
			faults = append(faults, err)
			continue
		}
		for _, key := range t.StreamKeys() {
			if seen[key] {
				fault("Topics name the stream %s twice", key)
			}
			seen[key] = true
		}
	}
	if !stream.ValidName(c.Group) {
		fault("Group %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", c.Group)
	}
	switch h := c.Handler.(type) {
	case nil:
		fault("Handler is nil")
	case *Mux:
		if err := h.err(); err != nil {
			faults = append(faults, err)
		}
	}
	for i, m := range c.Middleware {
		if m == nil {
			fault("Middleware[%d] is nil", i)
		}
	}
	if c.Concurrency < 1 || c.Concurrency > maxConcurrency {
		fault("Concurrency %d must be 1 to %d", c.Concurrency, maxConcurrency)
	}
	for name, w := range c.Weights {
		if w < 1 || w > maxWeight {
			fault("Weights[%.140q] %d must be 1 to %d", name, w, maxWeight)
		}
		if !slices.ContainsFunc(c.Topics, func(t stream.Topic) bool { return t.Name == name }) {
			fault("Weights[%.140q] is none of Topics", name)
		}
	}
	if c.Weights != nil && (c.Ordered || rdb != nil && redisx.IsCluster(rdb)) {
		fault("Weights is not for groups with Ordered, nor for a Cluster")
	}
	if c.OnPoison < PoisonDeadLetter || c.OnPoison > PoisonParkKey {
		fault("OnPoison %d is unknown", c.OnPoison)
	}
	if c.OnPoison != PoisonDeadLetter && !c.Ordered {
		fault("OnPoison is for groups with Ordered")
	}
	if c.MaxHeld < 1 {
		fault("MaxHeld %d must be at least 1", c.MaxHeld)
	}
	if c.HandlerTimeout < 0 {
		fault("HandlerTimeout %s is negative", c.HandlerTimeout)
	}
	if c.ShutdownTimeout < 0 {
		fault("ShutdownTimeout %s is negative", c.ShutdownTimeout)
	}
	if !stream.ValidName(c.Name) || len(c.Name) > 64 {
		fault("Name %.80q is not [A-Za-z0-9][A-Za-z0-9._-]{0,63}", c.Name)
	}
	if c.Unhandled < UnhandledAck || c.Unhandled > UnhandledDeadLetter {
		fault("Unhandled %d is unknown", c.Unhandled)
	}
	for _, err := range []error{c.Limits.Validate(), c.Retry.validate(), c.Rate.validate(), c.Retention.Validate(), c.Letters.Validate()} {
		if err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("consumergroup: %w config: %w", ErrInvalid, errors.Join(faults...))
}
