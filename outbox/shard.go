package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// shard is a set of whole partitions that this relay owns for a while. What it knows of the streams belongs to its
// goroutine while it publishes a batch, and to sequence while it has none: the channels ready and work pass it on.
type shard struct {
	relay     *Relay
	number    int
	lease     lease
	published atomic.Int64 // the last batch that is wholly in Redis

	ctx  context.Context // ends when the shard is to be given up
	stop context.CancelFunc
	done chan struct{}
	work chan batch // from sequence: what to publish; without a number, look into the log

	server  time.Time          // when the server started whose log was read: what is known holds for no other
	last    batch              // the last batch that was frozen
	base    snapshot           // no rows lie between last's end and this
	near    snapshot           // nor between base and this, but perhaps in row partitions of the days to come
	since   int                // batches since one that holds all positions
	above   int64              // the next batch has this number at least
	targets map[string]*target // by name
	byPlace map[place]*target
	touched []*target // by the batch in hand
	aside   aside
	halted  bool     // relay_stop has a row
	size    lossSize // of the loss because of which it stands still

	publishedAt time.Time // when the last batch was wholly in Redis
	lookedInto  time.Time // when sequence last looked for rows
	lookedAt    time.Time // when sequence last looked for refused rows that are wanted again
}

// target is a stream that the shard writes.
type target struct {
	name   string // <namespace>/<topic>/<partition>, as in the log
	place  place
	stream string // "" where the topic is gone
	relay  string
	// known is the last row that is in the stream as far as this relay knows, held the last that Redis said
	// it has: rows up to there are not sent again. sent is the last row that was called for in this attempt.
	known, held, sent stream.Position
	touched           bool
	open              *call // of the page in hand
}

// place names a target as rows do.
type place struct {
	topic     topicName
	partition int
}

func newShard(r *Relay, number int, epoch int64) *shard {
	s := &shard{
		relay:   r,
		number:  number,
		done:    make(chan struct{}),
		work:    make(chan batch, 1),
		targets: map[string]*target{},
		byPlace: map[place]*target{},
	}
	s.lease.epoch = epoch
	return s
}

// start runs the shard until it is stopped, its lease is lost, or parent ends; then it gives its lease up.
func (s *shard) start(parent context.Context) {
	s.ctx, s.stop = context.WithCancel(parent)
	s.relay.observe(s.ctx, Observation{Moment: TakenOver, Shard: s.number})
	go func() { // keepLeases waits for done
		defer close(s.done)
		defer s.stop()
		if err := s.run(s.ctx); errors.Is(err, errLeaseLost) && s.ctx.Err() == nil {
			s.relay.log.Info(parent, "a shard went to another relay", "shard", s.number)
		}
		s.relay.giveUp(parent, s)
		s.relay.observe(parent, Observation{Moment: GivenUp, Shard: s.number})
	}()
}

func (s *shard) stopping() bool { return s.ctx.Err() != nil }

// errLeaseLost says that another relay owns the shard.
var errLeaseLost = errors.New("the lease is lost")

// run finishes the batch that the last owner had in hand, and then publishes what sequence freezes.
func (s *shard) run(ctx context.Context) error {
	if err := s.takeOver(ctx); err != nil {
		return err
	}
	for {
		s.relay.ready <- s // holds every shard
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b := <-s.work:
			if b.number == 0 {
				if err := s.takeOver(ctx); err != nil {
					return err
				}
				continue
			}
			if err := s.accept(ctx, b); err != nil {
				return err
			}
			if err := s.publish(ctx, b); err != nil {
				return err
			}
		}
	}
}

// takeOver learns from the log where the shard stands, and publishes the last batch: of what is in Redis already
// nothing is added again.
func (s *shard) takeOver(ctx context.Context) error {
	var c chain
	err := s.insist(ctx, "taking over a shard failed", func() (err error) {
		if err = s.relay.topics.load(ctx); err != nil {
			return err
		}
		if err = s.checkLease(ctx); err != nil {
			return err
		}
		if err = s.loadAside(ctx); err != nil {
			return err
		}
		if err = s.relay.db.QueryRow(ctx, `SELECT `+startedSQL).Scan(&s.server); err != nil {
			return fmt.Errorf("look at the server: %w", err)
		}
		c, err = s.relay.loadChain(ctx, s.number)
		return err
	})
	if err != nil {
		return err
	}
	s.published.Store(0) // of another log, perhaps
	clear(s.targets)
	clear(s.byPlace)
	for name, known := range c.known {
		s.addTarget(name).known = known
	}
	s.since = completeEvery // the next batch's row holds all positions
	s.last, s.base, s.near, s.touched = c.last, c.last.to, c.last.to, nil
	if c.last.number == 0 {
		return nil // the shard's log only begins
	}
	err = s.insist(ctx, "taking over a shard failed", func() error { return s.loadAsideRows(ctx, c.last.number) })
	if err != nil {
		return err
	}
	return s.publish(ctx, c.last)
}

// accept notes a batch that sequence has frozen.
func (s *shard) accept(ctx context.Context, b batch) error {
	for _, t := range s.touched {
		t.touched = false
	}
	s.touched = s.touched[:0]
	s.forgetAside()
	s.last, s.base, s.near = b, b.to, b.to
	if s.since++; b.complete {
		s.since = 0
	}
	if b.retry { // its keys are parked no longer
		return s.insist(ctx, "reading parked keys failed", func() error { return s.loadAside(ctx) })
	}
	return nil
}

// addTarget returns a new target by its name in the log.
func (s *shard) addTarget(name string) *target {
	t := &target{name: name}
	s.targets[name] = t
	parts := strings.Split(name, "/")
	if len(parts) != 3 {
		return t
	}
	partition, err := strconv.Atoi(parts[2])
	topic, ok := s.relay.topics.get(topicName{parts[0], parts[1]})
	if err != nil || !ok || partition < 0 || partition >= topic.Count() {
		return t // its topic is gone: nothing more goes there
	}
	t.stream = topic.StreamKey(partition)
	t.relay = stream.KeyRelay.Key(t.stream, "")
	t.place = place{topicName{parts[0], parts[1]}, partition}
	s.byPlace[t.place] = t
	return t
}

// target returns where a row goes, or why it can go nowhere.
func (s *shard) target(ctx context.Context, w *row) (*target, error) {
	if t := s.byPlace[place{w.topic, w.partition}]; t != nil {
		return t, nil
	}
	topic, ok := s.relay.topics.get(w.topic)
	if !ok { // it was declared after the topics were read
		if err := s.relay.topics.load(ctx); err != nil {
			return nil, err
		}
		if topic, ok = s.relay.topics.get(w.topic); !ok {
			return nil, refusal{fmt.Errorf("topic %s is not declared in namespace %s", w.topic.name, w.topic.namespace)}
		}
		s.relay.heal()
	}
	if w.partition < 0 || w.partition >= topic.Count() {
		return nil, refusal{fmt.Errorf("partition %d of topic %s, which has %d", w.partition, w.topic.name, topic.Count())}
	}
	if want := (topic.firstShard + w.partition) % s.relay.shards; want != s.number {
		return nil, refusal{fmt.Errorf("the row is in shard %d, partition %d of topic %s is in shard %d", s.number, w.partition, w.topic.name, want)}
	}
	name := targetName(topic, w.partition)
	if t := s.targets[name]; t != nil {
		return t, nil
	}
	return s.addTarget(name), nil
}

// heal has the topics written into Redis soon.
func (r *Relay) heal() {
	select {
	case r.healed <- struct{}{}:
	default:
	}
}

// insist runs step until it succeeds, the lease is lost, or ctx ends, pausing after each failure.
func (s *shard) insist(ctx context.Context, message string, step func() error) error {
	for attempt := 0; ; attempt++ {
		err := step()
		if err == nil || errors.Is(err, errLeaseLost) || ctx.Err() != nil {
			return err
		}
		s.relay.failed(ctx, message, s.number, err)
		if !redisx.Pause(ctx, backoff(attempt)) {
			return ctx.Err()
		}
	}
}

// backoff returns how long to wait after a failure: 50 ms, doubling up to 2 s, with jitter.
func backoff(attempt int) time.Duration {
	d := min(50*time.Millisecond<<min(attempt, 10), 2*time.Second)
	return d/2 + rand.N(d/2)
}

const epochSQL = `SELECT epoch FROM {schema}.relay_lease WHERE shard = $1::smallint`

// checkLease asks the database whether the shard is still this relay's.
func (s *shard) checkLease(ctx context.Context) error {
	var epoch int64
	if err := s.relay.db.QueryRow(ctx, epochSQL, s.number).Scan(&epoch); err != nil {
		return fmt.Errorf("check the lease: %w", err)
	}
	if epoch != s.lease.epoch {
		return errLeaseLost
	}
	return nil
}
