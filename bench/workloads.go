package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

const (
	streamkeel  = "streamkeel"
	handwritten = "handwritten"
	batchSize   = 500
)

func workloads() []workload {
	return []workload{
		{"publish-one", "events/s", handwritten, 0, []system{{handwritten, handOne}, {streamkeel, ourOne}}},
		{"publish-batch", "events/s", handwritten, 127_000, []system{{handwritten, handBatch}, {streamkeel, ourBatch}}},
		{"read", "events/s", handwritten, 0, []system{{handwritten, handReadAll}, {streamkeel, ourReadAll}}},
		{"consume", "events/s", handwritten, 140_000, []system{{handwritten, handConsumeAll}, {streamkeel, ourConsumeAll}}},
	}
}

const (
	oneEvents   = 20_000
	batchEvents = 200_000
)

func handOne(ctx context.Context, e *env) (float64, error) {
	key := e.topic().StreamKey(0)
	began := time.Now()
	for i := range oneEvents {
		if err := e.rdb.XAdd(ctx, handXAdd(key, &e.events[i%len(e.events)])).Err(); err != nil {
			return 0, err
		}
	}
	return rate(oneEvents, began), nil
}

func ourOne(ctx context.Context, e *env) (float64, error) {
	topic := e.topic()
	p, err := stream.NewPublisher(e.rdb, stream.PublisherConfig{})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for i := range oneEvents {
		if _, err := p.Publish(ctx, topic, e.events[i%len(e.events)]); err != nil {
			return 0, err
		}
	}
	return rate(oneEvents, began), nil
}

// eachBatch calls fn with batches of events, batchEvents in all.
func (e *env) eachBatch(fn func([]stream.Event) error) error {
	for n := 0; n < batchEvents; n += batchSize {
		from := n % len(e.events)
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
	return rate(batchEvents, began), err
}

func ourBatch(ctx context.Context, e *env) (float64, error) {
	topic := e.topic()
	p, err := stream.NewPublisher(e.rdb, stream.PublisherConfig{})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = e.eachBatch(func(events []stream.Event) error {
		_, err := p.PublishBatch(ctx, topic, events)
		return err
	})
	return rate(batchEvents, began), err
}

// filled returns a topic with batchEvents events in it.
func (e *env) filled(ctx context.Context) (stream.Topic, error) {
	topic := e.topic()
	return topic, e.eachBatch(func(events []stream.Event) error {
		return handPublishBatch(ctx, e.rdb, topic.StreamKey(0), events)
	})
}

func handReadAll(ctx context.Context, e *env) (float64, error) {
	topic, err := e.filled(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = handRead(ctx, e.rdb, topic.StreamKey(0), batchEvents)
	return rate(batchEvents, began), err
}

func ourReadAll(ctx context.Context, e *env) (float64, error) {
	topic, err := e.filled(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	r, err := stream.NewReader(e.rdb, stream.ReaderConfig{Topic: topic})
	if err != nil {
		return 0, err
	}
	for n := 0; n < batchEvents; {
		entries, err := r.Read(ctx)
		if err != nil {
			return 0, err
		}
		for i := range entries {
			if err := entries[i].Err; err != nil {
				return 0, err
			}
		}
		n += len(entries)
	}
	return rate(batchEvents, began), nil
}

func handConsumeAll(ctx context.Context, e *env) (float64, error) {
	topic, err := e.filled(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = handConsume(ctx, e.rdb, topic.StreamKey(0), batchEvents, func(handEvent) {})
	return rate(batchEvents, began), err
}

func ourConsumeAll(ctx context.Context, e *env) (float64, error) {
	topic, err := e.filled(ctx)
	if err != nil {
		return 0, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var handled atomic.Int64
	all := make(chan struct{})
	c, err := consumergroup.New(e.rdb, consumergroup.Config{
		Topics: []stream.Topic{topic}, Group: "g", Logger: slog.New(slog.DiscardHandler),
		Handler: consumergroup.HandlerFunc(func(context.Context, stream.Event) error {
			if handled.Add(1) == batchEvents {
				close(all)
			}
			return nil
		}),
	})
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	began := time.Now()
	go func() { ended <- c.Run(ctx) }()
	select {
	case <-all:
	case err := <-ended:
		return 0, err
	}
	// Acked, too: the last acks go out with the next read, or some milliseconds later.
	for {
		pending, err := e.rdb.XPending(ctx, topic.StreamKey(0), "g").Result()
		if err != nil {
			return 0, err
		}
		if pending.Count == 0 {
			break
		}
	}
	result := rate(batchEvents, began)
	stop()
	return result, <-ended
}
