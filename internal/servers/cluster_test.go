package servers_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

func TestClusterServesEverySlotFromTheStart(t *testing.T) {
	t.Parallel()
	cluster := testenv.Cluster(t)
	require.Len(t, cluster.Addrs(), 3)
	for _, addr := range cluster.Addrs() { // whichever node a client asks first
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}})
		for i := range 50 {
			require.NoError(t, rdb.Set(t.Context(), strconv.Itoa(i), i, 0).Err())
		}
		require.NoError(t, rdb.Close())
	}
}

func TestKilledClusterNodeComesBackWithItsSlotsAndData(t *testing.T) {
	t.Parallel()
	cluster := testenv.Cluster(t)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer rdb.Close()
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	for _, node := range cluster.Nodes() {
		require.NoError(t, node.Stop())
		require.NoError(t, node.Start(t.Context()))
	}
	require.Eventually(t, func() bool { return rdb.Get(t.Context(), "k").Val() == "v" }, 30*time.Second, 50*time.Millisecond)
}

func TestClusterOfANegativeNumberIsRefused(t *testing.T) {
	_, err := servers.StartCluster(t.Context(), -1)
	require.ErrorContains(t, err, "-1")
}
