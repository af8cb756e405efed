package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/streamkeel/streamkeel/outbox"
)

// watch knows which shards of this relay stand still.
type watch struct {
	mu      sync.Mutex
	stopped map[int]error
}

func newWatch() *watch { return &watch{stopped: map[int]error{}} }

// Observe implements outbox.Observer.
func (w *watch) Observe(_ context.Context, o outbox.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch o.Moment {
	case outbox.Stopped:
		w.stopped[o.Shard] = o.Err
	case outbox.Resumed, outbox.GivenUp, outbox.TakenOver:
		delete(w.stopped, o.Shard)
	}
}

// err returns why the daemon is not ready: which shards stand still, and why.
func (w *watch) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.stopped) == 0 {
		return nil
	}
	var reasons []string
	for _, shard := range slices.Sorted(maps.Keys(w.stopped)) {
		reasons = append(reasons, fmt.Sprintf("shard %d stands still: %v", shard, w.stopped[shard]))
	}
	return fmt.Errorf("%s", strings.Join(reasons, "; "))
}
