package command

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// startSentinel starts a Sentinel that watches a master by the name main.
func startSentinel(t *testing.T, master string) (addr string) {
	t.Helper()
	program, err := servers.FindRedis()
	testenv.RequireInstalled(t, err)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr = listener.Addr().String()
	require.NoError(t, listener.Close())
	host, port, err := net.SplitHostPort(master)
	require.NoError(t, err)
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil,
		"bind 127.0.0.1\nport %d\nsentinel monitor main %s %s 1\n", listener.Addr().(*net.TCPAddr).Port, host, port), 0o600))
	cmd := exec.CommandContext(t.Context(), program, config, "--sentinel")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	client := redis.NewSentinelClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	require.Eventually(t, func() bool {
		found, err := client.GetMasterAddrByName(t.Context(), "main").Result()
		return err == nil && len(found) == 2
	}, 30*time.Second, 20*time.Millisecond)
	return addr
}

func TestSentinelIsReachedByItsForm(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	addr := startSentinel(t, server.Addr())
	for _, flags := range []RedisFlags{
		{URL: "redis+sentinel://" + addr + ",127.0.0.1:1/main"},
		{URL: "redis://" + addr + "/0", SentinelMaster: "main"},
	} {
		cfg, _, err := config(t, flags)
		require.NoError(t, err)
		require.NoError(t, CheckRedis(t.Context(), cfg, 10*time.Second))
		require.NoError(t, ping(t, cfg))
	}
	cfg, _, err := config(t, RedisFlags{URL: "redis+sentinel://" + addr + "/other"})
	require.NoError(t, err)
	require.Error(t, CheckRedis(t.Context(), cfg, 300*time.Millisecond))
}
