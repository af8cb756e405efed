package servers_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestRedisKeepsAddressAndAppendedDataAcrossKillAndStart(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{AppendOnly: true, Settings: map[string]string{"appendfsync": "always"}})
	rdb := client(t, server)
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	addr, url, pid := server.Addr(), server.URL(), server.Pid()

	require.NoError(t, server.Kill())
	require.Zero(t, server.Pid())
	require.Error(t, rdb.Ping(t.Context()).Err())

	require.NoError(t, server.Start(t.Context()))
	require.Equal(t, addr, server.Addr())
	require.Equal(t, url, server.URL())
	require.NotEqual(t, pid, server.Pid())
	require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())

	require.NoError(t, server.Stop())
	require.NoError(t, server.Start(t.Context()))
	require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())
}

func TestRedisWithoutAppendOnlyStartsEmpty(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	rdb := client(t, server)
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, server.Stop())
	require.NoError(t, server.Start(t.Context()))
	require.Zero(t, rdb.DBSize(t.Context()).Val())
}

func TestStartWaitsUntilRedisHasLoadedItsData(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := testenv.PrivateRedis(t, servers.RedisConfig{Dir: dir, AppendOnly: true})
	rdb := client(t, first)
	const keys = 2000
	_, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for i := range keys {
			p.Set(t.Context(), strconv.Itoa(i), "", 0)
		}
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, first.Stop())
	require.NoError(t, first.Close())

	// 2,000 keys at 0.2 ms each: it answers LOADING for a while.
	second := testenv.PrivateRedis(t, servers.RedisConfig{Dir: dir, AppendOnly: true, Settings: map[string]string{
		"key-load-delay": "200", "loading-process-events-interval-bytes": "1024",
	}})
	size, err := client(t, second).DBSize(t.Context()).Result()
	require.NoError(t, err)
	require.EqualValues(t, keys, size)
}

func TestPausedRedisAnswersNothingUntilResumed(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	rdb := client(t, server, func(o *redis.Options) { o.MaxRetries, o.ReadTimeout = -1, 100*time.Millisecond })
	require.NoError(t, rdb.Ping(t.Context()).Err())
	require.NoError(t, server.Pause())
	require.ErrorIs(t, rdb.Ping(t.Context()).Err(), os.ErrDeadlineExceeded)
	require.NoError(t, server.Resume())
	require.NoError(t, rdb.Ping(t.Context()).Err())
}

func TestPausedRedisCanBeStoppedKilledAndClosed(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	for _, end := range []func() error{server.Stop, server.Kill, server.Close} {
		require.NoError(t, server.Pause())
		require.NoError(t, end())
		require.Zero(t, server.Pid())
		_ = server.Start(t.Context()) // fails after Close
	}
}

func TestReplicaCopiesItsMaster(t *testing.T) {
	t.Parallel()
	master := testenv.PrivateRedis(t, servers.RedisConfig{})
	replica := testenv.PrivateRedis(t, servers.RedisConfig{ReplicaOf: master.Addr()})
	require.NoError(t, client(t, master).Set(t.Context(), "k", "v", 0).Err())
	rdb := client(t, replica)
	require.Eventually(t, func() bool { return rdb.Get(t.Context(), "k").Val() == "v" }, 30*time.Second, 10*time.Millisecond)
}

func TestRedisListensOnItsUnixSocket(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{UnixSocket: true})
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: server.Socket()})
	defer rdb.Close()
	require.NoError(t, rdb.Ping(t.Context()).Err())
	require.Empty(t, testenv.PrivateRedis(t, servers.RedisConfig{}).Socket())
}

func TestRedisSettingsWin(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, Settings: map[string]string{
		"appendonly": "yes", "requirepass": `"se cret"`,
	}})
	rdb := client(t, server, func(o *redis.Options) { o.Password = "se cret" })
	require.Equal(t, "yes", rdb.ConfigGet(t.Context(), "appendonly").Val()["appendonly"])
	require.Equal(t, "warning", rdb.ConfigGet(t.Context(), "loglevel").Val()["loglevel"])
}

func TestFailedStartShowsTheLogAndLeavesNothing(t *testing.T) {
	temp := useTempDir(t)
	_, err := servers.StartRedis(t.Context(), servers.RedisConfig{Settings: map[string]string{"maxmemory-policy": "nonsense"}})
	testenv.RequireInstalled(t, err)
	require.ErrorContains(t, err, "FATAL CONFIG FILE ERROR")
	require.Empty(t, entries(t, temp))
}

func TestStartEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	temp := useTempDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	// A server that never answers PING.
	_, err := servers.StartRedis(ctx, servers.RedisConfig{Dir: dir, Settings: map[string]string{"rename-command": `PING ""`}})
	testenv.RequireInstalled(t, err)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Empty(t, entries(t, temp))
	require.FileExists(t, filepath.Join(dir, "redis.conf"))
}

func TestCloseRemovesOnlyWhatStartMade(t *testing.T) {
	dir := t.TempDir()
	temp := useTempDir(t)
	own := testenv.PrivateRedis(t, servers.RedisConfig{})
	require.Len(t, entries(t, temp), 1)
	require.NoError(t, own.Close())
	require.NoError(t, own.Close(), "a second Close does nothing")
	require.Empty(t, entries(t, temp))
	require.ErrorContains(t, own.Start(t.Context()), "closed")

	given := testenv.PrivateRedis(t, servers.RedisConfig{Dir: dir})
	require.NoError(t, given.Close())
	require.DirExists(t, dir)
}

func TestStartOfARunningServerIsRefused(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	require.ErrorContains(t, server.Start(t.Context()), "running already")
	require.NoError(t, client(t, server).Ping(t.Context()).Err())
}

func TestStartFailsIfThePortWasTakenMeanwhile(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	require.NoError(t, server.Kill())
	squatter, err := net.Listen("tcp", server.Addr())
	require.NoError(t, err)
	defer squatter.Close()
	require.ErrorContains(t, server.Start(t.Context()), "Address already in use")
}

func TestDownServerCannotBePaused(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	require.NoError(t, server.Kill())
	require.ErrorIs(t, server.Pause(), os.ErrProcessDone)
	require.ErrorIs(t, server.Resume(), os.ErrProcessDone)
	require.NoError(t, server.Kill(), "what is down stays down")
}

// Linux ends a server with the thread that started it, and a thread ends with a goroutine that is locked to it.
func TestServerOutlivesTheThreadsOfItsProcess(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	pid := server.Pid()
	var ready, done sync.WaitGroup
	ready.Add(200)
	for range 200 {
		done.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			ready.Wait() // so that each has a thread, and every idle thread is somebody's
		})
	}
	done.Wait()
	require.Never(t, func() bool { return server.Pid() != pid }, 200*time.Millisecond, 10*time.Millisecond)
}

func client(t *testing.T, server *servers.Redis, edit ...func(*redis.Options)) *redis.Client {
	t.Helper()
	return testenv.RedisClient(t, server.URL(), edit...)
}

// useTempDir makes servers put their folders into a new, empty one.
func useTempDir(t *testing.T) string {
	t.Helper()
	dir := openDir(t)
	t.Setenv("TMPDIR", dir)
	return dir
}

// openDir makes a folder that Postgres, where it does not run as this user, can reach too.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "servers-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	return found
}
