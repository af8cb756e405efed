package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// progress is how far a batch is.
type progress struct {
	after       int64 // every row up to here is in Redis, or set aside
	rows, bytes int64 // that were added
	only        map[*target]bool
	lacking     *target // a stream that is ahead, and lacks rows of the batch
}

// publish brings the batch into Redis, wholly, whatever it takes. It returns an error only if the lease is lost or
// ctx ends.
func (s *shard) publish(ctx context.Context, b batch) error {
	start := time.Now()
	var at progress
	for attempt := 0; ; attempt++ {
		before := at.after
		err := s.publishFrom(ctx, &b, &at)
		if err == nil {
			break
		}
		if at.after > before {
			attempt = 0
		}
		if err := s.overcome(ctx, &b, &at, err, attempt); err != nil {
			return err
		}
	}
	if err := s.resume(ctx); err != nil {
		return err
	}
	s.published.Store(b.number)
	s.publishedAt = time.Now()
	s.relay.recent.Add(at.rows)
	s.relay.observe(ctx, Observation{Moment: Published, Shard: s.number, Batch: b.number, Rows: at.rows, Bytes: at.bytes, Took: time.Since(start)})
	return nil
}

// overcome does what an error asks for, so that the batch can be gone on with from at; or it returns an error
// that ends the shard.
func (s *shard) overcome(ctx context.Context, b *batch, at *progress, err error, attempt int) error {
	var f *fault
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errLeaseLost):
		return err
	case !errors.As(err, &f): // Postgres, or the connection to Redis
		s.relay.failed(ctx, "publishing failed, and is tried again", s.number, err)
		if !redisx.Pause(ctx, backoff(attempt)) {
			return ctx.Err()
		}
		return nil
	}
	switch f.kind {
	case faultUnavailable:
		s.relay.failed(ctx, "Redis takes no rows, and is tried again", s.number, err)
		if !redisx.Pause(ctx, backoff(attempt)) {
			return ctx.Err()
		}
		s.relay.heal()
		return nil
	case faultGap, faultUnknown:
		at.after = 0 // what Redis lost may be of this batch
		if err := s.rewind(ctx, b, f); err != nil {
			return err
		}
		return s.insist(ctx, "reading rows set aside failed", func() error { return s.loadAsideRows(ctx, b.number) })
	case faultRefused:
		return s.refuse(ctx, b, f)
	default: // ahead, foreign
		// A former owner that comes back finds the same: then there is nothing to be alarmed at.
		err := s.insist(ctx, "publishing failed, and is tried again", func() error { return s.checkLease(ctx) })
		if err != nil {
			return err
		}
		if f.kind == faultAhead {
			if done, err := s.wasPublished(ctx, b, at, f.target); done || err != nil {
				return err
			}
		}
		return s.halt(ctx, b, stopOf(f))
	}
}

// publishFrom publishes the batch's rows behind at.after. The calls of a page are made while the page before is on its way.
func (s *shard) publishFrom(ctx context.Context, b *batch, at *progress) error {
	defer func() {
		for _, t := range s.targets { // the next attempt goes on from what is known
			t.sent = stream.Position{}
		}
	}()
	var before *flight
	err := s.eachPage(ctx, b, at.after, func(p *page) error {
		f := &flight{page: p}
		err := s.load(ctx, b, f, at)
		landed := s.land(before, at)
		if before = nil; landed != nil {
			err = landed
		}
		if err == nil {
			err = s.launch(ctx, b, f)
		}
		if err != nil {
			p.free()
			return err
		}
		before = f
		return nil
	})
	if landed := s.land(before, at); landed != nil {
		return landed
	}
	return err
}

// eachPage is the relay's, for this shard. As long as it takes it has a connection: not more than a part of the
// shards read at a time.
func (s *shard) eachPage(ctx context.Context, b *batch, after int64, fn func(*page) error) error {
	release, err := s.relay.readers.acquire(ctx, s.relay.countOwned)
	if err != nil {
		return err
	}
	defer release()
	return s.relay.eachPage(ctx, s.number, b, after, fn)
}

// flight is a page that is brought to its streams, in one pipeline. Its memory is in use until it has landed.
type flight struct {
	page  *page
	calls []*call
	sent  chan error
}

// load makes the calls for a page's rows. A call names the row that must be in the stream already, which makes one that
// was lost on the way visible to the next.
func (s *shard) load(ctx context.Context, b *batch, f *flight, at *progress) error {
	s.dropPending()
	defer func() {
		for _, c := range f.calls {
			c.target.open = nil
		}
	}()
	for i := range f.page.rows {
		w := &f.page.rows[i]
		w.event.Sequence = stream.Position{Batch: b.number, Row: w.id}
		t, err := s.place(ctx, b, w)
		if err != nil {
			return err
		}
		pos := w.event.Sequence
		if t == nil || at.only != nil && !at.only[t] || pos.Compare(t.known) <= 0 {
			continue
		}
		if at.only == nil {
			s.touch(t)
		}
		if t.open == nil && pos.Compare(t.held) <= 0 { // it is there, since before this attempt
			t.known = pos
			continue
		}
		c := t.open
		if c == nil || c.full() {
			c = newCall(s.relay.system, b, t)
			f.calls = append(f.calls, c)
		}
		c.add(w)
	}
	return nil
}

// launch sends a flight's calls, and before them what goes aside.
func (s *shard) launch(ctx context.Context, b *batch, f *flight) error {
	if !s.lease.held() {
		return errLeaseLost
	}
	if err := s.writeAside(ctx, b); err != nil {
		return err
	}
	f.sent = make(chan error, 1)
	go func() { f.sent <- s.relay.exec(ctx, f.calls) }() // land waits for it
	return nil
}

// later returns the one that is behind the other.
func later(a, b stream.Position) stream.Position {
	if a.Compare(b) < 0 {
		return b
	}
	return a
}

// touch notes that the batch in hand has rows of the stream.
func (s *shard) touch(t *target) {
	if !t.touched {
		t.touched = true
		s.touched = append(s.touched, t)
	}
}

// land waits for a flight, if there is one, and takes in the replies. Of a stream's failures only the first says
// something: the later calls lack what it should have added.
func (s *shard) land(f *flight, at *progress) error {
	if f == nil {
		return nil
	}
	defer f.page.free()
	if err := <-f.sent; err != nil {
		return err
	}
	var worst *fault
	broken := map[*target]bool{}
	for _, c := range f.calls {
		if broken[c.target] {
			continue
		}
		out := c.outcome()
		if out == nil {
			c.target.known = later(c.target.known, c.last)
			at.rows += int64(len(c.ids))
			at.bytes += int64(c.size)
			continue
		}
		if broken[c.target] = true; out.kind == faultRefused {
			out.row = f.page.behind(c, c.target.held)
		}
		if worst == nil || out.kind > worst.kind {
			worst = out
		}
	}
	if worst != nil {
		return worst
	}
	at.after = f.page.rows[len(f.page.rows)-1].id
	return nil
}
