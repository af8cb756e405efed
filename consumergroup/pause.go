package consumergroup

import (
	"context"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
)

const pauseEvery = 300 * time.Millisecond

// watchPause looks whether somebody has paused the group, until ctx ends.
func (c *Consumer) watchPause(ctx context.Context) {
	keys := make([]pel.Keys, len(c.partitions))
	for i, p := range c.partitions {
		keys[i] = p.keys
	}
	for {
		paused, err := pel.Paused(ctx, c.rdb, keys...)
		switch {
		case err == nil:
			for i, p := range c.partitions {
				if p.paused.Swap(paused[i]) != paused[i] {
					c.log.Info(ctx, "group is paused or resumed", "at", p.keys.Stream, "paused", paused[i])
					if h := p.holding.Load(); h != nil {
						c.wakeIdle(h)
					}
				}
			}
		case ctx.Err() == nil:
			c.log.Error(ctx, "not known whether the group is paused", "", err)
		}
		if !redisx.Pause(ctx, jitter(pauseEvery)) {
			return
		}
	}
}
