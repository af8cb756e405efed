package consumergroup

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// delivery is an entry that this consumer has in hand: pending with it, and not settled.
type delivery struct {
	lane    *lane
	batch   *batch
	id      stream.ID
	entry   stream.Entry // until it is settled
	carried pel.Carried  // with this delivery counted
	place                // of ordered groups

	mu       sync.Mutex
	state    state
	extended time.Time       // when it was read, or its idle time last reset
	ctx      *handlerContext // its handler's, once that was to run
}

type state int

const (
	waiting state = iota // for a worker
	running              // in a worker's hands
	handled              // waits for its ack to go out
	settled              // no longer in hand
)

// suspectBefore reports whether the entry was handed over before this delivery and no attempt
// came of it: a process died with it in hand, perhaps by it.
func (d *delivery) suspectBefore() bool { return d.carried.Deliveries-1 > d.carried.Attempts }

// start takes the delivery for a worker; it fails where the entry went elsewhere meanwhile.
func (d *delivery) start(ctx *handlerContext) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != waiting {
		return false
	}
	d.state, d.ctx = running, ctx
	return true
}

// ended ends the context of a handler that has returned.
func (d *delivery) ended(ctx *handlerContext) {
	d.mu.Lock()
	ctx.end(nil)
	d.mu.Unlock()
}

func (d *delivery) set(s state) {
	d.mu.Lock()
	d.state = s
	d.mu.Unlock()
}

// lose takes the delivery out of hand because another consumer has it now.
func (d *delivery) lose() {
	d.mu.Lock()
	wasWaiting := d.state == waiting
	if wasWaiting {
		d.state = settled
	} else if d.ctx != nil {
		d.ctx.end(ErrLost)
	}
	d.mu.Unlock()
	if wasWaiting {
		d.batch.done()
	}
}

// batch is the entries of one read, which come and go together in memory.
type batch struct {
	hand       *hand
	deliveries []delivery
	live       atomic.Int32 // deliveries that are not settled
}

// all returns the deliveries; none of a nil batch.
func (b *batch) all() []*delivery {
	if b == nil {
		return nil
	}
	ds := make([]*delivery, len(b.deliveries))
	for i := range ds {
		ds[i] = &b.deliveries[i]
	}
	return ds
}

// done counts a settled delivery; the last one takes the batch out of hand.
func (b *batch) done() {
	b.hand.count.Add(-1)
	if b.live.Add(-1) > 0 {
		return
	}
	b.hand.mu.Lock()
	delete(b.hand.batches, b)
	b.hand.mu.Unlock()
}

// hand is everything that the consumer has in hand.
type hand struct {
	count atomic.Int64 // deliveries that are not settled
	ever  atomic.Int64 // those that are, too

	mu      sync.Mutex
	batches map[*batch]struct{}
}

func (h *hand) add(b *batch) {
	b.hand = h
	b.live.Store(int32(len(b.deliveries))) //nolint:gosec // a read is some hundred entries
	h.count.Add(int64(len(b.deliveries)))
	h.ever.Add(int64(len(b.deliveries)))
	h.mu.Lock()
	h.batches[b] = struct{}{}
	h.mu.Unlock()
}

// each calls fn with every delivery that is not settled, under the delivery's lock.
func (h *hand) each(fn func(*delivery)) {
	h.mu.Lock()
	batches := make([]*batch, 0, len(h.batches))
	for b := range h.batches {
		batches = append(batches, b)
	}
	h.mu.Unlock()
	for _, b := range batches {
		for i := range b.deliveries {
			d := &b.deliveries[i]
			d.mu.Lock()
			if d.state != settled {
				fn(d)
			}
			d.mu.Unlock()
		}
	}
}
