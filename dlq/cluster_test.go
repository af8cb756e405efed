package dlq_test

import (
	"bytes"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestEverythingStaysInTheSlotOfItsStream(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: testenv.Cluster(t).Addrs()})
	defer func() { require.NoError(t, rdb.Close()) }()
	topic := stream.Topic{Name: "orders", Partitions: 8}
	queue, err := dlq.Open(rdb, topic, "billing")
	require.NoError(t, err)
	for p := range 8 {
		e := event("k", "order.placed")
		args := e.AppendFields([]any{"xadd", stream.KeyDead.Key(topic.StreamKey(p), "billing"), "*"})
		require.NoError(t, rdb.Do(t.Context(), append(args, "sk-reason", "attempts")...).Err())
	}
	var file bytes.Buffer
	n, err := queue.Export(t.Context(), &file, dlq.Filter{})
	require.NoError(t, err)
	require.Equal(t, 8, n)
	report, err := queue.Trim(t.Context(), dlq.Retention{MaxLen: 1, OnFull: dlq.FullDiscard, MaxAge: 1 << 50})
	require.NoError(t, err)
	require.EqualValues(t, 8, report.Letters)
	sum, err := queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.NoError(t, err)
	require.Equal(t, dlq.Redriven{Done: 8}, sum)
	imported, err := queue.Import(t.Context(), &file, dlq.Import{})
	require.NoError(t, err)
	require.Equal(t, dlq.Imported{Added: 8}, imported)
}
