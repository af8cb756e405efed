package consumergroup

import (
	"context"
	"sync"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// breaker keeps handlers from running into the outage of something that they need. The first
// error of class Unavailable opens it: nothing is read, and no handler starts. After a pause
// one handler may try, alone. If it succeeds the breaker closes; if it fails on the same
// account the next pause is longer. No attempt is counted for any of it.
type breaker struct {
	mu      sync.Mutex
	streak  int       // pauses in a row; 0 while it is closed
	until   time.Time // the end of the pause
	probing bool      // a handler tries
}

const (
	minPause = 500 * time.Millisecond
	maxPause = 30 * time.Second
	// breakerLook is how often a handler that waits looks whether it may run.
	breakerLook = 20 * time.Millisecond
)

// open notes an outage and returns how long the pause lasts yet. What fails on the same
// outage makes it no longer: only a probe does.
func (b *breaker) open() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.streak == 0 || b.probing {
		pause := min(minPause<<min(b.streak, 10), maxPause)
		b.streak++
		b.until, b.probing = time.Now().Add(pause), false
	}
	return max(time.Until(b.until), breakerLook)
}

// enter lets a handler run: at once while the breaker is closed, and one alone after each
// pause while it is open. It reports whether that one is a probe, which leave ends. It fails
// where ctx ends first, or the consumer stops.
func (b *breaker) enter(ctx context.Context, stopped func() bool) (probe, ok bool) {
	for {
		b.mu.Lock()
		switch {
		case b.streak == 0:
			b.mu.Unlock()
			return false, true
		case !b.probing && time.Now().After(b.until):
			b.probing = true
			b.mu.Unlock()
			return true, true
		}
		b.mu.Unlock()
		if !redisx.Pause(ctx, breakerLook) || stopped() {
			return false, false
		}
	}
}

// leave ends a probe. Anything but another outage closes the breaker.
func (b *breaker) leave(probe bool) {
	if !probe {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.probing { // open would have ended it
		b.streak, b.probing = 0, false
	}
}

// closed reports whether nothing is known to be away.
func (b *breaker) closed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.streak == 0
}

// wait waits until the breaker is closed, or may be probed.
func (b *breaker) wait(ctx context.Context) bool {
	for ctx.Err() == nil {
		b.mu.Lock()
		free := b.streak == 0 || !b.probing && time.Now().After(b.until)
		b.mu.Unlock()
		if free {
			return true
		}
		redisx.Pause(ctx, breakerLook)
	}
	return false
}
