package consumergroup

import (
	"context"
	"sync"
)

// lines makes the deliveries of one key wait for each other, in one process.
type lines struct {
	mu      sync.Mutex
	waits   map[string][]*delivery // by key that is being handled
	waiting int
}

// full reports whether so many deliveries wait for others of their keys that nothing more is to
// be read.
func (l *lines) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting >= maxRead
}

// enter reports whether a delivery may go to a worker now. If not it waits in the line of
// its key.
func (l *lines) enter(d *delivery) bool {
	key := d.entry.Event.Key
	if key == "" {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	waits, busy := l.waits[key]
	if busy {
		waits = append(waits, d)
		l.waiting++
	}
	l.waits[key] = waits
	return !busy
}

// next returns the next delivery of the key, or nil: then the key is free.
func (l *lines) next(key string) *delivery {
	if key == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	waits := l.waits[key]
	if len(waits) == 0 {
		delete(l.waits, key)
		return nil
	}
	l.waits[key] = waits[1:]
	l.waiting--
	return waits[0]
}

// handleLine handles a delivery and then those of its key that came meanwhile.
func (c *Consumer) handleLine(workCtx, endCtx context.Context, d *delivery) {
	key := d.entry.Event.Key // d has no event any more when it is settled
	for d != nil && !c.stopped() {
		c.handleFree(workCtx, endCtx, d)
		d = c.lines.next(key)
	}
}
