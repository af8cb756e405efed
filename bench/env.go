package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/stream"
)

// env is the servers and the data that workloads share.
type env struct {
	rdb       *redis.Client
	url       string
	namespace string
	events    []stream.Event
	scale     float64 // of how much a run does
	topics    int
	remark    string // what a run has to say besides its figure
}

const redisVar = "STREAMKEEL_TEST_REDIS_URL"

func newEnv(ctx context.Context, scale float64) (*env, error) {
	url := os.Getenv(redisVar)
	if url == "" {
		return nil, errors.New(redisVar + " is not set: run `make bench`, which starts a server")
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", redisVar, err)
	}
	e := &env{rdb: redis.NewClient(opts), url: url, namespace: "bench-" + uuid.NewString()[:8], scale: scale}
	n, err := e.rdb.DBSize(ctx).Result()
	if err == nil && n > 0 {
		err = fmt.Errorf("it has %d keys, and is emptied after each run: name one that is empty", n)
	}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("the Redis of %s: %w", redisVar, err)
	}
	e.events = makeEvents(e.n(batchEvents))
	return e, nil
}

// n scales a number of events, to whole batches.
func (e *env) n(full int) int {
	return max(int(float64(full)*e.scale)/batchSize, 1) * batchSize
}

func (e *env) close() { _ = e.rdb.Close() }

// flush empties the server that a run has filled.
func (e *env) flush(ctx context.Context) error { return e.rdb.FlushDB(ctx).Err() }

// topic returns a new topic of one partition.
func (e *env) topic() stream.Topic {
	e.topics++
	return stream.Topic{Name: "t" + strconv.Itoa(e.topics), Namespace: e.namespace}
}

// makeEvents makes events of nine fields with a payload of 256 bytes.
func makeEvents(n int) []stream.Event {
	payload := make([]byte, 256)
	for i := range payload {
		payload[i] = byte('a' + i%26)
	}
	events := make([]stream.Event, n)
	for i := range events {
		e := stream.NewEvent("order.placed", "customer-"+strconv.Itoa(i%1000), stream.ContentTypeJSON, payload)
		e.Source, e.CorrelationID, e.CausationID = "bench", "0192d7a5-0000-7000-8000-000000000000", "0192d7a5-0000-7000-8000-000000000001"
		events[i] = e
	}
	return events
}

// rate returns how many a second.
func rate(n int, since time.Time) float64 { return float64(n) / time.Since(since).Seconds() }
