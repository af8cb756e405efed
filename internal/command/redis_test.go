package command

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// ping opens a client of a config, and asks it.
func ping(t *testing.T, cfg *RedisConfig) error {
	t.Helper()
	rdb := cfg.openForCheck()
	defer func() { require.NoError(t, rdb.Close()) }()
	return rdb.Set(t.Context(), "sk-test", "x", 0).Err()
}

func TestPasswordNeverTravelsInTheClearToAnotherHost(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, []byte(canary), 0o600))
	user := url.UserPassword("me", canary).String() + "@"
	for _, c := range []struct {
		flags RedisFlags
		ok    bool
	}{
		{RedisFlags{URL: "redis://" + user + "redis.example.com"}, false},
		{RedisFlags{URL: "redis://" + user + "10.0.0.1:6379"}, false},
		{RedisFlags{URL: "redis://10.0.0.1", PasswordFile: file}, false},
		{RedisFlags{URL: "redis+cluster://" + user + "127.0.0.1,10.0.0.1"}, false},
		{RedisFlags{URL: "redis+sentinel://127.0.0.1,10.0.0.1/main", SentinelPasswordFile: file}, false},
		{RedisFlags{URL: "redis://" + user + "127.0.0.1.example.com"}, false},
		{RedisFlags{URL: "redis://" + user + "10.0.0.1", AllowInsecure: true}, true},
		{RedisFlags{URL: "rediss://" + user + "10.0.0.1"}, true},
		{RedisFlags{URL: "redis://10.0.0.1"}, true},
		{RedisFlags{URL: "redis://" + user + "127.0.0.1"}, true},
		{RedisFlags{URL: "redis://" + user + "127.8.8.8"}, true},
		{RedisFlags{URL: "redis://" + user + "[::1]"}, true},
		{RedisFlags{URL: "redis://" + user + "LOCALHOST"}, true},
		{RedisFlags{URL: "unix://" + user + "/run/redis.sock"}, true},
	} {
		_, _, err := config(t, c.flags)
		if c.ok {
			require.NoError(t, err, c.flags.URL)
			continue
		}
		require.ErrorContains(t, err, "--allow-insecure-redis", c.flags.URL)
		require.NotContains(t, err.Error(), canary)
	}
}

func TestPasswordNeverTravelsInTheClearToAHostThatSentinelNames(t *testing.T) {
	t.Parallel()
	// A Sentinel on loopback that says the master is somewhere else.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go fakeServer(listener, func(args []string) string {
		if len(args) > 1 && args[0] == "sentinel" && args[1] == "get-master-addr-by-name" {
			return "*2\r\n$9\r\n192.0.2.1\r\n$4\r\n6379\r\n"
		}
		if args[0] == "sentinel" {
			return "*0\r\n"
		}
		return "-ERR not here\r\n"
	})
	cfg, _, err := config(t, RedisFlags{URL: "redis+sentinel://" + url.UserPassword("me", canary).String() + "@" + listener.Addr().String() + "/main"})
	require.NoError(t, err)
	err = ping(t, cfg)
	require.ErrorContains(t, err, "would travel to 192.0.2.1:6379 without TLS")
	require.NotContains(t, err.Error(), canary)
}

func TestEveryFaultOfTheRedisFlagsIsToldAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "noise"), []byte("noise"), 0o600))
	_, _, err := config(t, RedisFlags{
		URL: "rediss://me:word@host", Username: "you", PasswordFile: filepath.Join(dir, "none"), SentinelUsername: "s",
		CAFile: filepath.Join(dir, "noise"), CertFile: filepath.Join(dir, "noise"),
	})
	for _, part := range []string{
		"--redis-username and the URL", "--redis-password-file and the URL", "no such file", "go with a Sentinel", "holds no PEM certificate", "go together",
	} {
		require.ErrorContains(t, err, part)
	}
	_, _, err = config(t, RedisFlags{URL: "rediss://host", CertFile: filepath.Join(dir, "noise"), KeyFile: filepath.Join(dir, "noise"), CAFile: filepath.Join(dir, "none")})
	require.ErrorContains(t, err, "failed to find any PEM data")
	require.ErrorContains(t, err, "--redis-ca-file: open")
	_, _, err = config(t, RedisFlags{URL: "redis://host", CAFile: "x", CertFile: "y", KeyFile: "z", ServerName: "n"})
	for _, flag := range []string{"--redis-ca-file", "--redis-cert-file", "--redis-key-file", "--redis-server-name"} {
		require.ErrorContains(t, err, flag+" needs TLS")
	}
}

func TestUserAndPasswordComeFromTheURLOrAFileThatMayChange(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, UnixSocket: true})
	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { require.NoError(t, admin.Close()) })
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "me", "on", ">"+canary, "~*", "+@all").Err())

	cfg, secrets, err := config(t, RedisFlags{URL: "redis://" + url.UserPassword("me", canary).String() + "@" + server.Addr()})
	require.NoError(t, err)
	require.NoError(t, ping(t, cfg))
	require.Equal(t, masked, secrets.Redact(canary))

	cfg, _, err = config(t, RedisFlags{URL: "unix://" + url.UserPassword("me", canary).String() + "@" + server.Socket()})
	require.NoError(t, err)
	require.NoError(t, ping(t, cfg))

	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, []byte(canary+"\n"), 0o600))
	cfg, _, err = config(t, RedisFlags{URL: "redis://" + server.Addr(), Username: "me", PasswordFile: file})
	require.NoError(t, err)
	require.NoError(t, ping(t, cfg))

	// Rotated: the next connection uses the new one, without a restart.
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "me", "resetpass", ">another-word").Err())
	require.ErrorContains(t, ping(t, cfg), "WRONGPASS")
	require.NoError(t, os.WriteFile(file, []byte("another-word"), 0o600))
	require.NoError(t, ping(t, cfg))
}

func TestClusterIsReachedByItsForm(t *testing.T) {
	t.Parallel()
	addrs := testenv.Cluster(t).Addrs()
	for _, flags := range []RedisFlags{
		{URL: "redis+cluster://" + addrs[0] + "," + addrs[1]},
		{URL: "redis://" + addrs[2], Cluster: true},
	} {
		cfg, _, err := config(t, flags)
		require.NoError(t, err)
		require.NoError(t, CheckRedis(t.Context(), cfg, 10*time.Second))
		rdb := cfg.Open()
		for i := range 20 { // keys of several nodes
			require.NoError(t, rdb.Set(t.Context(), "key"+strconv.Itoa(i), "x", 0).Err())
		}
		require.NoError(t, rdb.Close())
	}
}
