package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/stream"
)

// The loops that a good engineer would write with go-redis alone, for the same nine fields.

func handXAdd(key string, e *stream.Event) *redis.XAddArgs {
	return &redis.XAddArgs{Stream: key, Values: []any{
		"id", e.ID, "type", e.Type, "source", e.Source, "subject", e.Key, "time", e.Time.Format(time.RFC3339Nano),
		"datacontenttype", e.ContentType, "correlationid", e.CorrelationID, "causationid", e.CausationID, "data", e.Data,
	}}
}

func handPublishBatch(ctx context.Context, rdb *redis.Client, key string, events []stream.Event) error {
	pipe := rdb.Pipeline()
	for i := range events {
		pipe.XAdd(ctx, handXAdd(key, &events[i]))
	}
	_, err := pipe.Exec(ctx)
	return err
}

// handEvent is what the handwritten consumer makes of an entry.
type handEvent struct {
	ID, Type, Source, Subject, ContentType, Correlation, Causation string
	Time                                                           time.Time
	Data                                                           []byte
}

func handDecode(m redis.XMessage) (handEvent, error) {
	text := func(name string) string { s, _ := m.Values[name].(string); return s }
	at, err := time.Parse(time.RFC3339Nano, text("time"))
	return handEvent{
		ID: text("id"), Type: text("type"), Source: text("source"), Subject: text("subject"), ContentType: text("datacontenttype"),
		Correlation: text("correlationid"), Causation: text("causationid"), Time: at, Data: []byte(text("data")),
	}, err
}

// handConsume reads 256 at a time, handles them, and acks each batch with one XACK.
func handConsume(ctx context.Context, rdb *redis.Client, key string, total int, handle func(handEvent)) error {
	if err := rdb.XGroupCreateMkStream(ctx, key, "g", "0").Err(); err != nil {
		return err
	}
	for done := 0; done < total; {
		streams, err := rdb.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{key, ">"}, Count: 256, Block: time.Second}).Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return err
		}
		ids := make([]string, 0, 256)
		for _, m := range streams[0].Messages {
			e, err := handDecode(m)
			if err != nil {
				return err
			}
			handle(e)
			ids = append(ids, m.ID)
		}
		if err := rdb.XAck(ctx, key, "g", ids...).Err(); err != nil {
			return err
		}
		done += len(ids)
	}
	return nil
}

// handRead reads a stream from its start.
func handRead(ctx context.Context, rdb *redis.Client, key string, total int) error {
	last, n := "0", 0
	for n < total {
		streams, err := rdb.XRead(ctx, &redis.XReadArgs{Streams: []string{key, last}, Count: 256, Block: time.Second}).Result()
		if err != nil {
			return err
		}
		for _, m := range streams[0].Messages {
			e, err := handDecode(m)
			if err != nil || e.ID == "" {
				return fmt.Errorf("entry %s: %w", m.ID, err)
			}
			last = m.ID
			n++
		}
	}
	return nil
}
