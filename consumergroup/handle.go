package consumergroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// worker handles deliveries until the consumer drains.
func (c *Consumer) worker(workCtx, endCtx context.Context) {
	for d := c.next(); d != nil; d = c.next() {
		switch {
		case d.held != nil:
			c.handleKey(workCtx, endCtx, d)
		case c.lines != nil:
			c.handleLine(workCtx, endCtx, d)
		default:
			c.handleFree(workCtx, endCtx, d)
		}
	}
}

// next waits for a delivery; it returns nil when the consumer drains, and what is still in the queue is released. A worker
// that was woken wakes one other where there is more: so few run while handlers are short, and all where they are not.
func (c *Consumer) next() *delivery {
	for woken := false; !c.stopped(); woken = true {
		select {
		case d := <-c.work:
			signal(c.room)
			if woken && len(c.work) > 0 {
				signal(c.more)
			}
			return d
		default:
		}
		select {
		case <-c.more:
		case <-c.draining:
		}
	}
	return nil
}

// signal notes in a channel with room for one that something is so.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// handleFree handles a delivery that waits for no other, unless the group is paused.
func (c *Consumer) handleFree(workCtx, endCtx context.Context, d *delivery) {
	if d.lane.p.paused.Load() {
		c.release(endCtx, []*delivery{d})
		return
	}
	c.handle(workCtx, endCtx, d)
}

// handle runs the handler for one delivery and settles it.
func (c *Consumer) handle(workCtx, endCtx context.Context, d *delivery) {
	ctx := c.handlerContext(workCtx, d)
	if !d.start(ctx) {
		return
	}
	defer d.ended(ctx)
	if reason, err := c.unfit(d); err != nil {
		c.settle(endCtx, d, pel.Settlement{Outcome: pel.DeadLetter, Carried: d.carried, Reason: reason, Error: err.Error()}, err, 0)
		return
	}
	probe, ok := c.breaker.enter(ctx, c.stopped)
	if !ok { // it was lost, or the consumer stops: the handler did not run
		err := errors.Join(ErrStopped, context.Cause(ctx))
		c.settle(endCtx, d, c.failure(ctx, d, err), err, 0)
		return
	}
	began := ctx.limit(c.cfg.HandlerTimeout)
	err := c.call(ctx, d)
	took := time.Since(began)
	if err == nil {
		c.breaker.leave(probe)
		c.observe(ctx, Handled, d, func(o *Observation) { o.Took, o.Attempt = took, d.carried.Attempts+1 })
		c.ack(endCtx, d)
		return
	}
	if errors.Is(err, ErrUnhandled) && c.cfg.Unhandled == UnhandledAck {
		c.observe(ctx, Skipped, d, nil)
		if _, known := c.unhandled.LoadOrStore(d.entry.Event.Type, true); !known {
			c.log.Info(ctx, "events of a type without handler are acked", "type", d.entry.Event.Type, "topic", d.lane.p.topic.Name)
		}
		c.breaker.leave(probe)
		c.ack(endCtx, d)
		return
	}
	st := c.failure(ctx, d, err)
	c.breaker.leave(probe)
	c.settle(endCtx, d, st, err, took)
}

// unfit returns why a delivery is not given to the handler at all.
func (c *Consumer) unfit(d *delivery) (dlq.Reason, error) {
	switch e := &d.entry.Event; {
	case d.verdict != "":
		return d.verdict, d.why
	case d.entry.Err != nil:
		return dlq.ReasonUndecodable, d.entry.Err
	case !e.Expires.IsZero() && time.Now().After(e.Expires):
		return dlq.ReasonExpired, fmt.Errorf("the event expired at %s", e.Expires.Format(time.RFC3339))
	case d.carried.Deliveries > c.cfg.MaxDeliveries:
		return dlq.ReasonDeliveries, fmt.Errorf("handed over %d times without an end", d.carried.Deliveries-1)
	}
	return "", nil
}

// handlerContext returns the context for a run of the handler.
func (c *Consumer) handlerContext(workCtx context.Context, d *delivery) *handlerContext {
	originStream, originID := d.entry.Stream, d.id
	if d.lane.retry {
		originStream, originID = dlq.ParseOrigin(d.carried.Origin)
	}
	var generation int64
	if d.held != nil {
		generation = d.held.lease()
	}
	return &handlerContext{parent: workCtx, d: d, deadline: farOff, metadata: Metadata{
		Topic: d.lane.p.topic.Name, Group: c.cfg.Group, Consumer: c.name, Stream: originStream, ID: originID,
		Attempt: d.carried.Attempts + 1, Deliveries: d.carried.Deliveries, FirstSeen: d.carried.First, Generation: generation,
	}}
}

// call runs the handler; a panic is an error.
func (c *Consumer) call(ctx context.Context, d *delivery) error {
	ctx = stream.WithCause(ctx, d.entry.Event)
	err := c.handler.Handle(ctx, d.entry.Event)
	var panicked *PanicError
	if errors.As(err, &panicked) {
		c.log.Error(ctx, "handler panicked", d.entry.Event.Type, err, "event", d.entry.Event.ID, "stack", string(panicked.Stack))
	}
	if err != nil && errors.Is(context.Cause(ctx), ErrStopped) {
		return errors.Join(ErrStopped, err)
	}
	return err
}

// failure returns how a delivery ends whose handler returned err.
func (c *Consumer) failure(ctx context.Context, d *delivery, err error) pel.Settlement {
	st := pel.Settlement{Carried: d.carried, Error: err.Error()}
	if errors.Is(err, ErrStopped) {
		st.Outcome = pel.Release
		st.Carried.Deliveries--
		return st
	}
	var released releaseError
	if errors.As(err, &released) {
		st.Outcome, st.Delay = pel.Retry, released.delay
		st.Carried.Deliveries--
		return st
	}
	class := Classify(err)
	if class == UnavailableError {
		st.Outcome, st.Delay = pel.Retry, c.breaker.open()
		st.Carried.Deliveries--
		c.log.Error(ctx, "something that handlers need is away; reading pauses", "", err, "pause", st.Delay)
		return st
	}
	st.Carried.Attempts++
	switch {
	case errors.Is(err, ErrUnhandled):
		st.Outcome, st.Reason = pel.DeadLetter, dlq.ReasonUnhandled
	case class == PermanentError:
		st.Outcome, st.Reason = pel.DeadLetter, permanentReason(err)
	case st.Carried.Attempts >= c.cfg.Retry.MaxAttempts:
		st.Outcome, st.Reason = pel.DeadLetter, dlq.ReasonAttempts
	default:
		st.Outcome, st.Delay = pel.Retry, c.cfg.Retry.delay(st.Carried.Attempts, err)
	}
	return st
}

func permanentReason(err error) dlq.Reason {
	var permanent permanentError
	switch {
	case errors.As(err, &permanent) && permanent.reason == dlq.ReasonManual:
		return dlq.ReasonManual
	case errors.Is(err, stream.ErrUndecodable), errors.Is(err, stream.ErrMalformed):
		return dlq.ReasonUndecodable
	case errors.Is(err, stream.ErrInvalid):
		return dlq.ReasonInvalid
	}
	return dlq.ReasonPermanent
}

// settle settles a delivery that is not acked. While Redis is away it tries on: the
// delivery stays pending until one try succeeds.
func (c *Consumer) settle(ctx context.Context, d *delivery, st pel.Settlement, cause error, took time.Duration) {
	st.Entry = d.entry
	if d.held != nil {
		c.settleHeld(ctx, d, st, cause, took)
		return
	}
	repeated := false
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		statuses, err := d.lane.p.settler.Settle(ctx, repeated, st)
		if err == nil {
			c.report(ctx, d, st, statuses[0], cause, took)
			c.finish(d)
			return
		}
		c.log.Error(ctx, "delivery not settled yet", d.lane.key, err)
		if redisx.IsNoGroup(err) {
			c.heal(ctx, []*partition{d.lane.p})
		}
		repeated = repeated || redisx.IsAmbiguous(err)
		if !redisx.Pause(ctx, jitter(backoff)) {
			return // it stays pending, and is reclaimed
		}
	}
}

// report tells the observer and the log how a delivery ended.
func (c *Consumer) report(ctx context.Context, d *delivery, st pel.Settlement, status pel.Status, cause error, took time.Duration) {
	if status == pel.Lost {
		c.observe(ctx, LostEntry, d, func(o *Observation) { o.Err = cause })
		return
	}
	moment := map[pel.Outcome]Moment{pel.Retry: Retried, pel.DeadLetter: DeadLettered, pel.Release: Released}[st.Outcome]
	if st.Outcome == pel.Retry && st.Carried.Attempts == d.carried.Attempts {
		moment = Released // by its handler, or in an outage: nothing was counted
	}
	c.observeEnd(ctx, moment, d, st, cause, took)
	if st.Outcome == pel.DeadLetter && status == pel.Settled {
		c.log.Error(ctx, "event went to the dead letters", d.entry.Event.Type, cause,
			"event", d.entry.Event.ID, "reason", string(st.Reason), "attempts", st.Carried.Attempts, "topic", d.lane.p.topic.Name)
	}
}

func (c *Consumer) observeEnd(ctx context.Context, m Moment, d *delivery, st pel.Settlement, cause error, took time.Duration) {
	c.observe(ctx, m, d, func(o *Observation) {
		o.Attempt, o.Deliveries = st.Carried.Attempts, st.Carried.Deliveries
		o.Err, o.Took, o.Delay, o.Reason = cause, took, st.Delay, st.Reason
	})
}

// release gives deliveries back, lane by lane in bulk; this delivery is not counted.
func (c *Consumer) release(ctx context.Context, ds []*delivery) {
	byLane := map[*lane][]*delivery{}
	for _, d := range ds {
		byLane[d.lane] = append(byLane[d.lane], d)
	}
	for l, ds := range byLane {
		settlements := make([]pel.Settlement, len(ds))
		for i, d := range ds {
			settlements[i] = pel.Settlement{Entry: d.entry, Outcome: pel.Release, Carried: d.carried}
			settlements[i].Carried.Deliveries--
		}
		if _, err := l.p.settler.Settle(ctx, false, settlements...); err != nil {
			c.log.Error(ctx, "entries not released; they are reclaimed later", l.key, err)
		}
		for i, d := range ds {
			c.observe(ctx, Released, d, func(o *Observation) { o.Deliveries = settlements[i].Carried.Deliveries })
			c.finish(d)
		}
	}
}

// finish takes a delivery out of hand.
func (c *Consumer) finish(d *delivery) {
	d.mu.Lock()
	was := d.state
	d.state = settled
	d.entry = stream.Entry{} // the batch lives on while others of it do
	d.mu.Unlock()
	if was == handled {
		c.unacked.Add(-1)
	}
	if was != settled {
		d.batch.done()
	}
}
