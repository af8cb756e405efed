package consumergroup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
)

// In an ordered group each partition is leased to one consumer at a time. The consumers
// share the partitions out evenly among those that live, without a leader: each looks at all
// leases and members, knows how many it should have, and takes or gives accordingly.

// How often a consumer looks at the leases: a second, and a millisecond for each partition.
func (c *Consumer) lookEvery() time.Duration {
	return time.Second + time.Duration(len(c.partitions))*time.Millisecond
}

// A lease that ran out may be one that could not be renewed while Redis was away. So it is
// taken from its owner as pending entries are: by a consumer that has reached this Redis
// without a gap for as long as the lease lasts, in which its owner would have renewed it.

// balance takes and gives partitions until ctx ends. leaving counts those that are being
// given up, which may go on until endCtx ends.
func (c *Consumer) balance(ctx, endCtx context.Context, leaving *sync.WaitGroup) {
	for {
		if err := c.balanceOnce(ctx, endCtx, leaving); err != nil && ctx.Err() == nil {
			c.log.Error(ctx, "leases are not known", "", err)
		}
		if !redisx.Pause(ctx, jitter(c.lookEvery())) {
			return
		}
	}
}

func (c *Consumer) balanceOnce(ctx, endCtx context.Context, leaving *sync.WaitGroup) error {
	keys := make([]pel.Keys, len(c.partitions))
	for i, p := range c.partitions {
		keys[i] = p.keys
	}
	tenures, err := pel.Tenures(ctx, c.rdb, keys...)
	if err != nil {
		return err
	}
	c.askAboutParked(ctx)
	counts := map[string]int{c.name: 0}
	for _, t := range tenures {
		for name, silent := range t.Members {
			if silent < c.cfg.MinIdle {
				counts[name] += 0
			}
		}
	}
	var mine, free []*partition
	for i, p := range c.partitions {
		h := p.holding.Load()
		owner := tenures[i].Owner
		switch {
		case h != nil && h.owned():
			mine = append(mine, p)
			counts[c.name]++
		case h != nil: // being given up
		case owner == "" || owner == c.name || !tenures[i].Held() && c.keeper.reach.Since(p.keys.Stream) >= c.cfg.MinIdle:
			if p.usable() { // though paused
				free = append(free, p)
			}
		default:
			if _, lives := counts[owner]; lives {
				counts[owner]++
			}
		}
	}
	share := fairShare(c.name, counts, len(c.partitions))
	for _, p := range mine[min(share, len(mine)):] {
		h := p.holding.Load()
		if h == nil {
			continue
		}
		h.stopStarting()
		leaving.Go(func() { c.giveUp(endCtx, h, true) })
	}
	rand.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	for _, p := range free[:min(max(share-len(mine), 0), len(free))] {
		c.acquire(ctx, p)
	}
	return nil
}

// fairShare returns how many of the partitions self should have. Everybody has the same
// number; what does not divide goes to those who have most already, so that little moves.
func fairShare(self string, counts map[string]int, partitions int) int {
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b)) })
	share := partitions / len(names)
	if slices.Index(names, self) < partitions%len(names) {
		share++
	}
	return share
}

// acquire leases a partition that nobody holds, if nobody is quicker.
func (c *Consumer) acquire(ctx context.Context, p *partition) {
	began := time.Now()
	grant, err := p.lessor.Acquire(ctx, 0)
	switch {
	case err == nil:
		p.holding.Store(newHolding(p, grant, c.cfg.MinIdle, began))
	case redisx.IsNoGroup(err):
		c.heal(ctx, []*partition{p})
	case !errors.Is(err, pel.ErrLeaseLost) && ctx.Err() == nil:
		c.log.Error(ctx, "partition not leased", p.keys.Stream, err)
	}
}

// renewLeases makes the leases last until ctx ends.
func (c *Consumer) renewLeases(ctx context.Context) {
	for redisx.Pause(ctx, c.cfg.MinIdle/4) {
		var calls sync.WaitGroup
		for _, p := range c.partitions {
			if h := p.holding.Load(); h != nil {
				calls.Go(func() { c.renew(ctx, h) })
			}
		}
		calls.Wait()
	}
}

func (c *Consumer) renew(ctx context.Context, h *holding) {
	h.io.Lock()
	began := time.Now()
	grant, err := h.p.lessor.Acquire(ctx, h.lease())
	rewound := err == nil && grant.Main.Compare(h.lanes[0].last) < 0
	h.io.Unlock()
	switch {
	case rewound:
		c.lost(ctx, h, fmt.Errorf("the group stands at %s, behind what it was handed", grant.Main))
	case err == nil:
		h.renew(grant.Generation, began)
		c.wakeIdle(h)
	case errors.Is(err, pel.ErrLeaseLost):
		c.lost(ctx, h, err)
	case redisx.IsNoGroup(err):
		c.heal(ctx, []*partition{h.p})
		c.lost(ctx, h, err)
	case ctx.Err() == nil:
		c.log.Error(ctx, "lease not renewed", h.p.keys.Stream, err)
	}
}

// wakeIdle gives deliveries that could not start their turn again, if they can now.
func (c *Consumer) wakeIdle(h *holding) {
	for _, d := range h.idleOnes() {
		c.due.add(d, time.Now())
	}
}

// lost drops everything of a partition that belongs to another consumer now, and tells the
// handlers that still run.
func (c *Consumer) lost(ctx context.Context, h *holding, why error) {
	left := h.empty()
	if !h.p.holding.CompareAndSwap(h, nil) {
		return
	}
	c.log.Warn(ctx, "lease of the partition is lost", h.p.keys.Stream, "why", why.Error(), "in_hand", len(left))
	for _, d := range left {
		d.lose()
	}
}

// giveUp ends a lease in peace: the handlers in flight return, what they did is settled, and
// what was not begun does not count as delivered. With wait false it does nothing where a
// handler still runs: the lease runs out then.
func (c *Consumer) giveUp(ctx context.Context, h *holding, wait bool) {
	for h.handlers() > 0 {
		if !wait || !redisx.Pause(ctx, ackDelay) {
			return
		}
	}
	generation := h.lease()
	h.io.Lock()
	defer h.io.Unlock()
	err := c.flushHeld(ctx, h)
	for l, ids := range h.unstarted() {
		err = errors.Join(err, h.p.lessor.Count(ctx, generation, l.key, 0, ids...))
	}
	left := h.empty()
	h.p.holding.CompareAndSwap(h, nil)
	if err = errors.Join(err, h.p.lessor.GiveUp(ctx, generation)); err != nil {
		c.log.Error(ctx, "lease not given up; it runs out", h.p.keys.Stream, err)
	}
	for _, d := range left {
		c.observe(ctx, Released, d, nil)
		c.finish(d)
	}
}

// flushHeld sends the acks of a leased partition.
func (c *Consumer) flushHeld(ctx context.Context, h *holding) error {
	for _, l := range h.p.lanes {
		if acks := c.heldAcks(l, h, 0); len(acks) > 0 {
			err := h.p.lessor.Ack(ctx, h.lease(), l.key, idsOf(acks))
			c.heldAcksEnded(ctx, l, h, acks, err)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// heldAcks takes the acks of a lane whose first is at least as old as age. Those of an
// earlier lease are lost with it.
func (c *Consumer) heldAcks(l *lane, h *holding, age time.Duration) (acks []*delivery) {
	for _, d := range l.takeAcks(age) {
		if d.held == h {
			acks = append(acks, d)
		} else {
			c.finish(d)
		}
	}
	return acks
}

// heldAcksEnded is ackEnded for a leased partition: where the lease is lost, so are the acks.
func (c *Consumer) heldAcksEnded(ctx context.Context, l *lane, h *holding, acks []*delivery, err error) {
	if errors.Is(err, pel.ErrLeaseLost) {
		for _, d := range acks {
			c.finish(d)
		}
		c.lost(ctx, h, err)
		return
	}
	c.ackEnded(ctx, l, acks, err)
}

// askAboutParked looks whether a person has decided about what is parked.
func (c *Consumer) askAboutParked(ctx context.Context) {
	for _, p := range c.partitions {
		h := p.holding.Load()
		if h == nil {
			continue
		}
		ds := h.parkedOnes()
		for len(ds) > 0 {
			some := ds[:min(len(ds), 100)]
			ds = ds[len(some):]
			places := make([]pel.Place, len(some))
			for i, d := range some {
				places[i] = pel.Place{ID: d.id, Retry: d.lane.retry}
			}
			notes, err := pel.Notes(ctx, c.rdb, p.keys, places...)
			if err != nil {
				c.log.Error(ctx, "parked events are not known", p.keys.Stream, err)
				break
			}
			for i, d := range some {
				if notes[i].State != pel.NoteParked && h.decide(d, notes[i]) {
					c.due.add(d, time.Now())
				}
			}
		}
	}
}
