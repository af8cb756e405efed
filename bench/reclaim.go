package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

// observer is a function that observes.
type observer func(context.Context, consumergroup.Observation)

func (f observer) Observe(ctx context.Context, o consumergroup.Observation) { f(ctx, o) }

// What a consumer that died had in hand.
const reclaimEntries = 100_000

// abandoned returns a topic whose group g has n entries pending with a dead consumer.
func (e *env) abandoned(ctx context.Context, n int) (stream.Topic, error) {
	topic := e.topic()
	key := topic.StreamKey(0)
	for from := 0; from < n; from += batchSize {
		if err := handPublishBatch(ctx, e.rdb, key, e.events[from:from+batchSize]); err != nil {
			return topic, err
		}
	}
	if err := e.rdb.XGroupCreate(ctx, key, "g", "0").Err(); err != nil {
		return topic, err
	}
	for taken := 0; taken < n; taken += batchSize {
		args := &redis.XReadGroupArgs{Group: "g", Consumer: "dead", Streams: []string{key, ">"}, Count: batchSize}
		if err := e.rdb.XReadGroup(ctx, args).Err(); err != nil {
			return topic, err
		}
	}
	return topic, nil
}

// handReclaim takes them over with XAUTOCLAIM.
func handReclaim(ctx context.Context, e *env) (float64, error) {
	n := e.n(reclaimEntries)
	topic, err := e.abandoned(ctx, n)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	taken := 0
	for cursor := "0-0"; ; {
		var entries []redis.XMessage
		entries, cursor, err = e.rdb.XAutoClaim(ctx, &redis.XAutoClaimArgs{
			Stream: topic.StreamKey(0), Group: "g", Consumer: "alive", Start: cursor, Count: 100,
		}).Result()
		if err != nil {
			return 0, err
		}
		if taken += len(entries); cursor == "0-0" {
			break
		}
	}
	if taken != n {
		return 0, fmt.Errorf("%d of %d entries taken over", taken, n)
	}
	return rate(n, began), nil
}

// ourReclaim has the reclaimer's upkeep move them to the retry stream. The time counts from
// the first: before that it makes sure that the dead are dead.
func ourReclaim(ctx context.Context, e *env) (float64, error) {
	n := e.n(reclaimEntries)
	topic, err := e.abandoned(ctx, n)
	if err != nil {
		return 0, err
	}
	var moved atomic.Int64
	var first, last time.Time // written by the one sweep, read after it
	all := make(chan struct{})
	upkeep, err := consumergroup.NewUpkeep(e.rdb, consumergroup.UpkeepConfig{
		Targets: func(context.Context) ([]consumergroup.Target, error) {
			return []consumergroup.Target{{Topic: topic, Group: stream.Group{Name: "g", Kind: stream.GroupWork, MinIdleMs: 500, MaxDeliveries: 20}}}, nil
		},
		Logger: slog.New(slog.DiscardHandler),
		Observer: observer(func(_ context.Context, o consumergroup.Observation) {
			if o.Moment != consumergroup.Reclaimed {
				return
			}
			switch moved.Add(1) {
			case 1:
				first = time.Now()
			case int64(n):
				last = time.Now()
				close(all)
			}
		}),
	})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		upkeep.Run(ctx)
	}()
	select {
	case <-all:
	case <-time.After(5 * time.Minute):
		return 0, fmt.Errorf("%d of %d entries moved in 5 minutes", moved.Load(), n)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	cancel()
	<-ended
	return float64(n) / last.Sub(first).Seconds(), nil
}
