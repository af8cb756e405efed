package consumergroup

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// An ordered group's entries are read in two steps: their bodies without the group, which
// may block and serves all partitions at once, and then one script for each partition takes
// delivery under its lease.

const (
	// orderedBlock is how long such a read blocks: a partition that was leased meanwhile is
	// not in it.
	orderedBlock = 500
	noLeasePause = 20 * time.Millisecond
)

// source is a lane of a leased partition that is read.
type source struct {
	h       *holding
	l       *lane
	i       int // its place in holding.lanes
	from    pel.Handed
	entries []stream.Entry

	acks  []*delivery
	began time.Time
	reply *redis.Cmd
}

// roundOrdered reads once from the partitions that are leased, takes delivery, and hands the
// first event of each key to the workers.
func (r *reader) roundOrdered(ctx context.Context) error {
	var sources []*source
	for _, p := range r.partitions() {
		h := p.holding.Load()
		if h == nil || !h.owned() || !p.usable() {
			continue
		}
		if err := r.takeOver(ctx, h); err != nil {
			return err
		}
		room, full := h.room(r.c.cfg.MaxHeld)
		if full {
			r.c.log.Warn(ctx, "partition is not read on: too many events wait behind keys that fail", p.keys.Stream, "max_held", r.c.cfg.MaxHeld)
		}
		if !room {
			continue
		}
		for i, l := range p.lanes {
			sources = append(sources, &source{h: h, l: l, i: i, from: h.lanes[i].handed})
		}
	}
	if len(sources) == 0 {
		redisx.Pause(ctx, noLeasePause)
		return nil
	}
	waited := r.waitForRoom(ctx)
	if err := r.readBodies(ctx, sources, max(1, r.size/r.active)); err != nil {
		return err
	}
	n, lanes := 0, 0
	for _, s := range sources {
		if len(s.entries) > 0 {
			n, lanes = n+len(s.entries), lanes+1
		}
	}
	if n == 0 {
		return nil
	}
	r.adapt(n, waited, lanes)
	return r.takeAll(ctx, sources)
}

// readBodies reads what lies beyond each source's position.
func (r *reader) readBodies(ctx context.Context, sources []*source, count int) error {
	args := make([]any, 0, 6+2*len(sources))
	args = append(args, "xread", "count", count, "block", min(r.block, orderedBlock), "streams")
	byKey := make(map[string]*source, len(sources))
	for _, s := range sources {
		args = append(args, s.l.key)
		byKey[s.l.key] = s
	}
	for _, s := range sources {
		args = append(args, s.from.ID.String())
	}
	reply, err := redisx.Raw(ctx, r.c.rdb, args...)
	if redisx.IsNil(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer reply.Free()
	return stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
		s := byKey[en.Stream]
		s.entries = append(s.entries, en)
		return nil
	})
}

// takeAll takes delivery of what was read, in one round trip for all, and hands the first of
// each key to the workers.
func (r *reader) takeAll(ctx context.Context, sources []*source) error {
	ready, err := r.take(ctx, sources)
	for _, d := range ready {
		if !r.c.push(ctx, d) {
			break // it stays in hand, and is given up
		}
	}
	return err
}

func (r *reader) take(ctx context.Context, sources []*source) (ready []*delivery, err error) {
	pipe := r.c.rdb.Pipeline()
	var takes []*source
	locked := map[*holding]bool{}
	for _, s := range sources {
		if len(s.entries) == 0 {
			continue
		}
		if !locked[s.h] {
			locked[s.h] = true
			s.h.io.Lock()
			defer s.h.io.Unlock()
		}
		ids := make([]stream.ID, len(s.entries))
		for i := range s.entries {
			ids[i] = s.entries[i].ID
		}
		s.acks = r.c.heldAcks(s.l, s.h, 0)
		s.began = time.Now()
		var cmd redis.Cmder
		cmd, s.reply = s.l.p.lessor.TakeCmd(ctx, s.h.lease(), s.l.key, s.from, idsOf(s.acks), ids)
		_ = pipe.Process(ctx, cmd) // only queues
		takes = append(takes, s)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	var faults []error
	for _, s := range takes {
		first, err := r.taken(ctx, s)
		ready, faults = append(ready, first...), append(faults, err)
	}
	return ready, errors.Join(faults...)
}

// taken brings the entries of a source in hand, if they were taken. Where the reply was lost
// they are read and taken again, which changes nothing.
func (r *reader) taken(ctx context.Context, s *source) (ready []*delivery, err error) {
	handed, err := s.l.p.lessor.Took(s.reply)
	if len(s.acks) > 0 {
		r.c.heldAcksEnded(ctx, s.l, s.h, s.acks, err)
	}
	switch {
	case errors.Is(err, pel.ErrLeaseLost):
		r.c.lost(ctx, s.h, err)
		return nil, nil
	case redisx.IsNoScript(err):
		return nil, s.l.p.lessor.LoadTake(ctx) // nothing was taken
	case redisx.IsNoGroup(err):
		r.c.lost(ctx, s.h, err) // its positions are those of the group that is gone
		return nil, err
	case err != nil:
		return nil, err
	}
	s.h.lanes[s.i].handed = pel.Handed{ID: s.entries[len(s.entries)-1].ID, Count: handed}
	now := time.Now()
	b := &batch{deliveries: make([]delivery, len(s.entries))}
	ds := make([]*delivery, len(s.entries))
	for i, en := range s.entries {
		carried := pel.CarriedBy(&en, s.l.retry)
		carried.Deliveries++
		if carried.First.IsZero() {
			carried.First = now
		}
		ds[i] = &b.deliveries[i]
		b.deliveries[i] = delivery{lane: s.l, batch: b, entry: en, carried: carried, extended: now, place: place{held: s.h, counted: true}}
		r.c.observe(ctx, Delivered, ds[i], nil)
	}
	r.c.hand.add(b)
	s.h.renew(s.h.lease(), s.began)
	return s.h.add(ds), nil
}

// takeOver takes what earlier owners left of a partition, before anything new is read of it.
func (r *reader) takeOver(ctx context.Context, h *holding) error {
	for i, l := range h.p.lanes {
		for h.lanes[i].cursor != "" && ctx.Err() == nil {
			if room, _ := h.room(r.c.cfg.MaxHeld); !room {
				return nil
			}
			h.io.Lock()
			entries, trimmed, next, err := h.p.lessor.TakeOver(ctx, h.lease(), l.key, h.lanes[i].cursor)
			if err == nil {
				h.lanes[i].cursor = next
			}
			h.io.Unlock()
			switch {
			case errors.Is(err, pel.ErrLeaseLost):
				r.c.lost(ctx, h, err)
				return nil
			case redisx.IsNoGroup(err):
				r.c.lost(ctx, h, err)
				return err
			case err != nil:
				return err
			}
			for _, t := range trimmed {
				r.c.log.Warn(ctx, "entry was trimmed before it was handled", t.Stream, "id", t.ID.String(), "consumer", t.Consumer)
				r.c.observeTrimmed(ctx, h.p, t)
			}
			if len(entries) > 0 {
				for _, d := range r.adopt(ctx, h, l, entries) {
					if !r.c.push(ctx, d) {
						return nil
					}
				}
			}
		}
	}
	return nil
}

// adopt brings stranded entries in hand, and returns those whose turn has come.
func (r *reader) adopt(ctx context.Context, h *holding, l *lane, entries []pel.Stranded) (ready []*delivery) {
	c, now := r.c, time.Now()
	b := &batch{deliveries: make([]delivery, len(entries))}
	for i, e := range entries {
		d := &b.deliveries[i]
		*d = delivery{lane: l, batch: b, entry: e.Entry, carried: e.Carried, extended: now, place: place{held: h}}
		if d.carried.First.IsZero() {
			d.carried.First = now
		}
		if d.carried.Deliveries == 0 {
			d.carried.Deliveries, d.counted = 1, true
		}
		d.noted = e.Note.State != ""
	}
	c.hand.add(b)
	for i, e := range entries {
		d := &b.deliveries[i]
		moment := Reclaimed
		if d.counted {
			moment = Delivered
		}
		c.observe(ctx, moment, d, nil)
		first := h.add([]*delivery{d})
		switch e.Note.State {
		case pel.NoteRetry, pel.NoteDead:
			d.decided(e.Note)
			ready = append(ready, first...)
		case pel.NoteParked:
			h.hold(d, parked)
		case pel.NoteWaiting:
			if h.hold(d, failing) {
				c.due.add(d, now.Add(e.Due))
			}
		default:
			ready = append(ready, first...)
		}
	}
	return ready
}
