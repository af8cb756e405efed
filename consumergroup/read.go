package consumergroup

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

const (
	// maxRead is the most entries that one read asks for, and that wait for a worker.
	maxRead = 256

	// maxFetches is how many reads are under way, or being decoded, where the workers keep up:
	// the server works on one while another's reply comes and that of the first is decoded.
	maxFetches = 3

	// maxReadBlock is how long a read blocks at the most: what was read in it is handled
	// though the group was paused, or a partition leased, meanwhile.
	maxReadBlock = 500 * time.Millisecond

	minBackoff   = 50 * time.Millisecond
	maxBackoff   = 2 * time.Second
	brokenRetest = 5 * time.Second
)

// jitter draws a duration of 0.75 to 1.25 times d.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// reader reads lanes of one server: all of a standalone server's, or one slot's.
type reader struct {
	c     *Consumer
	lanes []*lane
	block int64 // ms

	least  int   // entries that a read asks for where handlers are slow: as many as there are workers
	most   int   // and at the most
	size   int   // and now, in all
	active int   // lanes that had entries in the last read
	ended  int64 // what the consumer had ended when the handlers were last found slow

	dry bool // the last read found nothing

	fast    atomic.Bool  // the workers keep up with full reads: the next may begin before the last is decoded
	ahead   *fetch       // the next read, where it has begun
	fetches atomic.Int32 // that have begun, and whose entries are not with the workers yet
}

// readers returns what reads the consumer's lanes: one read serves all of them on a
// standalone server, and one each slot on a Cluster.
func (c *Consumer) readers() []*reader {
	block := min(redisx.BlockFor(c.rdb), maxReadBlock).Milliseconds()
	most := maxRead
	if c.cfg.Ordered {
		most = maxReadOrdered
	}
	newReader := func(lanes []*lane) *reader {
		least := min(c.cfg.Concurrency, maxRead)
		return &reader{c: c, lanes: lanes, block: block, least: least, most: most, size: least, active: len(lanes) / 2} // half are retry streams
	}
	var all []*reader
	var lanes []*lane
	for _, p := range c.partitions {
		lanes = append(lanes, p.lanes[:]...)
		if redisx.IsCluster(c.rdb) {
			all, lanes = append(all, newReader(lanes)), nil
		}
	}
	if all == nil {
		all = append(all, newReader(lanes))
	}
	return all
}

// run reads until ctx ends. Entries that look as if they had killed a process are
// handled here, one by one, with nothing else in hand.
func (r *reader) run(ctx, workCtx, endCtx context.Context) {
	backoff := minBackoff
	for ctx.Err() == nil || r.ahead != nil {
		if r.ahead == nil && !r.c.breaker.wait(ctx) {
			return
		}
		suspects, err := r.round(ctx)
		switch {
		case err == nil:
			backoff = minBackoff
		case redisx.IsNoGroup(err) && ctx.Err() == nil:
			r.c.heal(ctx, r.partitions())
		case ctx.Err() == nil:
			r.c.log.Error(ctx, "read failed", "", err)
			r.findBroken(ctx, err)
		}
		if err != nil && r.ahead == nil { // what a read ahead found is brought in hand first
			redisx.Pause(ctx, jitter(backoff))
			backoff = min(2*backoff, maxBackoff)
		}
		if len(suspects) > 0 {
			r.c.wantAlone.Add(1)
			for r.ahead != nil { // nothing else is to be in hand
				more, _ := r.round(ctx) // what failed is read again
				suspects = append(suspects, more...)
			}
			r.handleAlone(ctx, workCtx, endCtx, suspects)
			r.c.wantAlone.Add(-1)
		}
	}
}

// round reads once and hands the entries to the workers. It returns those that must be
// handled alone.
func (r *reader) round(ctx context.Context) (suspects []*delivery, err error) {
	if r.c.cfg.Ordered {
		return nil, r.roundOrdered(ctx)
	}
	f := r.ahead
	if r.ahead = nil; f == nil {
		r.c.alone.RLock() // and keeps it while a read is ahead
	}
	defer func() {
		if r.ahead == nil {
			r.c.alone.RUnlock()
		}
	}()
	var ds []*delivery
	var waited time.Duration
	reserved, want := 0, r.size
	if f == nil {
		lanes := r.usable()
		if len(lanes) == 0 {
			redisx.Pause(ctx, maxReadBlock)
			return nil, nil
		}
		waited = r.waitForRoom(ctx)
		want = r.want()
		if reserved, err = r.reserve(ctx, want); err != nil || reserved == 0 {
			return nil, err
		}
		if r.c.cfg.Weights != nil {
			ds, err = r.readShares(ctx, lanes, reserved)
		} else {
			f = r.fetch(ctx, lanes, max(1, reserved/r.active), r.size, r.block)
			f.send(ctx, r.c)
		}
	}
	if f != nil {
		<-f.done
		defer r.fetches.Add(-1)
		ds, err = f.batch.all(), f.err
		if r.ahead = f.next; r.ahead == nil && len(ds) > 0 {
			r.ahead = r.readAhead(ctx, f)
		}
		waited = max(waited, r.waitForRoom(ctx))
	}
	r.dry = len(ds) == 0
	if limitErr := r.c.limiter.correct(ctx, len(ds)-reserved); limitErr != nil {
		r.c.log.Error(ctx, "rate limit not known", "", limitErr)
	}
	if r.dry {
		r.fast.Store(false)
		return nil, err
	}
	lanes, last := 0, (*lane)(nil)
	for _, d := range ds { // lane after lane
		if d.lane != last {
			lanes, last = lanes+1, d.lane
		}
		r.c.observe(ctx, Delivered, d, nil)
		if d.lane.retry && d.suspectBefore() {
			suspects = append(suspects, d)
		} else if !r.c.push(ctx, d) {
			return nil, nil // it stays in hand, and is released
		}
	}
	r.adapt(len(ds), want, waited, lanes)
	if !r.fast.Load() {
		runtime.Gosched() // the handlers first: they wait for the entries, and the next read takes their acks
	}
	return suspects, err
}

// readShares reads about n entries, of each topic the share of its weight, so that the workers
// get from each in proportion while all have a backlog. Only where no topic has anything it
// blocks.
func (r *reader) readShares(ctx context.Context, lanes []*lane, n int) (ds []*delivery, err error) {
	byTopic, total := map[string][]*lane{}, 0
	for _, l := range lanes {
		name := l.p.topic.Name
		if byTopic[name] == nil {
			total += r.c.cfg.weight(name)
		}
		byTopic[name] = append(byTopic[name], l)
	}
	for name, lanes := range byTopic {
		// All lanes of a topic but the retry streams are taken for active.
		b, err := r.read(ctx, lanes, max(1, 2*n*r.c.cfg.weight(name)/total/len(lanes)), 0)
		if ds = append(ds, b.all()...); err != nil {
			return ds, err
		}
	}
	if len(ds) > 0 {
		return ds, nil
	}
	b, err := r.read(ctx, lanes, 1, r.block)
	return b.all(), err
}

// hasRoom reports whether the workers have taken most of what a read of that size gave.
func (r *reader) hasRoom(size int) bool {
	return len(r.c.work) < max(1, size/2) && (r.c.lines == nil || !r.c.lines.full())
}

// waitForRoom waits until the workers have taken most of what was read before, and
// returns for how long.
func (r *reader) waitForRoom(ctx context.Context) time.Duration {
	const lookAgain = 5 * time.Millisecond // another reader may have taken the signal
	began := time.Now()
	for !r.hasRoom(r.size) && ctx.Err() == nil {
		timer := time.NewTimer(lookAgain)
		select {
		case <-r.c.room:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return time.Since(began)
}

// want returns how many entries a read asks for. Slow handlers have no more waiting for them
// than one such read.
func (r *reader) want() int {
	if r.size > r.least {
		return r.size
	}
	return max(1, r.size-len(r.c.work))
}

// adapt finds how many entries a read should ask for: what the workers take in a moment.
// Slow handlers get no more than they can start, which leaves the rest to other
// consumers; fast ones are fed in bulk. That workers are free says nothing of handlers
// until as many have ended as there are workers.
func (r *reader) adapt(n, want int, waited time.Duration, lanes int) {
	full := n >= want*3/4
	ended := r.c.hand.ever.Load() - r.c.hand.count.Load() + r.c.unacked.Load()
	known := r.size > r.least || ended-r.ended >= int64(r.least)
	r.active = lanes
	r.fast.Store(known && full && waited < time.Millisecond && r.c.cfg.Weights == nil && r.c.limiter == nil)
	switch {
	case waited > 50*time.Millisecond:
		r.size = max(r.size/2, r.least)
	case known && full && waited < 10*time.Millisecond:
		r.size = min(2*r.size, r.most)
	}
	if waited >= 10*time.Millisecond {
		r.ended = ended
	}
}

// push hands a delivery to the workers, or, with KeyOrder, to the line of its key.
func (c *Consumer) push(ctx context.Context, d *delivery) bool {
	if c.lines != nil && !c.lines.enter(d) {
		return true
	}
	select {
	case c.work <- d:
	default:
		select {
		case c.work <- d:
		case <-ctx.Done():
			return false
		}
	}
	signal(c.more)
	return true
}

// fetch is a read on its way, and the acks that ride with it.
type fetch struct {
	count int // entries that it asks for of each stream
	size  int // and about in all
	cmd   redisx.RawCmd
	acks  []ackCmd
	next  *fetch // the read that began when the reply to this one did

	done  chan struct{} // closed when what it found is in hand
	batch *batch        // nil where nothing came
	err   error
}

// read sends the acks that are ready and reads, in one round trip. It returns nil where
// nothing came.
func (r *reader) read(ctx context.Context, lanes []*lane, count int, blockMs int64) (*batch, error) {
	f := r.fetch(ctx, lanes, count, r.size, blockMs)
	defer r.fetches.Add(-1)
	f.send(ctx, r.c)
	return f.batch, f.err
}

// fetch makes a read that takes along what is ready to be acked.
func (r *reader) fetch(ctx context.Context, lanes []*lane, count, size int, blockMs int64) *fetch {
	args := make([]any, 0, 9+2*len(lanes))
	args = append(args, "xreadgroup", "group", r.c.cfg.Group, r.c.name, "count", count)
	if blockMs > 0 {
		args = append(args, "block", blockMs)
	}
	args = append(args, "streams")
	for _, l := range lanes {
		args = append(args, l.key)
	}
	for range lanes {
		args = append(args, ">")
	}
	f := &fetch{count: count, size: size, acks: r.c.ackCmds(ctx, lanes, 0), done: make(chan struct{})}
	f.cmd = redisx.NewRawThen(ctx, func() { f.next = r.readAhead(ctx, f) }, args...)
	r.fetches.Add(1)
	return f
}

// readAhead begins the read behind f, where the workers are fast: the server works while the
// reply to f is read and decoded. The server has carried f out, so the order stays. What the
// read finds is in hand, and has a heartbeat, however long the workers then take for f.
func (r *reader) readAhead(ctx context.Context, f *fetch) *fetch {
	if !r.fast.Load() || r.fetches.Load() >= maxFetches || ctx.Err() != nil || !r.hasRoom(f.size) || r.c.wantAlone.Load() > 0 || !r.c.breaker.closed() {
		return nil
	}
	lanes := r.usable()
	if len(lanes) == 0 {
		return nil
	}
	next := r.fetch(ctx, lanes, f.count, f.size, r.block)
	go next.send(ctx, r.c) // round waits for it
	return next
}

// send makes the round trip, and brings what it found in hand.
func (f *fetch) send(ctx context.Context, c *Consumer) {
	defer close(f.done)
	if len(f.acks) == 0 {
		_ = c.rdb.Process(ctx, f.cmd) // the error is in cmd
	} else {
		pipe := c.rdb.Pipeline()
		for _, a := range f.acks {
			_ = pipe.Process(ctx, a.cmd) // only queues
		}
		_ = pipe.Process(ctx, f.cmd)
		_, _ = pipe.Exec(ctx) // each command has its own error
		for _, a := range f.acks {
			c.acked(ctx, a.lane, a.deliveries, a.reply)
		}
	}
	reply, err := f.cmd.Reply(ctx, c.rdb)
	if err == nil {
		f.batch, f.err = c.take(&reply)
		reply.Free()
	} else if !redisx.IsNil(err) {
		f.err = err
	}
}

// take brings the entries of a read in hand.
func (c *Consumer) take(reply *redisx.Reply) (*batch, error) {
	const small = 256 // bytes of an entry, about
	b := &batch{deliveries: make([]delivery, 0, min(reply.Len()/small+1, maxRead))}
	now := time.Now()
	err := stream.DecodeEntries(reply, func(en stream.Entry, _ bool) error {
		l := c.lanes[en.Stream]
		carried := l.receive(&en, now)
		b.deliveries = append(b.deliveries, delivery{lane: l, batch: b, id: en.ID, entry: en, carried: carried, extended: now})
		return nil
	})
	if err != nil || len(b.deliveries) == 0 {
		return nil, err
	}
	c.hand.add(b)
	return b, nil
}

// reserve returns how many of the entries that are wanted may be read: one where there was nothing to read before,
// or what idle consumers reserve would be missing to those who have work.
func (r *reader) reserve(ctx context.Context, want int) (int, error) {
	if r.dry && r.c.limiter != nil {
		return r.c.limiter.reserve(ctx, 1)
	}
	return r.c.limiter.reserve(ctx, want)
}

func (r *reader) usable() []*lane {
	lanes := make([]*lane, 0, len(r.lanes))
	for _, l := range r.lanes {
		if l.p.readable() {
			lanes = append(lanes, l)
		}
	}
	return lanes
}

func (r *reader) partitions() []*partition {
	var ps []*partition
	for _, l := range r.lanes {
		if !l.retry {
			ps = append(ps, l.p)
		}
	}
	return ps
}

// findBroken takes partitions out of the read whose key holds another type, or which the
// user may not read, so that one of them does not stop the others.
func (r *reader) findBroken(ctx context.Context, err error) {
	if !redisx.IsWrongType(err) && !redisx.IsNoPerm(err) {
		return
	}
	for _, p := range r.partitions() {
		for _, l := range p.lanes {
			err := redisx.Do(ctx, r.c.rdb, "xpending", l.key, r.c.cfg.Group).Err()
			if redisx.IsWrongType(err) || redisx.IsNoPerm(err) {
				p.setBroken(err, brokenRetest)
				r.c.log.Error(ctx, "partition cannot be read", l.key, err)
			}
		}
	}
}

// handleAlone handles entries that may have killed a process. Only one is in hand at a
// time, so that the next death takes no innocent entries with it: the others go back to
// the retry stream, and are read again one by one.
func (r *reader) handleAlone(ctx, workCtx, endCtx context.Context, suspects []*delivery) {
	c := r.c
	c.alone.Lock()
	defer c.alone.Unlock()
	c.release(endCtx, suspects[1:])
	left := len(suspects) - 1
	for d, l := suspects[0], suspects[0].lane; ; {
		if !c.emptyHand(ctx, 1) {
			return
		}
		c.handle(workCtx, endCtx, d)
		c.sendAcks(endCtx, 0)
		for d = nil; d == nil; {
			if left == 0 || ctx.Err() != nil || !l.p.readable() {
				return
			}
			b, err := r.read(ctx, []*lane{l}, 1, 0)
			if err != nil || b == nil {
				return
			}
			if err := c.limiter.correct(endCtx, 1); err != nil {
				c.log.Error(ctx, "rate limit not known", "", err)
			}
			next := &b.deliveries[0]
			if next.suspectBefore() {
				d = next
				left--
			} else if !c.push(ctx, next) {
				return
			}
		}
	}
}

// emptyHand waits until no more than n deliveries are in hand.
func (c *Consumer) emptyHand(ctx context.Context, n int64) bool {
	for c.hand.count.Load() > n {
		c.sendAcks(ctx, 0)
		if !redisx.Pause(ctx, 2*time.Millisecond) {
			return false
		}
	}
	return true
}
