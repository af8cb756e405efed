package pel

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// Reach watches since when servers have been within reach without a gap: a failed look, a
// look that came late because this process did not run, a server that started anew or is
// loading, another server in its place, and a refused write (Lost) each start the time over.
type Reach struct {
	rdb   redis.UniversalClient
	every time.Duration

	mu     sync.Mutex
	looked map[string]*contact // by a key that the server holds
}

type contact struct {
	runID string
	since time.Time // the start of the time without a gap
	last  time.Time // the latest successful look
}

// NewReach returns a watch that is looked after every so often; a gap of more than three
// times that counts as one.
func NewReach(rdb redis.UniversalClient, every time.Duration) *Reach {
	return &Reach{rdb: rdb, every: every, looked: map[string]*contact{}}
}

// Look asks the servers that hold the keys whether they are the same as before. The error
// says that one is out of reach; time starts over for its keys.
func (r *Reach) Look(ctx context.Context, keys ...string) error {
	type answer struct {
		server redisx.Server
		err    error
	}
	answers := map[redis.UniversalClient]answer{} // one look for each server
	var first error
	for _, key := range keys {
		node, err := redisx.NodeFor(ctx, r.rdb, key)
		a, looked := answers[node]
		if !looked && err == nil {
			a.server, a.err = redisx.Probe(ctx, node, key)
			answers[node] = a
		}
		err = errors.Join(err, a.err)
		r.note(key, a.server, err)
		if first == nil && err != nil {
			first = fmt.Errorf("pel: look at Redis: %w", err)
		}
	}
	return first
}

func (r *Reach) note(key string, server redisx.Server, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	c := r.looked[key]
	if err != nil || server.Loading {
		delete(r.looked, key)
		return
	}
	if c == nil || c.runID != server.RunID || now.Sub(c.last) > 3*r.every {
		c = &contact{runID: server.RunID, since: now}
		r.looked[key] = c
	}
	c.last = now
}

// Lost starts the time over for a key's server, which answers and refuses writes: heartbeats
// are refused too, so that everything in the hands of live consumers looks abandoned.
func (r *Reach) Lost(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.looked, key)
}

// Since returns for how long the server that holds key has been within reach without a
// gap; 0 where it is not.
func (r *Reach) Since(key string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.looked[key]
	if c == nil || time.Since(c.last) > 3*r.every {
		return 0
	}
	return time.Since(c.since)
}
