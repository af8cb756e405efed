package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/stream"
)

// The peers do the same as we do, in the way that their documentation shows first. They are
// slower by much, so that they do a tenth of it.
const peerShare = 10

// ownClient returns a client that a peer may close.
func (e *env) ownClient() (*redis.Client, error) {
	opts, err := redis.ParseURL(e.url)
	if err != nil {
		return nil, err
	}
	return redis.NewClient(opts), nil
}

// watermillMessage is an event as a watermill user writes it: what is no payload is metadata.
func watermillMessage(e *stream.Event) *message.Message {
	m := message.NewMessage(e.ID, e.Data)
	for name, value := range map[string]string{
		"type": e.Type, "source": e.Source, "subject": e.Key, "time": e.Time.Format(time.RFC3339Nano),
		"datacontenttype": e.ContentType, "correlationid": e.CorrelationID, "causationid": e.CausationID,
	} {
		m.Metadata.Set(name, value)
	}
	return m
}

func (e *env) watermillPublisher() (*redisstream.Publisher, error) {
	rdb, err := e.ownClient()
	if err != nil {
		return nil, err
	}
	return redisstream.NewPublisher(redisstream.PublisherConfig{Client: rdb}, nil)
}

// watermillPublish publishes batches, which watermill sends one by one.
func watermillPublish(_ context.Context, e *env) (float64, error) {
	p, err := e.watermillPublisher()
	if err != nil {
		return 0, err
	}
	key, n := e.topic().StreamKey(0), e.n(batchEvents/peerShare)
	began := time.Now()
	for from := 0; from < n; from += batchSize {
		messages := make([]*message.Message, batchSize)
		for i := range messages {
			messages[i] = watermillMessage(&e.events[from+i])
		}
		if err := p.Publish(key, messages...); err != nil {
			return 0, errors.Join(err, p.Close())
		}
	}
	return rate(n, began), p.Close()
}

func watermillConcurrent(ctx context.Context, e *env) (float64, error) {
	p, err := e.watermillPublisher()
	if err != nil {
		return 0, err
	}
	key := e.topic().StreamKey(0)
	v, err := concurrently(ctx, e.events[:e.n(batchEvents/peerShare)], func(_ context.Context, event stream.Event) error {
		return p.Publish(key, watermillMessage(&event))
	})
	return v, errors.Join(err, p.Close())
}

func watermillConsume(ctx context.Context, e *env) (float64, error) {
	key, n := e.topic().StreamKey(0), e.n(batchEvents/peerShare)
	if err := e.watermillFill(ctx, key, n); err != nil {
		return 0, err
	}
	rdb, err := e.ownClient()
	if err != nil {
		return 0, err
	}
	sub, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{
		Client: rdb, ConsumerGroup: "g", OldestId: "0", DisableIndefiniteInitialBlock: true,
	}, nil)
	if err != nil {
		return 0, errors.Join(err, rdb.Close())
	}
	began := time.Now()
	messages, err := sub.Subscribe(ctx, key)
	for done := 0; err == nil && done < n; done++ {
		select {
		case m, open := <-messages:
			if !open {
				return 0, errors.New("watermill's subscription ended")
			}
			m.Ack()
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil {
		err = e.acked(ctx, key)
	}
	return rate(n, began), errors.Join(err, sub.Close())
}

func (e *env) watermillFill(ctx context.Context, key string, n int) error {
	for from := 0; from < n; from += batchSize {
		pipe := e.rdb.Pipeline()
		for i := range batchSize {
			values, err := redisstream.DefaultMarshallerUnmarshaller{}.Marshal(key, watermillMessage(&e.events[from+i]))
			if err != nil {
				return err
			}
			pipe.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: values})
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// asynqConsume runs tasks that were enqueued before.
func asynqConsume(ctx context.Context, e *env) (float64, error) {
	n := e.n(batchEvents / peerShare)
	rdb, err := e.ownClient()
	if err != nil {
		return 0, err
	}
	defer func() { _ = rdb.Close() }() // asynq does not
	client := asynq.NewClientFromRedisClient(rdb)
	_, err = concurrently(ctx, e.events[:n], func(ctx context.Context, event stream.Event) error {
		_, err := client.EnqueueContext(ctx, asynq.NewTask(event.Type, event.Data), asynq.TaskID(event.ID))
		return err
	})
	if err != nil {
		return 0, err
	}
	var handled atomic.Int64
	all := make(chan struct{})
	server := asynq.NewServerFromRedisClient(rdb, asynq.Config{Concurrency: goroutines, LogLevel: asynq.FatalLevel})
	began := time.Now()
	err = server.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		if handled.Add(1) == int64(n) {
			close(all)
		}
		return nil
	}))
	if err != nil {
		return 0, err
	}
	defer server.Shutdown()
	select {
	case <-all:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	for { // what was handled is taken out of the list of active tasks afterwards
		active, err := rdb.LLen(ctx, "asynq:{default}:active").Result()
		if err != nil {
			return 0, err
		}
		if active == 0 {
			return rate(n, began), nil
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return 0, err
		}
	}
}
