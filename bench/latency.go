package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

// From publishing to the handler, one event each millisecond. The first tenth warms up.
const (
	latencyEvents = 5_000
	latencyEvery  = time.Millisecond
)

// latencies measures how long events are under way, by their keys.
type latencies struct {
	mu   sync.Mutex
	sent []time.Time
	took []time.Duration
	all  chan struct{}
}

func newLatencies(n int) *latencies {
	return &latencies{sent: make([]time.Time, n), all: make(chan struct{})}
}

// publish publishes the events, each when it is its time.
func (l *latencies) publish(ctx context.Context, e *env, publish func(stream.Event) error) error {
	began := time.Now()
	for i := range l.sent {
		if err := sleep(ctx, time.Until(began.Add(time.Duration(i)*latencyEvery))); err != nil {
			return err
		}
		event := e.events[i]
		event.Key = strconv.Itoa(i)
		l.mu.Lock()
		l.sent[i] = time.Now()
		l.mu.Unlock()
		if err := publish(event); err != nil {
			return err
		}
	}
	select {
	case <-l.all:
		return nil
	case <-time.After(time.Minute):
		return errors.New("not every event arrived within a minute")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *latencies) arrived(key string) {
	now := time.Now()
	i, err := strconv.Atoi(key)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.took = append(l.took, now.Sub(l.sent[i])); len(l.took) == len(l.sent) {
		close(l.all)
	}
}

// percentile returns milliseconds.
func (l *latencies) percentile(p int) float64 {
	took := slices.Sorted(slices.Values(l.took[len(l.took)/10:]))
	return took[min(len(took)*p/100, len(took)-1)].Seconds() * 1000
}

func handLatency(p int) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		key, l := e.topic().StreamKey(0), newLatencies(e.n(latencyEvents))
		ended := make(chan error, 1)
		go func() {
			ended <- handConsume(ctx, e.rdb, key, len(l.sent), func(h handEvent) { l.arrived(h.Subject) })
		}()
		err := l.publish(ctx, e, func(event stream.Event) error { return e.rdb.XAdd(ctx, handXAdd(key, &event)).Err() })
		if err != nil {
			return 0, err
		}
		return l.percentile(p), <-ended
	}
}

func ourLatency(p int) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		topic, l := e.topic(), newLatencies(e.n(latencyEvents))
		publisher, err := stream.NewPublisher(e.rdb, stream.PublisherConfig{})
		if err != nil {
			return 0, err
		}
		stop, err := e.consumer(ctx, topic, consumergroup.Config{}, func(event stream.Event) { l.arrived(event.Key) })
		if err != nil {
			return 0, err
		}
		err = l.publish(ctx, e, func(event stream.Event) error {
			_, err := publisher.Publish(ctx, topic, event)
			return err
		})
		if err = errors.Join(err, stop()); err != nil {
			return 0, err
		}
		return l.percentile(p), nil
	}
}
