package consumergroup

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// The partitions that an ordered consumer leases are read in one transaction, which cannot
// block. So where there was nothing new, a plain read, which takes no delivery, waits for
// something.

const (
	noLeasePause = 20 * time.Millisecond
	// maxReadOrdered is the most entries that one read asks for: a transaction costs several
	// round trips, so it takes more at a time.
	maxReadOrdered = 2 * maxRead
)

// roundOrdered reads once from the partitions that are leased, and hands the first event of
// each key to the workers.
func (r *reader) roundOrdered(ctx context.Context) error {
	holdings, err := r.holdings(ctx)
	if err != nil {
		return err
	}
	if len(holdings) == 0 {
		redisx.Pause(ctx, noLeasePause)
		return nil
	}
	waited := r.waitForRoom(ctx)
	if r.dry {
		if err := r.waitForNew(ctx, holdings); err != nil || r.dry {
			return err
		}
	}
	want := r.want()
	reserved, err := r.reserve(ctx, want)
	if err != nil || reserved == 0 {
		return err
	}
	count, all, active := max(1, reserved/r.active), 0, 0
	defer func() {
		if err := r.c.limiter.correct(ctx, all-reserved); err != nil {
			r.c.log.Error(ctx, "rate limit not known", "", err)
		}
	}()
	for some := range slices.Chunk(holdings, pel.MaxLeased) {
		ready, n, lanes, err := r.take(ctx, some, count)
		all, active = all+n, active+lanes
		for _, d := range ready {
			if !r.c.push(ctx, d) {
				return nil // it stays in hand, and is given up
			}
		}
		if err != nil {
			return err
		}
	}
	if r.dry = all == 0; !r.dry {
		r.adapt(all, want, waited, active)
	}
	return nil
}

// holdings returns the leased partitions that are to be read: those whose old entries were
// taken over, and which have room.
func (r *reader) holdings(ctx context.Context) (holdings []*holding, err error) {
	for _, p := range r.partitions() {
		h := p.holding.Load()
		if h == nil || !h.owned() || !p.readable() {
			continue
		}
		if err := r.takeOver(ctx, h); err != nil {
			return nil, err
		}
		room, full := h.room(r.c.cfg.MaxHeld)
		if full {
			r.c.log.Warn(ctx, "partition is not read on: too many events wait behind keys that fail", p.keys.Stream, "max_held", r.c.cfg.MaxHeld)
		}
		if room && h.tookOver() {
			holdings = append(holdings, h)
		}
	}
	return holdings, nil
}

// waitForNew waits until one of the streams has an entry behind those that were read.
func (r *reader) waitForNew(ctx context.Context, holdings []*holding) error {
	args := []any{"xread", "count", 1, "block", r.block, "streams"}
	for _, h := range holdings {
		args = append(args, h.p.keys.Stream, h.p.keys.Retry)
	}
	for _, h := range holdings {
		args = append(args, h.lanes[0].last.String(), h.lanes[1].last.String())
	}
	reply, err := redisx.Raw(ctx, r.c.rdb, args...)
	if redisx.IsNil(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer reply.Free()
	r.dry = false
	return stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
		l := r.c.lanes[en.Stream]
		if h := l.p.holding.Load(); h != nil { // one that the group has passed would wake it for ever
			h.lane(l).seen = en.ID
		}
		return nil
	})
}

// take takes delivery of what is new in the holdings, and returns the deliveries whose turn
// has come, how many there are in all, and of how many lanes.
func (r *reader) take(ctx context.Context, holdings []*holding, count int) (ready []*delivery, n, lanes int, err error) {
	c := r.c
	leased := make([]pel.Leased, len(holdings))
	for i, h := range holdings {
		h.io.Lock()
		defer h.io.Unlock()
		leased[i] = pel.Leased{Keys: h.p.keys, Generation: h.lease()}
	}
	reply, lost, err := pel.ReadLeased(ctx, c.rdb, c.name, count, leased)
	for _, i := range lost {
		c.lost(ctx, holdings[i], pel.ErrLeaseLost)
	}
	switch {
	case redisx.IsNil(err):
		for _, h := range holdings {
			for i := range h.lanes {
				if s := &h.lanes[i]; s.seen.Compare(s.last) > 0 {
					s.last = s.seen
				}
			}
		}
		return nil, 0, 0, nil
	case redisx.IsNoGroup(err):
		for _, h := range holdings {
			c.lost(ctx, h, err) // what was read of them is not where the group will stand
		}
		return nil, 0, 0, err
	case redisx.IsAmbiguous(err):
		for _, h := range holdings {
			h.strand()
		}
		return nil, 0, 0, err
	case err != nil:
		return nil, 0, 0, err
	}
	defer reply.Free()
	entries := map[*lane][]stream.Entry{}
	err = stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error {
		l := c.lanes[en.Stream]
		entries[l] = append(entries[l], en)
		return nil
	})
	if err != nil {
		return nil, 0, 0, err
	}
	for _, h := range holdings {
		for _, l := range h.p.lanes {
			if got := entries[l]; len(got) > 0 {
				n, lanes = n+len(got), lanes+1
				ready = append(ready, r.bring(ctx, h, l, got)...)
			}
		}
	}
	return ready, n, lanes, nil
}

// bring brings entries of a read in hand.
func (r *reader) bring(ctx context.Context, h *holding, l *lane, entries []stream.Entry) (ready []*delivery) {
	at := h.lane(l)
	if entries[0].ID.Compare(at.last) <= 0 { // they are pending, and taken over by the next lease
		r.c.lost(ctx, h, errors.New("the group was set back"))
		return nil
	}
	at.last = entries[len(entries)-1].ID
	now := time.Now()
	b := &batch{deliveries: make([]delivery, len(entries))}
	ds := make([]*delivery, len(entries))
	for i, en := range entries {
		carried := l.receive(&en, now)
		ds[i] = &b.deliveries[i]
		b.deliveries[i] = delivery{lane: l, batch: b, id: en.ID, entry: en, carried: carried, extended: now, place: place{held: h, counted: true}}
		r.c.observe(ctx, Delivered, ds[i], nil)
	}
	r.c.hand.add(b)
	return h.add(ds)
}

// takeOver takes what earlier owners left of a partition, and what a read took whose reply was
// lost, before anything new is read of it.
func (r *reader) takeOver(ctx context.Context, h *holding) error {
	for _, l := range h.p.lanes {
		at := h.lane(l)
		for at.cursor != "" && ctx.Err() == nil {
			if room, _ := h.room(r.c.cfg.MaxHeld); !room {
				return nil
			}
			h.io.Lock()
			entries, trimmed, next, err := h.p.lessor.TakeOver(ctx, h.lease(), l.key, at.cursor)
			if err == nil {
				at.cursor = next
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
	c, now, at := r.c, time.Now(), h.lane(l)
	b := &batch{deliveries: make([]delivery, len(entries))}
	for i, e := range entries {
		l.p.topic.AdoptEntry(&e.Entry, e.Carried.Origin)
		d := &b.deliveries[i]
		*d = delivery{lane: l, batch: b, id: e.Entry.ID, entry: e.Entry, carried: e.Carried, extended: now, place: place{held: h}}
		if d.carried.First.IsZero() {
			d.carried.First = now
		}
		if d.carried.Deliveries == 0 {
			d.carried.Deliveries = 1
			d.counted = true
		}
		d.counted = d.counted || at.stranded // by this consumer, which began none of them
		if e.Entry.ID.Compare(at.last) > 0 {
			at.last = e.Entry.ID
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
