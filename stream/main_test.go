package stream_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func topicOf(t testing.TB, partitions int) stream.Topic {
	t.Helper()
	return stream.Topic{Name: "orders", Namespace: testenv.Namespace(t), Partitions: partitions}
}

func clusterClient(t testing.TB) *redis.ClusterClient {
	t.Helper()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: testenv.Cluster(t).Addrs()})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

type order struct {
	ID    string `json:"id"`
	Cents int64  `json:"cents"`
	Lines []line `json:"lines"`
}

type line struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

var orderPlaced = stream.Define[order]("order.placed")
