package consumergroup

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

var (
	//go:embed lua/rate.lua
	rateText   string
	rateScript = redisx.NewScript(rateText)
)

// Rate is how many events a group takes at the most, all its consumers together. Waiting
// costs no attempt and no delivery: the events stay unread, for any consumer.
type Rate struct {
	// PerSecond is the rate. Default 0: no limit. At most 1,000,000.
	PerSecond float64
	// Burst is how many events may come at once after a quiet time. Default: those of a
	// second, at least 1. A read may take more, up to one of each partition; it is paid back
	// before the next.
	Burst int
}

func (r Rate) withDefaults() Rate {
	if r.PerSecond > 0 && r.Burst == 0 {
		r.Burst = max(int(r.PerSecond), 1)
	}
	return r
}

func (r Rate) validate() error {
	var faults []error
	if !(r.PerSecond >= 0 && r.PerSecond <= 1e6) || r.PerSecond > 0 && r.PerSecond < 1e-3 {
		faults = append(faults, fmt.Errorf("Rate.PerSecond %g must be 0, or 0.001 to 1,000,000", r.PerSecond))
	}
	if r.Burst < 0 || r.Burst > 1e6 {
		faults = append(faults, fmt.Errorf("Rate.Burst %d must be 1 to 1,000,000", r.Burst))
	}
	return errors.Join(faults...)
}

// limiter reserves events before they are read.
type limiter struct {
	rdb  redis.UniversalClient
	key  string
	rate Rate
}

// reserve returns how many of the wanted events may be read. Where none may, it waits for a
// while and returns 0.
func (l *limiter) reserve(ctx context.Context, want int) (int, error) {
	if l == nil {
		return want, nil
	}
	granted, wait, err := l.call(ctx, want, false)
	if err == nil && granted == 0 {
		redisx.Pause(ctx, min(wait, maxReadBlock))
	}
	return granted, err
}

// correct books what was read beside what was reserved.
func (l *limiter) correct(ctx context.Context, more int) error {
	if l == nil || more == 0 {
		return nil
	}
	_, _, err := l.call(ctx, more, true)
	return err
}

func (l *limiter) call(ctx context.Context, n int, force bool) (granted int, wait time.Duration, err error) {
	forced := "0"
	if force {
		forced = "1"
	}
	interval := int64(1e6 / l.rate.PerSecond)
	reply, err := rateScript.Run(ctx, l.rdb, []string{l.key}, interval, l.rate.Burst, n, forced).Int64Slice()
	if err == nil && len(reply) != 2 {
		err = redisx.ErrReply
	}
	if err != nil {
		return 0, 0, fmt.Errorf("consumergroup: rate limit %s: %w", l.key, err)
	}
	return int(reply[0]), time.Duration(reply[1]) * time.Millisecond, nil
}
