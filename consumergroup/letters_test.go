package consumergroup_test

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/stream"
)

// buffer is a bytes.Buffer for a log and a test.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) contains(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Contains(b.b.Bytes(), []byte(s))
}

func TestConsumerKeepsLettersWithinTheirBoundsAndSaysSo(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	queue, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	for range 5 {
		require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.keys(1).Dead, Values: []string{"sk-reason", "manual"}}).Err())
	}
	idle := consumergroup.HandlerFunc(func(context.Context, stream.Event) error { return nil })
	consumer := func(letters dlq.Retention) *buffer {
		var log buffer
		cfg := f.config(idle)
		cfg.Letters, cfg.Logger = letters, slog.New(slog.NewTextHandler(&log, nil))
		f.run(cfg)
		return &log
	}
	log := consumer(dlq.Retention{MaxLen: 3})
	require.Eventually(t, func() bool { return log.contains("more dead letters than MaxLen") }, patience, 10*time.Millisecond)
	n, err := queue.Count(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 5, n, "none goes unless it is to")

	log = consumer(dlq.Retention{MaxLen: 3, OnFull: dlq.FullDiscard})
	require.Eventually(t, func() bool { return log.contains("dead letters were discarded") }, patience, 10*time.Millisecond)
	n, err = queue.Count(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 3, n)
	_, err = consumergroup.New(f.rdb, consumergroup.Config{
		Topics: []stream.Topic{f.topic}, Group: "billing", Handler: idle, Letters: dlq.Retention{MaxLen: -1},
	})
	require.ErrorContains(t, err, "MaxLen -1")
}
