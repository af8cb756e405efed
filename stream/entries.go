package stream

import (
	"context"
	"iter"
	"slices"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// Entries returns the entries as one sequence: those that are there, and with Follow those
// that come; then it waits also while Redis is away. Any other error ends it; after it the
// marks stand behind the last entry that was yielded, so that ranging over Entries again goes
// on from there. Without Follow it ends with what was there when it began. It ends with ctx,
// whose error is yielded.
//
//	for entry, err := range reader.Entries(ctx) {
//		if err != nil {
//			return err
//		}
//		…
//	}
func (r *Reader) Entries(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := r.setEnds(ctx); err != nil {
			yield(Entry{}, err)
			return
		}
		read := r.readOn
		if r.config.ByTime && len(r.tracks) > 1 {
			read = r.readMerged
		}
		for {
			more, err := read(ctx, yield)
			switch {
			case err != nil && r.config.Follow && redisx.IsUnavailable(err) && redisx.Pause(ctx, reconnectPause):
			case err != nil:
				yield(Entry{}, err)
				return
			case !more:
				return
			}
		}
	}
}

// reconnectPause is how long a Reader that follows waits for a Redis that is away.
const reconnectPause = 200 * time.Millisecond

// setEnds notes where the partitions end now.
func (r *Reader) setEnds(ctx context.Context) error {
	if r.config.Follow {
		return nil
	}
	for _, t := range r.tracks {
		t.count = 1
	}
	pages, err := r.pages(ctx, r.tracks)
	if err != nil {
		return err
	}
	for i, t := range r.tracks {
		if t.end = pages[i].history.last; pages[i].history.length == 0 && !pages[i].stored {
			t.end = t.mark.ID // nothing is left of what it was given
		}
	}
	return nil
}

// atEnd reports whether a partition was read to where it ended when Entries began.
func (r *Reader) atEnd(t *track) bool {
	return !r.config.Follow && t.mark.ID.Compare(t.end) >= 0 && !t.archive
}

// readOn reads once and yields what it found. It reports whether there may be more.
func (r *Reader) readOn(ctx context.Context, yield func(Entry, error) bool) (more bool, err error) {
	var open []*track
	for _, t := range r.tracks {
		if !r.atEnd(t) {
			open = append(open, t)
		}
	}
	if len(open) == 0 {
		return false, nil
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	pages, err := r.pages(ctx, open)
	if err != nil {
		return false, err
	}
	found := false
	for i, t := range open {
		p := &pages[i]
		found = found || len(p.entries) > 0
		t.begin(p)
		for k := range p.entries {
			if !r.config.Follow && p.entries[k].ID.Compare(t.end) > 0 {
				break
			}
			t.mark = t.mark.behind(p.entries[k : k+1])
			r.config.Topic.AdoptEntry(&p.entries[k], "")
			if !yield(p.entries[k], nil) {
				return false, nil
			}
		}
		if len(p.entries) == 0 && !r.config.Follow {
			t.end = t.mark.ID // the entry at the end was deleted meanwhile
		}
	}
	if !found && r.config.Follow {
		return true, r.wait(ctx)
	}
	return true, nil
}

// mergePause is how long a merged read at the end sleeps before it looks again.
const mergePause = 20 * time.Millisecond

// readMerged reads a page of each partition and yields, by time, what no entry can come
// before any more: what lies before the least of the ends of full pages, and before the
// server's clock at the read.
func (r *Reader) readMerged(ctx context.Context, yield func(Entry, error) bool) (more bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	pages, err := r.pages(ctx, r.tracks)
	if err != nil {
		return false, err
	}
	safe := ID{Ms: ^uint64(0), Seq: ^uint64(0)}
	limit := func(id ID) {
		if id.Compare(safe) < 0 {
			safe = id
		}
	}
	type item struct{ track, entry int }
	var items []item
	for i, t := range r.tracks {
		p := &pages[i]
		t.begin(p)
		if p.full {
			limit(p.entries[len(p.entries)-1].ID.Next())
		} else if r.config.Follow {
			limit(ID{Ms: uint64(max(p.now, 0))})
		}
		for k := range p.entries {
			if r.config.Follow || p.entries[k].ID.Compare(t.end) <= 0 {
				items = append(items, item{i, k})
			}
		}
	}
	slices.SortStableFunc(items, func(a, b item) int {
		return pages[a.track].entries[a.entry].ID.Compare(pages[b.track].entries[b.entry].ID)
	})
	yielded := 0
	for _, it := range items {
		p := &pages[it.track]
		en := &p.entries[it.entry]
		if en.ID.Compare(safe) >= 0 {
			break
		}
		yielded++
		t := r.tracks[it.track]
		t.mark = t.mark.behind(p.entries[it.entry : it.entry+1])
		r.config.Topic.AdoptEntry(en, "")
		if !yield(*en, nil) {
			return false, nil
		}
	}
	if yielded > 0 {
		return true, nil
	}
	if !r.config.Follow {
		return len(items) > 0, nil
	}
	redisx.Pause(ctx, mergePause)
	return true, ctx.Err()
}
