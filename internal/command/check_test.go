package command

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// fakeServer answers every connection's commands with what reply says, in RESP.
func fakeServer(listener net.Listener, reply func(args []string) string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			in := bufio.NewReader(conn)
			for {
				args, err := readCommand(in)
				if err != nil {
					return
				}
				answer := "-ERR unknown command\r\n"
				if args[0] != "hello" && args[0] != "client" && args[0] != "auth" {
					answer = reply(args)
				} else if args[0] == "auth" {
					answer = "+OK\r\n"
				}
				if _, err := io.WriteString(conn, answer); err != nil {
					return
				}
			}
		}()
	}
}

func readCommand(in *bufio.Reader) (args []string, err error) {
	number := func(mark byte) int {
		line, readErr := in.ReadString('\n')
		if err = readErr; err != nil || line[0] != mark {
			return 0
		}
		n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
		return n
	}
	n := number('*')
	for range n {
		b := make([]byte, number('$')+2)
		if err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(in, b); err != nil {
			return nil, err
		}
		args = append(args, string(b[:len(b)-2]))
	}
	if len(args) == 0 && err == nil {
		err = io.ErrUnexpectedEOF
	}
	if len(args) > 0 {
		args[0] = strings.ToLower(args[0])
	}
	return args, err
}

// For how long what is waited for is, and what is not.
const brief, patience = 500 * time.Millisecond, 30 * time.Second

func checkRedis(t *testing.T, flags RedisFlags, timeout time.Duration) error {
	t.Helper()
	cfg, _, err := config(t, flags)
	require.NoError(t, err)
	err = CheckRedis(t.Context(), cfg, timeout)
	if err != nil {
		require.True(t, IsUnfit(err), "somebody has to act: %v", err)
		require.NotContains(t, OneLine(err), "\n")
		require.NotContains(t, err.Error(), canary)
		require.NotContains(t, err.Error(), "stream: check")
	}
	return err
}

func TestUnfitRedisIsRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	unreachable := checkRedis(t, RedisFlags{URL: "redis://" + url.UserPassword("me", canary).String() + "@127.0.0.1:1"}, brief)
	require.ErrorContains(t, unreachable, "Redis at 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused; check --redis-url")

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go fakeServer(listener, func(args []string) string {
		info := "redis_version:6.2.14\r\nmaxmemory_policy:noeviction\r\n"
		return fmt.Sprintf("$%d\r\n%s\r\n", len(info), info)
	})
	require.ErrorContains(t, checkRedis(t, RedisFlags{URL: "redis://" + listener.Addr().String()}, patience),
		"redis 6.2.14; Streamkeel needs Redis 7.0.5 or Valkey 7.2 at least; use a newer server")

	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, Settings: map[string]string{"maxmemory-policy": "allkeys-lru"}})
	require.ErrorContains(t, checkRedis(t, RedisFlags{URL: server.URL()}, patience), "allkeys-lru")
	require.ErrorContains(t, checkRedis(t, RedisFlags{URL: server.URL()}, patience), "--allow-eviction")
	require.NoError(t, checkRedis(t, RedisFlags{URL: server.URL(), AllowEviction: true}, patience))
	require.ErrorContains(t, checkRedis(t, RedisFlags{URL: "rediss://" + server.Addr()}, brief), "no answer in time; check --redis-url, that the server runs and speaks TLS")
	require.ErrorContains(t, checkRedis(t, RedisFlags{URL: "redis://me:word@" + server.Addr()}, patience), "check the user and password")
	require.ErrorContains(t, checkRedis(t, RedisFlags{URL: "redis://" + server.Addr() + "/99"}, patience), "DB index is out of range")

	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { require.NoError(t, admin.Close()) })
	require.NoError(t, admin.ConfigSet(t.Context(), "requirepass", canary).Err())
	require.ErrorContains(t, checkRedis(t, RedisFlags{URL: server.URL()}, patience), "--redis-password-file")
}

func TestRedisThatComesWithinTheTimeIsWaitedFor(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	require.NoError(t, server.Stop())
	checked := make(chan error, 1)
	cfg, _, err := config(t, RedisFlags{URL: server.URL()})
	require.NoError(t, err)
	require.Error(t, CheckRedis(t.Context(), cfg, 300*time.Millisecond))
	go func() { checked <- CheckRedis(t.Context(), cfg, 30*time.Second) }()
	require.NoError(t, server.Start(t.Context()))
	require.NoError(t, <-checked)
}

func TestUnfitPostgresIsRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	check := func(databaseURL string, timeout time.Duration) error {
		flags := PostgresFlags{URL: databaseURL}
		cfg, faults := flags.Config("prog", &Secrets{})
		require.Empty(t, faults)
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		require.NoError(t, err)
		defer pool.Close()
		err = CheckPostgres(t.Context(), pool, flags.Tables, timeout)
		if err != nil {
			require.True(t, IsUnfit(err))
			require.NotContains(t, OneLine(err), "\n")
			require.NotContains(t, err.Error(), "canary")
		}
		return err
	}
	migrated := testenv.PostgresURL(t)
	require.NoError(t, check(migrated, patience))
	require.ErrorContains(t, check("postgres://"+url.UserPassword("me", canary).String()+"@127.0.0.1:1/x?sslmode=disable", brief), "Postgres at 127.0.0.1:1/x")

	u, err := url.Parse(migrated)
	require.NoError(t, err)
	u.Path = "/no_such_database"
	require.ErrorContains(t, check(u.String(), patience), "create the database")
	u.Path = "/postgres"
	require.ErrorContains(t, check(u.String(), patience), "apply them: streamkeel migrate up")
	u.User = url.User("no_such_role")
	require.ErrorContains(t, check(u.String(), patience), "check the user and password")
}

func TestWrongPostgresURLsSayWhatIsWrongAndNeverThePassword(t *testing.T) {
	t.Parallel()
	for given, part := range map[string]string{
		"":                                "--postgres-url is missing",
		"host=h password=" + canary:       "does not start with postgres://",
		"postgres://u:" + canary + "@h/d": "must perhaps be escaped",
		"postgres://u:" + url.QueryEscape(canary) + "@h/d?sslmode=perhaps":     "sslmode is invalid",
		"postgres://u:" + url.QueryEscape(canary) + "@h/d?pool_max_conns=many": "pool_max_conns",
		"postgres://u:" + url.QueryEscape(canary) + "@h:port/d":                "invalid port",
	} {
		flags := PostgresFlags{URL: given}
		_, faults := flags.Config("prog", &Secrets{})
		require.Len(t, faults, 1, given)
		require.ErrorContains(t, faults[0], part)
		require.NotContains(t, faults[0].Error(), "canary")
	}
	both := PostgresFlags{URL: "postgres://u:word@h/d", PasswordFile: "/none"}
	_, faults := both.Config("prog", &Secrets{})
	require.Len(t, faults, 2)
}
