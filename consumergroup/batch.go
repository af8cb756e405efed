package consumergroup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Item is an event of a batch.
type Item struct {
	Event    stream.Event
	Metadata Metadata
}

// BatchConfig configures a handler made by Batch.
type BatchConfig struct {
	// Size is how many events a batch has at the most. Required, 1 to 4,096. Each event of a
	// batch takes one of the consumer's workers, so that batches are no larger than
	// Concurrency; and in an ordered group a batch has at most one event of a key.
	Size int
	// Wait is how long the first event of a batch waits for more. Default 10 ms. Longer makes
	// larger batches of a thin stream, and each event later by as much.
	Wait time.Duration
	// Handle handles a batch and returns the outcome of each item, in their order, as a
	// Handler would. A result of another length fails all of them; nil is success for all.
	// Its context is that of the first event: it ends with that one's HandlerTimeout. Required.
	Handle func(ctx context.Context, items []Item) []error
}

// Batch returns a handler that gathers events which come at the same time and handles them
// together: one statement for many rows. Each is acked, retried or dead-lettered by itself.
func Batch(cfg BatchConfig) (Handler, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if cfg.Size < 1 || cfg.Size > maxConcurrency {
		fault("Size %d must be 1 to %d", cfg.Size, maxConcurrency)
	}
	if cfg.Wait < 0 {
		fault("Wait %s is negative", cfg.Wait)
	}
	if cfg.Handle == nil {
		fault("Handle is nil")
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("consumergroup: %w batch: %w", ErrInvalid, errors.Join(faults...))
	}
	if cfg.Wait == 0 {
		cfg.Wait = 10 * time.Millisecond
	}
	return &batcher{cfg: cfg}, nil
}

type batcher struct {
	cfg BatchConfig

	mu   sync.Mutex
	open *gathering // takes more, or nil
}

// gathering is a batch on its way. Its first event's worker leads: it waits, and handles it.
type gathering struct {
	items   []Item
	full    chan struct{}
	done    chan struct{}
	results []error
}

// Handle joins the batch that gathers, or begins one.
func (b *batcher) Handle(ctx context.Context, e stream.Event) error {
	m, _ := MetadataFrom(ctx)
	b.mu.Lock()
	g, place := b.open, 0
	if g == nil {
		g = &gathering{full: make(chan struct{}), done: make(chan struct{})}
		b.open = g
	}
	place = len(g.items)
	g.items = append(g.items, Item{e, m})
	if len(g.items) == b.cfg.Size {
		b.open = nil
		close(g.full)
	}
	b.mu.Unlock()
	if place == 0 {
		b.lead(ctx, g)
	}
	<-g.done // the leader's handler heeds its context, or this one is as late as it
	return g.results[place]
}

func (b *batcher) lead(ctx context.Context, g *gathering) {
	timer := time.NewTimer(b.cfg.Wait)
	select {
	case <-g.full:
	case <-timer.C:
	case <-ctx.Done():
	}
	timer.Stop()
	b.mu.Lock()
	if b.open == g {
		b.open = nil
	}
	b.mu.Unlock()
	g.results = make([]error, len(g.items))
	defer close(g.done)
	failed := errors.New("consumergroup: the batch's handler panicked")
	for i := range g.results {
		g.results[i] = failed // unless it returns
	}
	results := b.cfg.Handle(ctx, g.items)
	if results != nil && len(results) != len(g.items) {
		failed = fmt.Errorf("consumergroup: %w result of a batch: %d outcomes of %d items", ErrInvalid, len(results), len(g.items))
		for i := range g.results {
			g.results[i] = failed
		}
		return
	}
	clear(g.results)
	copy(g.results, results)
}
