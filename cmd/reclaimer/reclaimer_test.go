package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func TestReclaimerTakesOverWhatADeadConsumerLeft(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	g := newGroup(t, rdb, ns)
	g.publish(10)
	g.abandon()
	d := commandtest.Serve(t, run, []string{"STREAMKEEL_REDIS_URL=" + testenv.RedisURL(t)}, anyPort("--namespace="+ns)...)
	addr := d.Addr()
	g.eventually("what was pending is to be handled again", func(t pel.Totals) bool { return t.Pending == 0 && t.Retry == 10 })
	g.eventually("the name of the dead consumer goes", func(pel.Totals) bool {
		members, err := pel.Members(t.Context(), rdb, g.keys(0))
		return err == nil && len(members) == 0
	})
	commandtest.Eventually(t, addr, "/readyz", http.StatusOK, `"ready":true`)
	labels := `{group="billing",topic="orders"}`
	commandtest.Eventually(t, addr, "/metrics", http.StatusOK, "streamkeel_reclaimed_total"+labels+" 10")
	commandtest.Eventually(t, addr, "/metrics", http.StatusOK, `streamkeel_group_retry_entries{group="billing",namespace="`+ns+`",topic="orders"} 10`)
	d.Cancel()
	require.Equal(t, command.ExitClean, d.Wait())
}

func TestReclaimerMovesDueRetriesAndTrimsWhatIsFinished(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	g := newGroup(t, rdb, ns)
	g.publish(6)
	g.abandon()
	for p := range g.topic.Count() { // everything is finished, but for one retry
		pending, err := rdb.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: g.topic.StreamKey(p), Group: g.name, Start: "-", End: "+", Count: 100}).Result()
		require.NoError(t, err)
		for i, one := range pending {
			if p == 0 && i == 0 {
				continue
			}
			require.NoError(t, rdb.XAck(t.Context(), g.topic.StreamKey(p), g.name, one.ID).Err())
		}
	}
	entries, err := rdb.XRange(t.Context(), g.topic.StreamKey(0), "-", "+").Result()
	require.NoError(t, err)
	id, err := stream.ParseID(entries[0].ID)
	require.NoError(t, err)
	settler := pel.NewSettler(rdb, g.keys(0), "dead")
	_, err = settler.Settle(t.Context(), false, pel.Settlement{Entry: stream.Entry{Stream: g.topic.StreamKey(0), ID: id}, Outcome: pel.Retry, Delay: time.Millisecond})
	require.NoError(t, err)

	d := commandtest.Serve(t, run, nil, anyPort("--namespace="+ns, "--redis-url="+testenv.RedisURL(t), "--keep=1ms", "--trim-exact")...)
	d.Addr()
	g.eventually("the retry is due, and all is finished and trimmed", func(t pel.Totals) bool { return t.Due == 0 && t.Retry == 1 && t.Length == 0 })
}

func TestReclaimerBoundsDeadLettersAsItIsTold(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	g := newGroup(t, rdb, ns)
	d := commandtest.Serve(t, run, nil, anyPort("--namespace="+ns, "--redis-url="+testenv.RedisURL(t), "--letters-max-len=2", "--letters-full=pause")...)
	d.Addr()
	g.pausesWithMoreThanTwoLetters()
}

func TestEmptyRegistryIsSaidAndIsNotReadyUntilSomethingIsThere(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	d := commandtest.Serve(t, run, nil, anyPort("--namespace="+ns, "--redis-url="+testenv.RedisURL(t))...)
	addr := d.Addr()
	commandtest.Eventually(t, addr, "/readyz", http.StatusServiceUnavailable, "the registry is empty: no topic and group is declared in namespace "+ns)
	require.Contains(t, d.Stderr(), "the registry is empty")
	g := newGroup(t, rdb, ns)
	g.publish(1)
	g.abandon()
	commandtest.Eventually(t, addr, "/readyz", http.StatusOK, `"ready":true`)
	g.eventually("what came later is looked after", func(t pel.Totals) bool { return t.Retry == 1 })
}

func TestBrokenRegistryDoesNotStopOtherNamespaces(t *testing.T) {
	t.Parallel()
	rdb, broken, ns := testenv.Redis(t), testenv.Namespace(t), testenv.Namespace(t)
	newGroup(t, rdb, broken)
	d := commandtest.Serve(t, run, nil, anyPort("--namespace="+broken+","+ns, "--redis-url="+testenv.RedisURL(t))...)
	addr := d.Addr()
	commandtest.Eventually(t, addr, "/readyz", http.StatusOK, `"ready":true`)
	require.NoError(t, rdb.Set(t.Context(), broken+":$layout", "999", 0).Err())
	commandtest.Eventually(t, addr, "/readyz", http.StatusServiceUnavailable, "unknown layout")
	g := newGroup(t, rdb, ns)
	g.publish(1)
	g.abandon()
	g.eventually("the other namespace is looked after", func(t pel.Totals) bool { return t.Retry == 1 })
	commandtest.Eventually(t, addr, "/metrics", http.StatusOK, `streamkeel_backlog_up{namespace="`+broken+`"} 0`)
}

func TestOutageMakesTheDaemonUnreadyAndNotDead(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, AppendOnly: true, Settings: map[string]string{"requirepass": `"` + commandtest.Canary + `"`}})
	redisURL := "redis://" + url.UserPassword("default", commandtest.Canary).String() + "@" + server.Addr()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: commandtest.Canary})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	newGroup(t, rdb, "sk")
	d := commandtest.Serve(t, run, []string{"STREAMKEEL_REDIS_URL=" + redisURL}, anyPort("--log-level=debug")...)
	addr := d.Addr()
	commandtest.Eventually(t, addr, "/readyz", http.StatusOK, `"redis":"ok"`)
	_, seen := commandtest.Get(t, addr, "/metrics")

	require.NoError(t, server.Kill())
	commandtest.Eventually(t, addr, "/readyz", http.StatusServiceUnavailable, "connection refused")
	status, _ := commandtest.Get(t, addr, "/healthz")
	require.Equal(t, http.StatusOK, status)
	commandtest.Eventually(t, addr, "/metrics", http.StatusOK, `streamkeel_backlog_up{namespace="sk"} 0`)
	_, metrics := commandtest.Get(t, addr, "/metrics")
	require.NotContains(t, metrics, "streamkeel_group_lag", "what is not known is absent")
	_, ready := commandtest.Get(t, addr, "/readyz")

	require.NoError(t, server.Start(t.Context()))
	commandtest.Eventually(t, addr, "/readyz", http.StatusOK, `"ready":true`)
	g := &group{t: t, rdb: rdb, topic: stream.Topic{Name: "orders", Partitions: 2}, name: "billing"}
	g.publish(3)
	g.abandon()
	g.eventually("it goes on by itself", func(t pel.Totals) bool { return t.Retry == 3 })
	d.Cancel()
	require.Equal(t, command.ExitClean, d.Wait())
	for _, text := range []string{d.Stderr(), seen, metrics, ready} {
		require.NotContains(t, text, "canary", "a password is never seen")
		require.NotContains(t, text, url.UserPassword("", commandtest.Canary).String())
	}
	require.Contains(t, d.Stderr(), "connection refused", "there was something to quote it in")
}

func TestBadInputIsOneLineThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	require.NoError(t, rdb.Set(t.Context(), ns+":$layout", "999", 0).Err())
	evicting := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, Settings: map[string]string{"maxmemory-policy": "volatile-lru"}})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	binary := commandtest.Build(t, "cmd/reclaimer")
	good := "--redis-url=" + testenv.RedisURL(t)
	for name, c := range map[string]struct {
		args, parts []string
	}{
		"unknown flag":    {[]string{"--no-such"}, []string{"unknown flag: --no-such", "--help"}},
		"argument":        {[]string{"redis://u:" + commandtest.Canary + "@h"}, []string{"no flag"}},
		"unreachable":     {[]string{"--redis-url=redis://u:" + url.QueryEscape(commandtest.Canary) + "@127.0.0.1:1", "--start-timeout=100ms"}, []string{"connection refused", "--redis-url"}},
		"wrong URL":       {[]string{"--redis-url=localhost"}, []string{"--redis-url", "redis://host"}},
		"broken URL":      {[]string{"--redis-url=redis://u:" + commandtest.Canary + "@h"}, []string{"escaped"}},
		"plain password":  {[]string{"--redis-url=redis://u:" + url.QueryEscape(commandtest.Canary) + "@10.0.0.1"}, []string{"--allow-insecure-redis"}},
		"evicting":        {[]string{"--redis-url=" + evicting.URL()}, []string{"volatile-lru", "noeviction", "--allow-eviction"}},
		"unknown layout":  {[]string{good, "--namespace=" + ns}, []string{"unknown layout", "--namespace"}},
		"taken port":      {[]string{good, "--listen=" + taken.Addr().String()}, []string{"address already in use", "--listen"}},
		"every fault":     {[]string{"--keep=-1s", "--namespace=a:b", "--listen=x", "--log-format=xml", "--log-level=loud", "--start-timeout=0s", "--redis-url=x", "--letters-full=drop"}, []string{"--letters-full", `OnFull "drop"`, "--keep -1s", `--namespace "a:b"`, `--listen "x"`, "--log-format", "--log-level", "--start-timeout", "--redis-url"}},
		"empty namespace": {[]string{"--namespace="}, []string{"--namespace is empty"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--listen=127.0.0.1:0"}, c.args...)
			commandtest.RequireUnfit(t, commandtest.Run(t, binary, nil, args...), c.parts...)
		})
	}
	commandtest.RequireUnfit(t, commandtest.Run(t, binary, []string{"STREAMKEEL_KEEP=soon"}, good), "STREAMKEEL_KEEP", "soon")
}

func TestHelpNamesEverySettingWithItsVariableAndDefault(t *testing.T) {
	t.Parallel()
	o := commandtest.Call(t, run, nil, "--help")
	require.Equal(t, command.ExitClean, o.Code)
	require.Empty(t, o.Stderr)
	for _, part := range []string{"--namespace", "STREAMKEEL_NAMESPACE", "(default sk)", "--keep duration", "(default 1h)", "STREAMKEEL_REDIS_URL", "127.0.0.1:8641"} {
		require.Contains(t, o.Stdout, part)
	}
	o = commandtest.Call(t, run, nil, "--version")
	require.Equal(t, command.ExitClean, o.Code)
	require.Contains(t, o.Stdout, "reclaimer ")
}

func TestSignalsAndExitCodesOfTheBinary(t *testing.T) {
	t.Parallel()
	binary := commandtest.Build(t, "cmd/reclaimer")
	ns := testenv.Namespace(t)
	newGroup(t, testenv.Redis(t), ns)
	env := []string{"STREAMKEEL_REDIS_URL=" + testenv.RedisURL(t), "STREAMKEEL_NAMESPACE=" + ns}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p := commandtest.Start(t, binary, env, anyPort()...)
		p.Addr()
		p.Signal(signal)
		require.Equal(t, command.ExitClean, p.Wait(), p.Stderr())
		require.Contains(t, p.Stderr(), `"msg":"draining"`)
		require.Contains(t, p.Stderr(), `"msg":"stopped"`)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	newGroup(t, rdb, "sk")
	p := commandtest.Start(t, commandtest.Build(t, "cmd/reclaimer"), nil, anyPort("--redis-url="+server.URL()+"?read_timeout=1h")...)
	addr := p.Addr()
	require.NoError(t, server.Pause()) // what is asked now is not answered
	defer func() { require.NoError(t, server.Resume()) }()
	commandtest.Eventually(t, addr, "/readyz", http.StatusServiceUnavailable, "redis") // by now every loop waits
	p.Signal(syscall.SIGTERM)
	require.Eventually(t, func() bool { return strings.Contains(p.Stderr(), "draining") }, commandtest.Patience, time.Millisecond)
	p.Signal(syscall.SIGTERM)
	require.Equal(t, -1, p.Wait(), "ended by the signal: %s", p.Stderr())
}

func TestEveryLineOfTheBinaryIsJSONAlsoThoseOfLibraries(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	p := commandtest.Start(t, commandtest.Build(t, "cmd/reclaimer"), nil, anyPort("--redis-url="+server.URL())...)
	p.Addr()
	require.NoError(t, server.Kill())
	require.Eventually(t, func() bool { return strings.Contains(p.Stderr(), "message of the Redis client") }, commandtest.Patience, 10*time.Millisecond)
	p.Signal(syscall.SIGTERM)
	require.Equal(t, command.ExitClean, p.Wait())
	for line := range strings.Lines(p.Stderr()) {
		require.True(t, json.Valid([]byte(line)), line)
	}
}

func TestDocumentedFlagsAreThoseOfTheProgram(t *testing.T) {
	t.Parallel()
	var c config
	commandtest.RequireFlagTable(t, program, c.flags().FlagSet)
}
