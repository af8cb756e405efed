package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

// filled returns a topic with all events in it.
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
	err = handRead(ctx, e.rdb, topic.StreamKey(0), len(e.events))
	return rate(len(e.events), began), err
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
	for n := 0; n < len(e.events); {
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
	return rate(len(e.events), began), nil
}

func handConsumeAll(ctx context.Context, e *env) (float64, error) {
	topic, err := e.filled(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = handConsume(ctx, e.rdb, topic.StreamKey(0), len(e.events), func(handEvent) {})
	return rate(len(e.events), began), err
}

func ourConsumeAll(ctx context.Context, e *env) (float64, error) {
	return ourConsume(ctx, e, consumergroup.Config{})
}

func ourConsumeOrdered(ctx context.Context, e *env) (float64, error) {
	return ourConsume(ctx, e, consumergroup.Config{Ordered: true})
}

func ourConsume(ctx context.Context, e *env, cfg consumergroup.Config) (float64, error) {
	topic, err := e.filled(ctx)
	if err != nil {
		return 0, err
	}
	var handled atomic.Int64
	all := make(chan struct{})
	stop, err := e.consumer(ctx, topic, cfg, func(stream.Event) {
		if handled.Add(1) == int64(len(e.events)) {
			close(all)
		}
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-all:
	case <-ctx.Done():
		return 0, stop()
	}
	// Acked, too: the last acks go out with the next read, or some milliseconds later.
	if err := e.acked(ctx, topic.StreamKey(0)); err != nil {
		return 0, err
	}
	result := rate(len(e.events), began)
	return result, stop()
}

// consumer runs a consumer of group g, until stop is called.
func (e *env) consumer(ctx context.Context, topic stream.Topic, cfg consumergroup.Config, handle func(stream.Event)) (stop func() error, err error) {
	cfg.Topics, cfg.Group, cfg.Logger = []stream.Topic{topic}, "g", slog.New(slog.DiscardHandler)
	cfg.Handler = consumergroup.HandlerFunc(func(_ context.Context, event stream.Event) error {
		handle(event)
		return nil
	})
	c, err := consumergroup.New(e.rdb, cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	return func() error { cancel(); return <-ended }, nil
}

// acked waits until nothing is pending in group g.
func (e *env) acked(ctx context.Context, key string) error {
	for {
		pending, err := e.rdb.XPending(ctx, key, "g").Result()
		if err != nil || pending.Count == 0 {
			return err
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
