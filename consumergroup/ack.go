package consumergroup

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// ackDelay is how long an ack waits for the next read to carry it.
const ackDelay = 5 * time.Millisecond

// ack notes that a delivery was handled. The ack goes out with the next read, or by itself
// some milliseconds later.
func (c *Consumer) ack(ctx context.Context, d *delivery) {
	if d.noted {
		c.ackHeld(ctx, d)
		return
	}
	d.set(handled)
	c.unacked.Add(1)
	if d.lane.addAck(d) {
		signal(c.ackReady)
	}
}

// flushAcks sends the acks that no read carried.
func (c *Consumer) flushAcks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.ackReady:
		}
		if !redisx.Pause(ctx, ackDelay) {
			return
		}
		c.sendAcks(ctx, ackDelay)
		for _, l := range c.lanes {
			if l.waiting() {
				signal(c.ackReady)
				break
			}
		}
	}
}

// ackCmd is an ack on its way.
type ackCmd struct {
	lane       *lane
	deliveries []*delivery
	cmd        redis.Cmder
	reply      *redis.Cmd
}

// ackCmds takes the acks of topics' streams that are at least as old as age.
func (c *Consumer) ackCmds(ctx context.Context, lanes []*lane, age time.Duration) []ackCmd {
	var cmds []ackCmd
	for _, l := range lanes {
		if l.retry {
			continue
		}
		if acks := l.takeAcks(age); len(acks) > 0 {
			cmd, reply := l.p.settler.AckCmd(ctx, idsOf(acks))
			cmds = append(cmds, ackCmd{l, acks, cmd, reply})
		}
	}
	return cmds
}

// sendAcks sends the acks that are at least as old as age, of all lanes.
func (c *Consumer) sendAcks(ctx context.Context, age time.Duration) {
	for _, l := range c.lanes {
		if c.cfg.Ordered {
			c.sendHeldAcks(ctx, l, age)
			continue
		}
		if !l.retry {
			for _, a := range c.ackCmds(ctx, []*lane{l}, age) {
				_ = c.rdb.Process(ctx, a.cmd) // the error is in reply
				c.acked(ctx, a.lane, a.deliveries, a.reply)
			}
			continue
		}
		if acks := l.takeAcks(age); len(acks) > 0 {
			_, err := l.p.settler.AckRetries(ctx, idsOf(acks))
			c.ackEnded(ctx, l, acks, err)
		}
	}
}

// sendHeldAcks sends acks of a leased partition. Until they are there the lease is not given
// up, or they would come too late, and the next owner would handle all of it again.
func (c *Consumer) sendHeldAcks(ctx context.Context, l *lane, age time.Duration) {
	h := l.p.holding.Load()
	if h != nil {
		h.io.Lock()
		defer h.io.Unlock()
	}
	if acks := c.heldAcks(l, h, age); len(acks) > 0 {
		c.heldAcksEnded(ctx, l, h, acks, l.p.lessor.Ack(ctx, h.lease(), l.key, idsOf(acks)))
	}
}

// sendAllAcks sends every ack of what was handled so far.
func (c *Consumer) sendAllAcks(ctx context.Context) {
	for c.unacked.Load() > 0 {
		c.sendAcks(ctx, 0)
		if c.unacked.Load() > 0 && !redisx.Pause(ctx, time.Millisecond) { // another goroutine sends some
			return
		}
	}
}

func (c *Consumer) acked(ctx context.Context, l *lane, acks []*delivery, reply *redis.Cmd) {
	c.ackEnded(ctx, l, acks, reply.Err())
}

// ackEnded takes the acked deliveries out of hand, or keeps their acks for another try. A
// repeated ack changes nothing.
func (c *Consumer) ackEnded(ctx context.Context, l *lane, acks []*delivery, err error) {
	if err != nil && !redisx.IsNoGroup(err) {
		l.putBack(acks)
		signal(c.ackReady)
		c.log.Error(ctx, "acks not sent yet", l.key, err)
		return
	}
	for _, d := range acks {
		c.finish(d)
	}
}

func (l *lane) waiting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acks) > 0
}

// beat tells the group that this consumer lives, and extends what it has had in hand for a
// third of MinIdle. A handler that has outrun its time is not spoken for.
func (c *Consumer) beat(ctx context.Context) {
	third := c.cfg.MinIdle / 3
	var told time.Time
	for redisx.Pause(ctx, third/4) {
		now := time.Now()
		held := map[*lane][]*delivery{}
		if now.Sub(told) >= third {
			told = now
			for _, p := range c.partitions {
				held[p.lanes[0]] = nil
			}
		}
		c.hand.each(func(d *delivery) {
			overdue := d.state == running && now.After(d.ctx.deadline)
			if d.held == nil && now.Sub(d.extended) >= third && !overdue {
				held[d.lane] = append(held[d.lane], d)
			}
		})
		for l, ds := range held {
			c.extend(ctx, l, ds)
		}
	}
}

func (c *Consumer) extend(ctx context.Context, l *lane, ds []*delivery) {
	ids := make([]stream.ID, len(ds))
	for i, d := range ds {
		ids[i] = d.id
	}
	began := time.Now()
	answers, err := l.p.settler.Extend(ctx, l.key, ids)
	if err != nil {
		if redisx.IsUnavailable(err) {
			c.keeper.reach.Lost(l.p.keys.Stream)
		}
		if ctx.Err() == nil {
			c.log.Error(ctx, "heartbeat failed", l.key, err)
		}
		return
	}
	for i, held := range answers {
		d := ds[i]
		if held == -1 {
			d.lose()
			continue
		}
		d.mu.Lock()
		d.extended = began
		d.mu.Unlock()
	}
}
