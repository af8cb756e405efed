// Package consumergroup consumes topics: a [Consumer] reads a group's share of the
// entries, has a [Handler] handle them, and settles each. Nothing is lost when a handler
// fails, hangs, panics or kills its process, when Redis goes away, or when the group
// vanishes; nothing blocks the events behind one that fails.
//
//	mux := consumergroup.NewMux()
//	consumergroup.Handle(mux, OrderPlaced, func(ctx context.Context, e stream.Event, o Order) error {
//		return billing.Charge(ctx, o)
//	})
//	c, err := consumergroup.New(rdb, consumergroup.Config{Topics: []stream.Topic{Orders}, Group: "billing", Handler: mux})
//	err = c.Run(ctx) // until ctx ends; then drains
//
// Delivery is at least once: a handler may run again for an event, though not while its
// process runs and reaches Redis. Package inbox makes an effect in Postgres exactly once.
package consumergroup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// Consumer is one member of a consumer group. Any number, in any number of processes, make
// up the group.
type Consumer struct {
	rdb        redis.UniversalClient
	cfg        Config
	handler    Handler // with the middleware, and a recovery around all
	name       string
	log        *quiet.Log
	partitions []*partition
	lanes      map[string]*lane // by stream key
	keeper     *Upkeep

	started  atomic.Bool
	work     chan *delivery
	hand     hand
	unacked  atomic.Int64  // deliveries that were handled and wait for their ack
	limiter  *limiter      // with Rate
	lines    *lines        // with KeyOrder
	due      dueList       // of ordered groups
	room     chan struct{} // a worker took a delivery
	more     chan struct{} // there is work for one that waits
	ackReady chan struct{} // a lane has its first ack
	draining chan struct{} // closed when workers take nothing more

	// alone is held for writing while an entry is handled with nothing else in hand, and
	// for reading from a read until its entries are with the workers.
	alone     sync.RWMutex
	wantAlone atomic.Int32 // who waits for it, or has it: no read begins before the last is with the workers

	breaker   breaker
	unhandled sync.Map // event types that were logged
}

// New returns a consumer; nothing is sent to Redis before Run. The error has every fault
// of the config. The caller keeps rdb and closes it after Run has returned.
func New(rdb redis.UniversalClient, config Config) (*Consumer, error) {
	cfg := config.withDefaults()
	if err := cfg.validate(rdb); err != nil {
		return nil, err
	}
	c := &Consumer{
		rdb: rdb, cfg: cfg, handler: Recovery()(chain(cfg.Handler, cfg.Middleware)), name: cfg.Name + "-" + rand.Text()[:12], log: quiet.New(cfg.Logger.With("group", cfg.Group)),
		lanes: map[string]*lane{}, work: make(chan *delivery, maxRead), room: make(chan struct{}, 1), more: make(chan struct{}, 1), ackReady: make(chan struct{}, 1), draining: make(chan struct{}),
		hand: hand{batches: map[*batch]struct{}{}}, due: dueList{fresh: make(chan struct{}, 1)},
	}
	if cfg.Rate.PerSecond > 0 {
		c.limiter = &limiter{rdb: rdb, key: cfg.Topics[0].NamespaceName() + ":$rate:" + cfg.Group, rate: cfg.Rate}
	}
	if cfg.KeyOrder {
		c.lines = &lines{waits: map[string][]*delivery{}}
	}
	for _, t := range cfg.Topics {
		for _, key := range t.StreamKeys() {
			keys := pel.KeysOf(key, cfg.Group)
			p := newPartition(t, keys, pel.NewSettler(rdb, keys, c.name))
			p.lessor = pel.NewLessor(rdb, keys, c.name, cfg.MinIdle)
			c.partitions = append(c.partitions, p)
			for _, l := range p.lanes {
				c.lanes[l.key] = l
			}
		}
	}
	c.keeper = c.newKeeper()
	return c, nil
}

// Name returns the consumer's name in Redis: Config.Name and a random part, so that two
// processes never pass for one.
func (c *Consumer) Name() string { return c.name }

// Run consumes until ctx ends, and then drains: it stops reading, lets the handlers in
// flight finish within ShutdownTimeout, settles, releases the rest, and leaves no name
// behind. It returns nil after that.
//
// While Redis is away it waits and goes on by itself. It returns an error at once where
// waiting cannot help: a topic that was declared differently, a group whose living consumers
// disagree about Ordered, a server that is too old or evicts, a connection pool that is too
// small, a missing permission. A consumer runs once.
func (c *Consumer) Run(ctx context.Context) error {
	if !c.started.CompareAndSwap(false, true) {
		return errors.New("consumergroup: Run was called before; make another Consumer")
	}
	if err := c.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return c.run(ctx)
}

func (c *Consumer) run(ctx context.Context) error {
	workCtx, stopHandlers := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopHandlers(nil)
	endCtx, end := context.WithCancel(context.WithoutCancel(ctx)) // ends when everything is settled, or given up
	defer end()

	beatCtx, stopBeating := context.WithCancel(endCtx)
	defer stopBeating()

	var readers, workers, keepers, tellers, leaving sync.WaitGroup
	for _, r := range c.readers() {
		readers.Go(func() { r.run(ctx, workCtx, endCtx) })
	}
	for range c.cfg.Concurrency {
		workers.Go(func() { c.worker(workCtx, endCtx) })
	}
	keepers.Go(func() { c.flushAcks(endCtx) })
	tellers.Go(func() { c.beat(beatCtx) })
	keepers.Go(func() { c.redeclare(ctx) })
	keepers.Go(func() { c.watchPause(ctx) })
	if c.cfg.Ordered {
		tellers.Go(func() { c.balance(ctx, endCtx, &leaving) })
		keepers.Go(func() { c.renewLeases(endCtx) })
		keepers.Go(func() { c.wakeDue(ctx) })
	}
	switch {
	case !c.cfg.DisableUpkeep:
		keepers.Go(func() { c.keeper.Run(ctx) })
	case c.cfg.Ordered: // whether a lease may be taken depends on it
		keepers.Go(func() { c.keeper.watch(ctx) })
	}

	<-ctx.Done()
	close(c.draining)
	stillRunning := c.drain(&readers, &workers, stopHandlers)
	stopBeating()
	tellers.Wait() // or it would tell that it lives, or take a lease, after it has left
	c.leave(endCtx)
	end()
	keepers.Wait()
	leaving.Wait()
	if stillRunning > 0 {
		return fmt.Errorf("consumergroup: %d handlers of group %s ignored their context and still run", stillRunning, c.cfg.Group)
	}
	return nil
}

// settleGrace is how long settling may take after handlers were told to stop.
const settleGrace = 3 * time.Second

// drain waits for readers and workers, ends the handlers' context after ShutdownTimeout,
// and returns how many handlers go on regardless.
func (c *Consumer) drain(readers, workers *sync.WaitGroup, stopHandlers context.CancelCauseFunc) (stillRunning int) {
	idle := make(chan struct{})
	go func() { // ends with the handlers, which are the caller's
		readers.Wait()
		workers.Wait()
		close(idle)
	}()
	timer := time.NewTimer(c.cfg.ShutdownTimeout)
	defer timer.Stop()
	select {
	case <-idle:
		return 0
	case <-timer.C:
	}
	stopHandlers(ErrStopped)
	timer.Reset(settleGrace)
	select {
	case <-idle:
		return 0
	case <-timer.C:
	}
	c.hand.each(func(d *delivery) {
		if d.state == running {
			stillRunning++
		}
	})
	return stillRunning
}

// leave sends the last acks, releases what is in hand, and deletes this consumer's name.
func (c *Consumer) leave(endCtx context.Context) {
	ctx, cancel := context.WithTimeout(endCtx, settleGrace)
	defer cancel()
	c.sendAllAcks(ctx)
	for _, p := range c.partitions {
		if h := p.holding.Load(); h != nil {
			h.stopStarting()
			c.giveUp(ctx, h, false)
		}
	}
	var left []*delivery
	c.hand.each(func(d *delivery) {
		if d.held == nil && (d.state == waiting || d.state == running) {
			left = append(left, d)
		}
	})
	c.release(ctx, left)
	for _, p := range c.partitions {
		if err := pel.Leave(ctx, c.rdb, p.keys, c.name); err != nil && !redisx.IsNoGroup(err) {
			c.log.Error(ctx, "consumer name stays behind", p.keys.Stream, err)
		}
	}
}

// prepare checks the server and makes what the group needs. It waits for a server that is away.
func (c *Consumer) prepare(ctx context.Context) error {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		err := c.checkAndMake(ctx)
		if err == nil || !redisx.IsUnavailable(err) || redisx.IsReadOnly(err) && ctx.Err() != nil {
			return err
		}
		c.log.Error(ctx, "waiting for Redis", "", err)
		if !redisx.Pause(ctx, jitter(backoff)) {
			return ctx.Err()
		}
	}
}

func (c *Consumer) checkAndMake(ctx context.Context) error {
	keys := make([]string, len(c.partitions))
	for i, p := range c.partitions {
		keys[i] = p.keys.Stream
	}
	if err := stream.CheckServer(ctx, c.rdb, c.cfg.AllowEviction, keys...); err != nil {
		return err
	}
	if err := c.checkPool(ctx); err != nil {
		return err
	}
	if err := c.declare(ctx); err != nil {
		return err
	}
	for _, p := range c.partitions {
		if _, err := pel.Ensure(ctx, c.rdb, p.keys, c.cfg.Start.id); err != nil {
			if redisx.IsUnavailable(err) || redisx.IsNoPerm(err) {
				return err
			}
			p.setBroken(err, brokenRetest) // the others go on
			c.log.Error(ctx, "partition cannot be read", p.keys.Stream, err)
		}
	}
	return nil
}

// checkPool refuses a pool whose every connection would sit in a blocking read.
func (c *Consumer) checkPool(ctx context.Context) error {
	perServer := map[string]int{}
	for _, r := range c.readers() {
		node, err := redisx.NodeFor(ctx, c.rdb, r.lanes[0].key)
		if err != nil {
			return err
		}
		addr := ""
		if client, ok := node.(*redis.Client); ok {
			addr = client.Options().Addr
		}
		perServer[addr]++
	}
	const spare = 2 // acks, settling and heartbeats
	for addr, readers := range perServer {
		if size := redisx.PoolSize(c.rdb); size > 0 && size < readers+spare {
			return fmt.Errorf("consumergroup: %w client: PoolSize %d must be at least %d: %d blocking reads of %s hold a connection each, and settling needs %d",
				ErrInvalid, size, readers+spare, readers, addr, spare)
		}
	}
	return nil
}

// declare joins the group, and writes topics and group into the registry.
func (c *Consumer) declare(ctx context.Context) error {
	if err := stream.Declare(ctx, c.rdb, c.cfg.Topics...); err != nil {
		return err
	}
	for _, p := range c.partitions {
		err := pel.Join(ctx, c.rdb, p.keys, c.name, c.cfg.kind(), c.cfg.MinIdle)
		if redisx.IsUnavailable(err) || redisx.IsNoPerm(err) || errors.Is(err, pel.ErrGroupKind) {
			return err // anything else is this partition's alone
		}
	}
	group := stream.Group{
		Name: c.cfg.Group, Kind: c.cfg.kind(),
		MaxDeliveries: c.cfg.MaxDeliveries, MinIdleMs: c.cfg.MinIdle.Milliseconds(),
	}
	for _, t := range c.cfg.Topics {
		if err := stream.DeclareGroup(ctx, c.rdb, t, group); err != nil {
			return err
		}
	}
	return nil
}

// redeclare writes the registry again every minute, so that a flushed Redis heals.
func (c *Consumer) redeclare(ctx context.Context) {
	for redisx.Pause(ctx, jitter(time.Minute)) {
		if err := c.declare(ctx); err != nil && ctx.Err() == nil {
			c.log.Error(ctx, "registry not written", "", err)
		}
	}
}

// heal makes the groups of partitions whose read failed for want of one.
func (c *Consumer) heal(ctx context.Context, partitions []*partition) {
	if err := c.declare(ctx); err != nil {
		c.log.Error(ctx, "registry not written", "", err)
	}
	for _, p := range partitions {
		made, err := pel.Ensure(ctx, c.rdb, p.keys, c.cfg.Start.id)
		switch {
		case err == nil:
			p.setBroken(nil, 0)
			if made {
				c.log.Warn(ctx, "group was gone and is made anew from its checkpoint", p.keys.Stream)
			}
		case redisx.IsUnavailable(err) || ctx.Err() != nil:
			return
		default:
			p.setBroken(err, brokenRetest)
			c.log.Error(ctx, "partition cannot be read", p.keys.Stream, err)
		}
	}
}

// stopped reports whether workers take nothing more.
func (c *Consumer) stopped() bool {
	select {
	case <-c.draining:
		return true
	default:
		return false
	}
}

func (c *Consumer) observeTrimmed(ctx context.Context, p *partition, r pel.Reclaimed) {
	if c.cfg.Observer != nil {
		c.cfg.Observer.Observe(ctx, Observation{
			Moment: Trimmed, Topic: p.topic.Name, Group: r.Group, Stream: r.Stream, ID: r.ID, Deliveries: r.Deliveries, Reason: dlq.ReasonTrimmed,
		})
	}
}

func (c *Consumer) observe(ctx context.Context, m Moment, d *delivery, add func(*Observation)) {
	if c.cfg.Observer == nil {
		return
	}
	o := Observation{
		Moment: m, Topic: d.lane.p.topic.Name, Group: c.cfg.Group, Stream: d.entry.Stream, ID: d.id, Event: d.entry.Event,
		Attempt: d.carried.Attempts, Deliveries: d.carried.Deliveries,
	}
	if add != nil {
		add(&o)
	}
	c.cfg.Observer.Observe(ctx, o)
}

var notInName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

func hostName() string {
	host, err := os.Hostname()
	host = notInName.ReplaceAllString(host, "-")
	if err != nil || !stream.ValidName(host) {
		return "consumer"
	}
	return host[:min(len(host), 64)]
}
