package stream_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// What publishing and reading allocate for an event does not grow with the batch. Not parallel: the
// runtime counts what everybody allocates.
func TestAllocationsOfAnEventDoNotGrowWithTheBatch(t *testing.T) {
	rdb := testenv.Redis(t)
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	perEvent := func(n int) (publish, read float64) {
		topic := stream.Topic{Name: "allocations", Namespace: testenv.Namespace(t)}
		events := make([]stream.Event, n)
		for i := range events {
			events[i] = orderPlaced.Event("k", order{ID: "o-1", Lines: make([]line, 20)})
		}
		publish = testing.AllocsPerRun(20, func() {
			_, err := p.PublishBatch(t.Context(), topic, events)
			require.NoError(t, err)
		})
		r, err := stream.NewReader(rdb, stream.ReaderConfig{Topic: topic, Count: n})
		require.NoError(t, err)
		read = testing.AllocsPerRun(20, func() {
			entries, err := r.Read(t.Context())
			require.NoError(t, err)
			require.Len(t, entries, n)
		})
		return publish / float64(n), read / float64(n)
	}
	publish, read := perEvent(50)
	publishMany, readMany := perEvent(500)
	t.Logf("publish %.1f and %.1f, read %.1f and %.1f allocations an event in batches of 50 and 500", publish, publishMany, read, readMany)
	require.LessOrEqual(t, publishMany, publish)
	require.LessOrEqual(t, readMany, read)
}
