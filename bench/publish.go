package main

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/stream"
)

// How much a run publishes: one at a time, and in batches.
const (
	oneEvents   = 20_000
	batchEvents = 200_000
	batchSize   = 500
	goroutines  = 64
)

func handOne(ctx context.Context, e *env) (float64, error) {
	key, n := e.topic().StreamKey(0), e.n(oneEvents)
	began := time.Now()
	for i := range n {
		if err := e.rdb.XAdd(ctx, handXAdd(key, &e.events[i])).Err(); err != nil {
			return 0, err
		}
	}
	return rate(n, began), nil
}

func ourOne(ctx context.Context, e *env) (float64, error) {
	topic, n := e.topic(), e.n(oneEvents)
	p, err := stream.NewPublisher(e.rdb, stream.PublisherConfig{})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for i := range n {
		if _, err := p.Publish(ctx, topic, e.events[i]); err != nil {
			return 0, err
		}
	}
	return rate(n, began), nil
}

// eachBatch calls fn with the events in batches.
func (e *env) eachBatch(fn func([]stream.Event) error) error {
	for from := 0; from < len(e.events); from += batchSize {
		if err := fn(e.events[from : from+batchSize]); err != nil {
			return err
		}
	}
	return nil
}

func handBatch(ctx context.Context, e *env) (float64, error) {
	key := e.topic().StreamKey(0)
	began := time.Now()
	err := e.eachBatch(func(events []stream.Event) error { return handPublishBatch(ctx, e.rdb, key, events) })
	return rate(len(e.events), began), err
}

func ourBatch(ctx context.Context, e *env) (float64, error) { return e.publishBatches(ctx, e.topic()) }

func ourBatchDedup(ctx context.Context, e *env) (float64, error) {
	topic := e.topic()
	topic.Dedup = 10 * time.Minute
	return e.publishBatches(ctx, topic)
}

func (e *env) publishBatches(ctx context.Context, topic stream.Topic) (float64, error) {
	p, err := stream.NewPublisher(e.rdb, stream.PublisherConfig{})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = e.eachBatch(func(events []stream.Event) error {
		_, err := p.PublishBatch(ctx, topic, events)
		return err
	})
	return rate(len(e.events), began), err
}

// ourConcurrent publishes one event at a time from many goroutines, which share pipelines.
func ourConcurrent(ctx context.Context, e *env) (float64, error) {
	topic := e.topic()
	p, err := stream.NewPublisher(e.rdb, stream.PublisherConfig{})
	if err != nil {
		return 0, err
	}
	batcher, err := stream.NewBatcher(p, stream.BatcherConfig{})
	if err != nil {
		return 0, err
	}
	return concurrently(ctx, e.events, func(ctx context.Context, event stream.Event) error {
		_, err := batcher.Publish(ctx, topic, event)
		return err
	})
}

// concurrently has goroutines publish the events, each its share, one after the other.
func concurrently(ctx context.Context, events []stream.Event, publish func(context.Context, stream.Event) error) (float64, error) {
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for g := range goroutines {
		group.Go(func() error {
			for i := g; i < len(events); i += goroutines {
				if err := publish(ctx, events[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	return rate(len(events), began), err
}
