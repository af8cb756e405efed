package redisx_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestErrorsAreClassified(t *testing.T) {
	t.Parallel()
	dial := &net.OpError{Op: "dial", Err: errors.New("refused")}
	read := &net.OpError{Op: "read", Err: errors.New("reset")}
	for _, c := range []struct {
		err                            error
		server, unavailable, ambiguous bool
	}{
		{nil, false, false, false},
		{redis.Nil, false, false, false},
		{redisx.ServerError("NOGROUP No such key"), true, false, false},
		{redisx.ServerError("LOADING Redis is loading"), true, true, false},
		{redisx.ServerError("OOM command not allowed"), true, true, false},
		{redisx.ServerError("READONLY You can't write"), true, true, false},
		{redisx.ServerError("MISCONF Redis is configured"), true, true, false},
		{redisx.ServerError("CLUSTERDOWN Hash slot"), true, true, false},
		{redisx.ServerError("ERR max number of clients reached"), true, true, false},
		{redisx.ServerError("WRONGTYPE Operation"), true, false, false},
		{redisx.ServerError("NOPERM this user"), true, false, false},
		{fmt.Errorf("wrapped: %w", redisx.ServerError("LOADING x")), true, true, false},
		{dial, false, true, false},
		{read, false, true, true},
		{io.EOF, false, true, true},
		{io.ErrUnexpectedEOF, false, true, true},
		{context.DeadlineExceeded, false, true, true},
		{context.Canceled, false, false, true},
		{redis.ErrPoolTimeout, false, true, false},
		{redis.ErrClosed, false, false, false},
	} {
		require.Equal(t, c.server, redisx.IsServer(c.err), "server: %v", c.err)
		require.Equal(t, c.unavailable, redisx.IsUnavailable(c.err), "unavailable: %v", c.err)
		require.Equal(t, c.ambiguous, redisx.IsAmbiguous(c.err), "ambiguous: %v", c.err)
	}
	require.True(t, redisx.IsNoGroup(redisx.ServerError("UNBLOCKED the stream key no longer exists")))
	require.False(t, redisx.IsNoGroup(redisx.ServerError("NOGROUPS x")))
	require.False(t, redisx.IsNoGroup(errors.New("NOGROUP x")), "not a reply")
}

// Real servers' replies, through both ways of reading them.
func TestRepliesOfARealServerAreClassified(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	require.NoError(t, rdb.Set(t.Context(), ns, "string", 0).Err())
	require.NoError(t, rdb.XGroupCreateMkStream(t.Context(), ns+"s", "g", "0").Err())
	for name, c := range map[string]struct {
		is   func(error) bool
		args []any
	}{
		"busy group": {redisx.IsBusyGroup, []any{"xgroup", "create", ns + "s", "g", "0"}},
		"no group":   {redisx.IsNoGroup, []any{"xreadgroup", "group", "x", "c", "streams", ns + "s", ">"}},
		"wrong type": {redisx.IsWrongType, []any{"xlen", ns}},
		"no script":  {redisx.IsNoScript, []any{"evalsha", strings.Repeat("0", 40), 0}},
		"unknown":    {redisx.IsUnknownCommand, []any{"nosuch"}},
		"in script":  {redisx.IsWrongType, []any{"eval", "return redis.call('xlen', KEYS[1])", 1, ns}},
	} {
		require.True(t, c.is(redisx.Do(t.Context(), rdb, c.args...).Err()), name)
		_, err := redisx.Raw(t.Context(), rdb, c.args...)
		require.True(t, c.is(err), "%s raw: %v", name, err)
	}
	_, err := redisx.Raw(t.Context(), rdb, "xread", "count", 1, "streams", ns+"s", "0")
	require.True(t, redisx.IsNil(err))
}

func TestProbeTellsWhatServerThisIs(t *testing.T) {
	t.Parallel()
	server, err := redisx.Probe(t.Context(), testenv.Redis(t), "")
	require.NoError(t, err)
	require.NoError(t, server.Check(false))
	require.NotEmpty(t, server.RunID)
	for version, ok := range map[string]bool{"redis 7.0.5": true, "redis 7.0.4": false, "redis 6.2.14": false, "redis 8.6.3": true, "valkey 7.2.0": true, "valkey 7.1.9": false, "valkey 9.1.2": true, "redis 7.0.15-rc1": true, " ": false} {
		name, v, _ := strings.Cut(version, " ")
		err := redisx.Server{Name: name, Version: v}.Check(false)
		require.Equal(t, ok, err == nil, version)
		if !ok {
			require.ErrorIs(t, err, redisx.ErrUnsupported)
		}
	}
	require.ErrorIs(t, redisx.Server{Name: "redis", Version: "7.2.0", MaxPolicy: "allkeys-lru"}.Check(false), redisx.ErrEviction)
	require.NoError(t, redisx.Server{Name: "redis", Version: "7.2.0", MaxPolicy: "allkeys-lru"}.Check(true))
}

func TestProbeWithoutInfoPermissionAsksHello(t *testing.T) {
	t.Parallel()
	admin, ns := testenv.Redis(t), testenv.Namespace(t)
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", ns, "on", ">secret", "-@all", "+hello", "+auth", "+ping").Err())
	t.Cleanup(func() { admin.Do(context.WithoutCancel(t.Context()), "acl", "deluser", ns) })
	rdb := testenv.Redis(t, func(o *redis.Options) { o.Username, o.Password = ns, "secret" })
	server, err := redisx.Probe(t.Context(), rdb, "")
	require.NoError(t, err)
	require.NoError(t, server.Check(false))
}

// A slot that moves while raw commands are sent: MOVED and ASK are followed.
func TestRawCommandsFollowAMovingSlot(t *testing.T) {
	t.Parallel()
	cluster := testenv.Cluster(t)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	t.Cleanup(func() { _ = rdb.Close() })
	const key = "moving"
	require.NoError(t, rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"a", "b"}}).Err())
	from, err := rdb.MasterForKey(t.Context(), key)
	require.NoError(t, err)
	var to *redis.Client
	for _, addr := range cluster.Addrs() {
		if addr != from.Options().Addr {
			to = redis.NewClient(&redis.Options{Addr: addr})
			t.Cleanup(func() { _ = to.Close() })
			break
		}
	}
	slot := rdb.ClusterKeySlot(t.Context(), key).Val()
	fromID, toID := from.Do(t.Context(), "cluster", "myid").Val(), to.Do(t.Context(), "cluster", "myid").Val()
	require.NoError(t, to.Do(t.Context(), "cluster", "setslot", slot, "importing", fromID).Err())
	require.NoError(t, from.Do(t.Context(), "cluster", "setslot", slot, "migrating", toID).Err())
	host, port, err := net.SplitHostPort(to.Options().Addr)
	require.NoError(t, err)
	require.NoError(t, from.Migrate(t.Context(), host, port, key, 0, 5*time.Second).Err())

	read := func(rdb *redis.ClusterClient) {
		t.Helper()
		reply, err := redisx.Raw(t.Context(), rdb, "xrange", key, "-", "+")
		require.NoError(t, err)
		n, err := reply.Array()
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	read(rdb) // ASK
	for _, c := range []*redis.Client{to, from} {
		require.NoError(t, c.Do(t.Context(), "cluster", "setslot", slot, "node", toID).Err())
	}
	read(rdb) // MOVED

	owns := func(c *redis.Client, first, last int) redis.ClusterSlot {
		return redis.ClusterSlot{Start: first, End: last, Nodes: []redis.ClusterNode{{Addr: c.Options().Addr}}}
	}
	hears := func(slots func(times int64) []redis.ClusterSlot) *redis.ClusterClient {
		var times atomic.Int64
		rdb := redis.NewClusterClient(&redis.ClusterOptions{ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return slots(times.Add(1)), nil
		}})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	read(hears(func(int64) []redis.ClusterSlot { // from a node that has not heard of the move
		return []redis.ClusterSlot{owns(from, 0, 16382), owns(to, 16383, 16383)}
	}))
	read(hears(func(times int64) []redis.ClusterSlot { // the new owner is not known at first
		if times < 3 { // for the first command and the first redirection
			return []redis.ClusterSlot{owns(from, 0, 16383)}
		}
		return []redis.ClusterSlot{owns(to, 0, 16383)}
	}))
}

func TestBlockingReadsFitTheClientsTimeout(t *testing.T) {
	t.Parallel()
	for timeout, want := range map[time.Duration]time.Duration{
		0: redisx.MaxBlock, 3 * time.Second: redisx.MaxBlock, 300 * time.Millisecond: 200 * time.Millisecond, -1: redisx.MaxBlock,
	} {
		rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", ReadTimeout: timeout})
		require.Equal(t, want, redisx.BlockFor(rdb), timeout.String())
		require.NoError(t, rdb.Close())
	}
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{
		"*2\r\n$1\r\na\r\n:5\r\n", "%1\r\n+k\r\n*-1\r\n", "_\r\n", "$-1\r\n", "*4294967295\r\n", "$2147483647\r\n", "$5\r\nab\r\n",
		"*1\r\n*1\r\n*1\r\n$1\r\nx\r\n", "", "\r\n", "*" + strings.Repeat("9", 30) + "\r\n", "|1\r\n+a\r\n+b\r\n+c\r\n", "$3\r\nab", ":\r\n", "*-2\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := redisx.NewReply(data)
		for !r.Done() {
			if err := r.Skip(); err != nil {
				break
			}
		}
		r = redisx.NewReply(data)
		if n, err := r.Array(); err == nil && n > len(data) {
			t.Fatalf("%d values in %d bytes: %s", n, len(data), strconv.Quote(string(data)))
		}
		_, _ = r.Bytes()
	})
}
