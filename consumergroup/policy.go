package consumergroup

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Policy is a group's retry policy: exponential backoff with full jitter, after
// "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
type Policy struct {
	// MaxAttempts is how often a handler runs for an event before it goes to the dead
	// letters. Default 10.
	MaxAttempts int
	// MinBackoff bounds the delay before the second attempt; the bound doubles with each
	// further one, up to MaxBackoff, and the delay is drawn evenly from zero to the bound.
	// Defaults 1 second and 5 minutes.
	MinBackoff, MaxBackoff time.Duration
}

func (p Policy) withDefaults() Policy {
	if p.MaxAttempts == 0 {
		p.MaxAttempts = 10
	}
	if p.MinBackoff == 0 {
		p.MinBackoff = time.Second
	}
	if p.MaxBackoff == 0 {
		p.MaxBackoff = max(5*time.Minute, p.MinBackoff)
	}
	return p
}

func (p Policy) validate() error {
	var faults []error
	if p.MaxAttempts < 1 {
		faults = append(faults, fmt.Errorf("Retry.MaxAttempts %d must be at least 1", p.MaxAttempts))
	}
	if p.MinBackoff < 0 {
		faults = append(faults, fmt.Errorf("Retry.MinBackoff %s is negative", p.MinBackoff))
	}
	if p.MaxBackoff < p.MinBackoff {
		faults = append(faults, fmt.Errorf("Retry.MaxBackoff %s is below MinBackoff %s", p.MaxBackoff, p.MinBackoff))
	}
	return errors.Join(faults...)
}

// Bound returns the longest delay after a number of attempts.
func (p Policy) bound(attempts int) time.Duration {
	bound := p.MinBackoff
	for i := 1; i < attempts && bound < p.MaxBackoff; i++ {
		bound *= 2
	}
	return min(bound, p.MaxBackoff)
}

// delay draws the delay after a number of attempts; an error may name another.
func (p Policy) delay(attempts int, err error) time.Duration {
	var after retryAfterError
	if errors.As(err, &after) {
		return after.delay
	}
	return rand.N(p.bound(attempts) + 1)
}
