package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// faults kill what a run must survive. What they bit is remembered: a run in which one did
// not bite proves nothing.
type faults struct {
	d *Demo

	heldByVictim  int64 // deliveries in the hands of the worker that was killed
	shardsOrphand int   // shards of the relay that was killed
	takenOver     bool  // by the other one
	redisDied     bool
}

// run lets the faults come at fixed parts of the input.
func (f *faults) run(ctx context.Context) error {
	for _, at := range []struct {
		part float64
		do   func(context.Context) error
	}{
		{0.25, f.killWorker}, {0.45, f.killRelay}, {0.70, f.restartRedis},
	} {
		if err := f.until(ctx, at.part); err != nil {
			return err
		}
		if err := at.do(ctx); err != nil {
			return err
		}
	}
	return f.until(ctx, 1)
}

// until waits for a part of the input to be published.
func (f *faults) until(ctx context.Context, part float64) error {
	want := int64(part * float64(f.d.producer.all()))
	for f.d.producer.done.Load() < want {
		if err := f.d.children.ended(); err != nil {
			return err
		}
		if !redisx.Pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

// killWorker kills a worker while it has some entries in hand: 4, or 1 after a while, as on a slow machine there are few
// at any time. It is stopped first, so that what it has in hand can be counted.
func (f *faults) killWorker(ctx context.Context) error {
	for try := 0; f.d.producer.done.Load() < f.d.producer.all(); try++ {
		i, enough := try%workers, int64(max(1, 4-try/(2*workers)))
		victim := f.d.children.workers[i]
		if err := victim.Pause(); err != nil {
			return err
		}
		held, err := f.d.inHandOf(ctx, workerName(i))
		if err != nil {
			return err
		}
		if held >= enough {
			f.heldByVictim = held
			if err := victim.Kill(); err != nil {
				return err
			}
			f.d.say("SIGKILL %s, with %d deliveries in hand", workerName(i), held)
			return victim.Restart()
		}
		if err := victim.Resume(); err != nil {
			return err
		}
		if !redisx.Pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil // too late: the run is invalid
}

const countShards = `SELECT owner, count(*), sum(epoch) FROM streamkeel.relay_lease WHERE owner <> '' GROUP BY owner ORDER BY count(*) DESC, owner LIMIT 1`

// killRelay kills the relay that owns the most shards, and starts it again once the other
// one has taken them over.
func (f *faults) killRelay(ctx context.Context) error {
	if f.d.cfg.Break == BreakRelayBySeq {
		return nil
	}
	var owner string
	var epochs int64
	if err := f.d.pool.QueryRow(ctx, countShards).Scan(&owner, &f.shardsOrphand, &epochs); err != nil {
		return fmt.Errorf("demo: who owns the shards: %w", err)
	}
	for i, victim := range f.d.children.relays {
		if !strings.HasPrefix(owner, relayName(i)) {
			continue
		}
		if err := victim.Kill(); err != nil {
			return err
		}
		f.d.say("SIGKILL %s, which owns %d of the shards", relayName(i), f.shardsOrphand)
		for !f.takenOver {
			var left int
			if err := f.d.pool.QueryRow(ctx, `SELECT count(*) FROM streamkeel.relay_lease WHERE owner = $1`, owner).Scan(&left); err != nil {
				return fmt.Errorf("demo: %w", err)
			}
			if f.takenOver = left == 0; !f.takenOver && !redisx.Pause(ctx, 50*time.Millisecond) {
				return ctx.Err()
			}
		}
		return victim.Restart()
	}
	return fmt.Errorf("demo: shards are owned by %s, which is no relay of this run", owner)
}

// restartRedis kills Redis, and starts it again from its append-only file.
func (f *faults) restartRedis(ctx context.Context) error {
	if f.d.site.redis == nil {
		return nil
	}
	if err := f.d.site.redis.Kill(); err != nil {
		return err
	}
	f.redisDied = true
	f.d.say("SIGKILL Redis")
	if !redisx.Pause(ctx, time.Second) {
		return ctx.Err()
	}
	if err := f.d.site.redis.Start(ctx); err != nil {
		return err
	}
	f.d.say("Redis is back, from its append-only file")
	return nil
}
