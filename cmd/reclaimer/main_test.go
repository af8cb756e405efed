package main

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command/commandtest"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) {
	defer commandtest.Remove()
	testenv.Main(m)
}

// anyPort are the flags of a daemon that disturbs no other.
func anyPort(args ...string) []string { return append([]string{"--listen=127.0.0.1:0"}, args...) }

// group is a group of a topic in the registry, with a consumer that died.
type group struct {
	t     testing.TB
	rdb   redis.UniversalClient
	topic stream.Topic
	name  string
}

var orderPlaced = stream.Define[string]("order.placed")

func newGroup(t testing.TB, rdb redis.UniversalClient, namespace string) *group {
	t.Helper()
	g := &group{t: t, rdb: rdb, topic: stream.Topic{Name: "orders", Namespace: namespace, Partitions: 2}, name: "billing"}
	require.NoError(t, stream.Declare(t.Context(), rdb, g.topic))
	require.NoError(t, stream.DeclareGroup(t.Context(), rdb, g.topic, stream.Group{
		Name: g.name, Kind: stream.GroupWork, MaxDeliveries: 3, MinIdleMs: pel.MinMinIdle.Milliseconds(),
	}))
	for p := range g.topic.Count() {
		_, err := pel.Ensure(t.Context(), rdb, g.keys(p), "0")
		require.NoError(t, err)
	}
	return g
}

func (g *group) keys(p int) pel.Keys { return pel.KeysOf(g.topic.StreamKey(p), g.name) }

func (g *group) publish(n int) []stream.Event {
	g.t.Helper()
	publisher, err := stream.NewPublisher(g.rdb, stream.PublisherConfig{})
	require.NoError(g.t, err)
	var events []stream.Event
	for i := range n {
		events = append(events, orderPlaced.Event(string(rune('a'+i)), "order"))
	}
	_, err = publisher.PublishBatch(g.t.Context(), g.topic, events)
	require.NoError(g.t, err)
	return events
}

// pausesWithMoreThanTwoLetters fills the dead letters and waits until that has paused the
// group, and makes room and waits until the pause ends.
func (g *group) pausesWithMoreThanTwoLetters() {
	g.t.Helper()
	paused := func(want bool) func() bool {
		return func() bool {
			got, err := pel.Paused(g.t.Context(), g.rdb, g.keys(0), g.keys(1))
			return err == nil && got[0] == want && got[1] == want
		}
	}
	for range 3 {
		require.NoError(g.t, g.rdb.XAdd(g.t.Context(), &redis.XAddArgs{Stream: g.keys(0).Dead, Values: []string{"sk-reason", "manual"}}).Err())
	}
	require.Eventually(g.t, paused(true), commandtest.Patience, 10*time.Millisecond)
	require.NoError(g.t, g.rdb.XTrimMaxLen(g.t.Context(), g.keys(0).Dead, 2).Err())
	require.Eventually(g.t, paused(false), commandtest.Patience, 10*time.Millisecond, "there is room")
}

// abandon has a consumer take everything, and fall silent.
func (g *group) abandon() {
	g.t.Helper()
	for p := range g.topic.Count() {
		err := g.rdb.XReadGroup(g.t.Context(), &redis.XReadGroupArgs{
			Group: g.name, Consumer: "dead", Streams: []string{g.topic.StreamKey(p), ">"}, Count: 1000, Block: -1,
		}).Err()
		if err != redis.Nil {
			require.NoError(g.t, err)
		}
	}
}

func (g *group) totals() pel.Totals {
	keys := []pel.Keys{g.keys(0), g.keys(1)}
	all, err := pel.Inspect(g.t.Context(), g.rdb, keys...)
	if err != nil {
		return pel.Totals{Err: err}
	}
	return pel.Sum(all...)
}

func (g *group) eventually(what string, holds func(pel.Totals) bool) {
	g.t.Helper()
	require.Eventually(g.t, func() bool { return holds(g.totals()) }, commandtest.Patience, 20*time.Millisecond, what)
}
