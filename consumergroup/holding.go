package consumergroup

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// holding is a partition that this consumer leases, with what it has in hand of it: one
// queue for each key. The first of a queue is handled; the rest wait for it. Queues do not
// wait for each other.
type holding struct {
	p   *partition
	ttl time.Duration

	// io is held during the calls that move a lane, so that a renewal sees whole ones.
	io    sync.Mutex
	lanes [2]laneState // the topic's stream and the retry stream

	mu         sync.Mutex
	phase      phase
	generation int64
	renewed    time.Time // when the latest call began that made the lease last anew
	queues     map[queueKey]*queue
	count      int // deliveries in all queues
	blocked    int // of these, those behind one that failed
	running    int // handlers
}

type phase int

const (
	owned  phase = iota
	giving       // starts nothing more, and is given up when its handlers have returned
	gone         // given up, or lost
)

// laneState is how far one of the partition's streams was read.
type laneState struct {
	last     stream.ID // up to where the group was handed it
	seen     stream.ID // an entry that was seen, and not delivered yet
	cursor   string    // where taking over goes on; empty when it is finished
	stranded bool      // it takes over what this lease itself took
}

// queueKey names a queue. Events without a key have one each.
type queueKey struct {
	key   string
	id    stream.ID
	retry bool
}

type queue struct {
	key   queueKey
	turn  turn
	waits []*delivery // never empty
}

// turn is what the first of a queue is doing.
type turn int

const (
	idle    turn = iota // nothing: the lease is not sure, the group is paused, or the consumer drains
	active              // with a worker, or on its way to one
	failing             // waits for its next attempt
	parked              // waits for a person
)

func newHolding(p *partition, g pel.Grant, ttl time.Duration, began time.Time) *holding {
	return &holding{
		p: p, ttl: ttl, generation: g.Generation, renewed: began, queues: map[queueKey]*queue{},
		lanes: [2]laneState{{last: g.Main, cursor: "-"}, {last: g.Retry, cursor: "-"}},
	}
}

func (h *holding) lane(l *lane) *laneState {
	if l.retry {
		return &h.lanes[1]
	}
	return &h.lanes[0]
}

// tookOver reports whether nothing is left to take over: what is new comes behind it.
func (h *holding) tookOver() bool { return h.lanes[0].cursor == "" && h.lanes[1].cursor == "" }

// strand notes that a read may have taken entries that nobody has in hand.
func (h *holding) strand() {
	for i := range h.lanes {
		if s := &h.lanes[i]; s.cursor == "" {
			s.cursor, s.stranded = "("+s.last.String(), true
		}
	}
}

func (h *holding) lease() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.generation
}

// live reports whether handlers may start: nobody else can have leased the partition
// meanwhile, and the group is not paused. h.mu is held.
func (h *holding) live() bool {
	return h.phase == owned && time.Since(h.renewed) < h.ttl*9/10 && !h.p.paused.Load()
}

// owned reports whether the partition is to be read on.
func (h *holding) owned() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.phase == owned
}

// room reports whether more may be read: little waits that could run, and not too much
// waits behind what failed.
func (h *holding) room(maxHeld int) (ok, full bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	full = h.blocked >= maxHeld
	return !full && h.count-h.blocked < 2*maxRead, full
}

// renew notes that the lease lasts anew since a call that began then.
func (h *holding) renew(generation int64, began time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.generation, h.renewed = generation, began
}

// idleOnes returns the deliveries that could not start while the lease was not sure or the
// group was paused.
func (h *holding) idleOnes() (ds []*delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.live() {
		return nil
	}
	for _, q := range h.queues {
		if q.turn == idle {
			ds = append(ds, q.waits[0])
		}
	}
	return ds
}

// add puts deliveries behind those of their keys, in order, and returns those whose turn has come.
func (h *holding) add(ds []*delivery) (ready []*delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase == gone {
		for _, d := range ds {
			d.lose()
		}
		return nil
	}
	h.count += len(ds)
	for _, d := range ds {
		key := queueKey{key: d.entry.Event.Key}
		if key.key == "" {
			key.id, key.retry = d.id, d.lane.retry
		}
		q := h.queues[key]
		if q != nil {
			q.waits = append(q.waits, d)
			if q.turn >= failing {
				h.blocked++
			}
			d.queue = q
			continue
		}
		d.queue = &queue{key: key, turn: active, waits: []*delivery{d}}
		h.queues[key] = d.queue
		ready = append(ready, d)
	}
	return ready
}

// begin lets the handler of a queue's first delivery run. It fails where the lease is not
// sure: then the delivery starts when it is renewed, if it is.
func (h *holding) begin(d *delivery) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.live() {
		d.queue.turn = idle
		return false
	}
	h.running++
	return true
}

// end ends the turn of a delivery whose handler has returned. It returns the next of its
// key, unless that has to wait.
func (h *holding) end(d *delivery, draining bool) (next *delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running--
	if h.phase == gone {
		return nil
	}
	q := d.queue
	if d.inHand() { // it stays the first
		q.turn = d.turn
		if q.turn >= failing {
			h.blocked += len(q.waits) - 1
		}
		return nil
	}
	h.count--
	q.waits[0] = nil
	if q.waits = q.waits[1:]; len(q.waits) == 0 {
		delete(h.queues, q.key)
		return nil
	}
	if draining || !h.live() {
		q.turn = idle
		return nil
	}
	return q.waits[0]
}

// hold makes a delivery that failed before, and was taken over, wait again. It reports
// whether it is the first of its key.
func (h *holding) hold(d *delivery, t turn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase == gone || d.queue.waits[0] != d {
		return false
	}
	d.queue.turn = t
	return true
}

// wake gives a delivery that waited its turn again. It reports whether it is still there and
// no worker has it.
func (h *holding) wake(d *delivery) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := d.queue
	if h.phase == gone || q.turn == active || q.waits[0] != d {
		return false
	}
	if q.turn >= failing {
		h.blocked -= len(q.waits) - 1
	}
	q.turn = active
	return true
}

// decide applies what a person wrote about a parked delivery; it reports whether it is still there.
func (h *holding) decide(d *delivery, n pel.Note) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase == gone || d.queue.turn != parked || d.queue.waits[0] != d {
		return false
	}
	d.queue.turn = failing
	d.decided(n)
	return true
}

// decided applies what a person wrote about a delivery.
func (d *delivery) decided(n pel.Note) {
	if n.State == pel.NoteDead {
		d.verdict, d.why, d.final = n.Reason, errors.New(n.Error), true
		return
	}
	d.carried.Attempts, d.carried.Deliveries = 0, 0
}

// parkedOnes returns the deliveries that wait for a person.
func (h *holding) parkedOnes() (ds []*delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, q := range h.queues {
		if q.turn == parked {
			ds = append(ds, q.waits[0])
		}
	}
	return ds
}

// stopStarting begins to give the partition up.
func (h *holding) stopStarting() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase == owned {
		h.phase = giving
	}
}

// handlers returns how many handlers run.
func (h *holding) handlers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.running
}

// empty ends the holding and returns what was in hand.
func (h *holding) empty() (left []*delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase == gone {
		return nil
	}
	h.phase = gone
	for _, q := range h.queues {
		left = append(left, q.waits...)
	}
	h.queues, h.count, h.blocked = nil, 0, 0
	return left
}

// unstarted returns the deliveries that were taken and not begun, by lane.
func (h *holding) unstarted() map[*lane][]stream.ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := map[*lane][]stream.ID{}
	for _, q := range h.queues {
		for _, d := range q.waits {
			if d.counted {
				ids[d.lane] = append(ids[d.lane], d.id)
			}
		}
	}
	return ids
}

// place is what a delivery of an ordered group has beside.
type place struct {
	held    *holding
	queue   *queue
	turn    turn       // what becomes of its queue when its handler has returned
	counted bool       // Redis counts the delivery at hand, and no handler ran for it yet
	noted   bool       // Redis may have a note of it: it is acked by itself
	due     time.Time  // when its next attempt is, where it failed
	verdict dlq.Reason // it is to become a letter without another run
	why     error
	final   bool // a person said so
}

// suspectNow reports whether the delivery may have killed a process: it was begun, and no
// attempt came of it.
func (d *delivery) suspectNow() bool {
	return d.held != nil && !d.counted && d.carried.Deliveries > d.carried.Attempts
}

func (d *delivery) inHand() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state == waiting || d.state == running
}

// handleKey handles a delivery of an ordered group, and then those that waited for it.
func (c *Consumer) handleKey(workCtx, endCtx context.Context, d *delivery) {
	for d != nil {
		d = c.handleHeld(workCtx, endCtx, d)
	}
}

func (c *Consumer) handleHeld(workCtx, endCtx context.Context, d *delivery) (next *delivery) {
	if d.suspectNow() {
		// Alone in this process, so that its death takes no other with it: not one that runs,
		// and not one that was handled and not acked yet.
		c.alone.Lock()
		defer c.alone.Unlock()
		c.sendAllAcks(endCtx)
		d.noted = true // is acked by itself, before anything else runs
	} else {
		c.alone.RLock()
		defer c.alone.RUnlock()
	}
	h := d.held
	if !h.begin(d) {
		return nil
	}
	d.turn = idle
	if c.countRun(endCtx, d) {
		c.handle(workCtx, endCtx, d)
	}
	d.counted = false
	failed := d.turn == failing
	next = h.end(d, c.stopped())
	if failed {
		c.due.add(d, d.due)
	}
	return next
}
