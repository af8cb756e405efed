package consumergroup

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
)

// OnPoison says what an ordered group does with an event that cannot be handled.
type OnPoison int

// What it does.
const (
	// PoisonDeadLetter makes it a letter, and lets the later events of its key pass.
	PoisonDeadLetter OnPoison = iota
	// PoisonParkKey keeps it, and the later events of its key behind it, until a person has
	// decided (pel.Decide). Other keys go on.
	PoisonParkKey
)

// countRun counts a delivery in Redis before a handler runs anew for it: how often a payload
// has killed its process is known by that alone. The first run was counted when the
// delivery was taken.
func (c *Consumer) countRun(ctx context.Context, d *delivery) bool {
	if d.counted || d.verdict != "" {
		return true
	}
	if d.carried.Deliveries >= c.cfg.MaxDeliveries {
		d.verdict, d.why = dlq.ReasonDeliveries, fmt.Errorf("handed over %d times without an end", d.carried.Deliveries)
		return true
	}
	d.carried.Deliveries++
	counted := c.persist(ctx, d, func(bool) error {
		return d.lane.p.lessor.Count(ctx, d.held.lease(), d.lane.key, d.carried.Deliveries, d.id)
	})
	if !counted {
		d.carried.Deliveries--
	}
	return counted
}

// persist repeats what must be written before a delivery of an ordered group goes on, while
// Redis is away. It reports whether it was; where the lease is lost, what is in hand is dropped.
func (c *Consumer) persist(ctx context.Context, d *delivery, write func(repeated bool) error) bool {
	repeated := false
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		err := write(repeated)
		switch {
		case err == nil:
			return true
		case errors.Is(err, pel.ErrLeaseLost):
			c.lost(ctx, d.held, err)
			return false
		case redisx.IsNoGroup(err):
			c.heal(ctx, []*partition{d.lane.p})
		}
		repeated = repeated || redisx.IsAmbiguous(err)
		c.log.Error(ctx, "delivery not settled yet", d.lane.key, err)
		if !redisx.Pause(ctx, jitter(backoff)) {
			return false
		}
	}
}

// settleHeld settles a delivery of an ordered group that is not plainly acked. A retry stays
// in hand and pending: the later events of its key wait behind it.
func (c *Consumer) settleHeld(ctx context.Context, d *delivery, st pel.Settlement, cause error, took time.Duration) {
	p, en := d.lane.p, &d.entry
	status := pel.Settled
	park := st.Outcome == pel.DeadLetter && c.cfg.OnPoison == PoisonParkKey && isPoison(st.Reason) && !d.final
	note := pel.Note{State: pel.NoteWaiting, Attempts: st.Carried.Attempts, First: st.Carried.First, Error: st.Error}
	if park {
		note.State, note.Reason = pel.NoteParked, st.Reason
	}
	stays := st.Outcome != pel.DeadLetter || park
	settled := c.persist(ctx, d, func(repeated bool) (err error) {
		generation := d.held.lease()
		if !stays {
			status, err = p.lessor.DeadLetter(ctx, generation, repeated, st)
			return err
		}
		if st.Carried.Deliveries != d.carried.Deliveries { // not counted
			if err := p.lessor.Count(ctx, generation, d.lane.key, st.Carried.Deliveries, en.ID); err != nil {
				return err
			}
		}
		if st.Carried.Attempts == d.carried.Attempts && !park {
			return nil
		}
		return p.lessor.Hold(ctx, generation, en, note, st.Delay)
	})
	switch {
	case !settled && ctx.Err() == nil:
		c.report(ctx, d, st, pel.Lost, cause, took)
		c.finish(d)
	case !settled: // it stays pending for the next owner
	case !stays:
		c.report(ctx, d, st, status, cause, took)
		c.finish(d)
	default:
		moment := Retried
		switch {
		case park:
			moment = Parked
			c.log.Error(ctx, "event is parked; its key waits for a person", en.Event.Type, cause,
				"event", en.Event.ID, "key", en.Event.Key, "reason", string(st.Reason), "topic", p.topic.Name)
		case st.Carried.Attempts == d.carried.Attempts:
			moment = Released
		}
		c.observeEnd(ctx, moment, d, st, cause, took)
		d.noted = d.noted || st.Carried.Attempts != d.carried.Attempts || park
		d.carried, d.verdict = st.Carried, ""
		switch {
		case park:
			d.turn = parked
		case st.Outcome == pel.Retry:
			d.turn, d.due = failing, time.Now().Add(st.Delay)
		}
		d.set(waiting)
	}
}

// isPoison reports whether a letter's reason says that its event cannot be handled; other
// letters are wanted.
func isPoison(r dlq.Reason) bool {
	switch r {
	case dlq.ReasonExpired, dlq.ReasonManual, dlq.ReasonUnhandled, dlq.ReasonTrimmed:
		return false
	}
	return true
}

// ackHeld acks a delivery of which Redis has a note, which goes with it.
func (c *Consumer) ackHeld(ctx context.Context, d *delivery) {
	acked := c.persist(ctx, d, func(bool) error {
		return d.lane.p.lessor.AckHeld(ctx, d.held.lease(), &d.entry)
	})
	if acked || ctx.Err() == nil {
		c.finish(d)
	}
}

// dueList wakes deliveries of an ordered group when their next attempt is due.
type dueList struct {
	mu    sync.Mutex
	heap  dueHeap
	fresh chan struct{} // there is a new first
}

func (l *dueList) add(d *delivery, at time.Time) {
	l.mu.Lock()
	heap.Push(&l.heap, dueItem{at, d})
	l.mu.Unlock()
	signal(l.fresh)
}

// pop returns the deliveries that are due, and how long until the next one is.
func (l *dueList) pop() (due []*delivery, next time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.heap) > 0 {
		if next = time.Until(l.heap[0].at); next > 0 {
			return due, next
		}
		item, _ := heap.Pop(&l.heap).(dueItem)
		due = append(due, item.d)
	}
	return due, time.Hour
}

// wakeDue gives deliveries that failed to the workers again when they are due.
func (c *Consumer) wakeDue(ctx context.Context) {
	for ctx.Err() == nil {
		due, next := c.due.pop()
		for _, d := range due {
			if d.held.wake(d) && !c.push(ctx, d) {
				return
			}
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.due.fresh:
		}
		timer.Stop()
	}
}

type dueItem struct {
	at time.Time
	d  *delivery
}

type dueHeap []dueItem

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { item, _ := x.(dueItem); *h = append(*h, item) }
func (h *dueHeap) Pop() any {
	old := *h
	item := old[len(old)-1]
	old[len(old)-1] = dueItem{}
	*h = old[:len(old)-1]
	return item
}
