package stream_test

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// readAll reads a topic until it has n entries.
func readAll(t testing.TB, rdb redis.UniversalClient, topic stream.Topic, n int) []stream.Entry {
	t.Helper()
	r, err := stream.NewReader(rdb, stream.ReaderConfig{Topic: topic})
	require.NoError(t, err)
	var all []stream.Entry
	for deadline := time.Now().Add(20 * time.Second); len(all) < n && time.Now().Before(deadline); {
		entries, err := r.Read(t.Context())
		require.NoError(t, err)
		all = append(all, entries...)
	}
	require.Len(t, all, n)
	return all
}

func TestEventsComeBackAsTheyWerePublished(t *testing.T) {
	t.Parallel()
	for name, rdb := range map[string]redis.UniversalClient{
		"RESP3": testenv.Redis(t),
		"RESP2": testenv.Redis(t, func(o *redis.Options) { o.Protocol = 2 }),
	} {
		t.Run(name, func(t *testing.T) {
			topic := topicOf(t, 4)
			p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
			require.NoError(t, err)
			want := order{ID: "o-1", Cents: 1999, Lines: []line{{"sku", 2}}}
			e := orderPlaced.Event("o-1", want)
			e.Attributes = map[string]string{"tenant": "acme"}
			e.Expires = time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
			e.Schema = "v1"
			result, err := p.Publish(t.Context(), topic, e)
			require.NoError(t, err)
			require.Equal(t, topic.StreamKey(topic.PartitionOf("o-1")), result.Stream)

			entry := readAll(t, rdb, topic, 1)[0]
			require.NoError(t, entry.Err)
			require.Equal(t, result.ID, entry.ID)
			require.Equal(t, "orders", entry.Event.Source, "the source defaults to the topic")
			e.Source = "orders"
			require.Equal(t, e, entry.Event)
			got, err := orderPlaced.Decode(entry.Event)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

func TestBatchKeepsOrderPerKeyAndSpreadsKeylessEvents(t *testing.T) {
	t.Parallel()
	rdb, topic := testenv.Redis(t), topicOf(t, 8)
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	events := make([]stream.Event, 1200)
	for i := range events {
		key := ""
		if i%2 == 0 {
			key = string(rune('a' + i%10))
		}
		events[i] = orderPlaced.Event(key, order{Cents: int64(i)})
	}
	results, err := p.PublishBatch(t.Context(), topic, events)
	require.NoError(t, err)
	require.Len(t, results, len(events))
	last, keyless := map[string]int64{}, map[string]bool{}
	for _, entry := range readAll(t, rdb, topic, len(events)) {
		o, err := orderPlaced.Decode(entry.Event)
		require.NoError(t, err)
		if entry.Event.Key == "" {
			keyless[entry.Stream] = true
			continue
		}
		before, seen := last[entry.Event.Key]
		require.True(t, !seen || o.Cents > before, "key %s is out of order", entry.Event.Key)
		last[entry.Event.Key] = o.Cents
	}
	require.Len(t, keyless, 8)
	for i, r := range results {
		require.NoError(t, r.Err)
		require.Equal(t, topic.StreamKey(topic.Partition(&events[i])), r.Stream)
	}
}

func TestOneInvalidEventMeansThatNothingIsSent(t *testing.T) {
	t.Parallel()
	rdb, topic := testenv.Redis(t), topicOf(t, 1)
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	good := orderPlaced.Event("k", order{})
	for name, e := range map[string]stream.Event{
		"no type":        {ID: "1"},
		"no id":          {Type: "t"},
		"too large":      {ID: "1", Type: "t", Data: make([]byte, stream.MaxData+1)},
		"long key":       {ID: "1", Type: "t", Key: strings.Repeat("k", 12<<10)},
		"NUL":            {ID: "1\x00", Type: "t"},
		"not UTF-8":      {ID: "1", Type: "t", Key: "\xff"},
		"attribute name": {ID: "1", Type: "t", Attributes: map[string]string{"Tenant-ID": "x"}},
		"year 10000":     {ID: "1", Type: "t", Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
		"unencodable":    stream.Define[chan int]("t").Event("k", make(chan int)),
		"undefined":      stream.Define[order]("").Event("k", order{}),
	} {
		_, err := p.PublishBatch(t.Context(), topic, []stream.Event{good, e})
		require.Error(t, err, name)
		_, err = p.Publish(t.Context(), topic, e)
		require.Error(t, err, name)
	}
	require.Zero(t, rdb.Exists(t.Context(), topic.StreamKey(0)).Val())
}

func TestEventsAreCausedByTheOneBeingHandled(t *testing.T) {
	t.Parallel()
	rdb, topic := testenv.Redis(t), topicOf(t, 1)
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	first := orderPlaced.Event("k", order{})
	first.TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	ctx := stream.WithCause(t.Context(), first)
	second := orderPlaced.Event("k", order{})
	_, err = p.Publish(ctx, topic, second)
	require.NoError(t, err)
	second = readAll(t, rdb, topic, 1)[0].Event
	require.Equal(t, first.ID, second.CausationID)
	require.Equal(t, first.ID, second.CorrelationID, "the first event starts the conversation")
	require.Equal(t, first.TraceParent, second.TraceParent)

	third := orderPlaced.Event("k", order{})
	third.Stamp(stream.WithTraceParent(stream.WithCause(t.Context(), second), "other"), topic)
	require.Equal(t, second.ID, third.CausationID)
	require.Equal(t, first.ID, third.CorrelationID)
	require.Equal(t, "other", third.TraceParent)
}

// A server that stalls answers nothing in time; go-redis would send the command again.
func TestStalledServerGetsEachEventOnce(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	rdb := testenv.RedisClient(t, server.URL(), func(o *redis.Options) { o.ReadTimeout = 100 * time.Millisecond })
	topic := topicOf(t, 1)
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	_, err = p.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
	require.NoError(t, err)

	require.NoError(t, server.Pause())
	_, err = p.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
	require.ErrorIs(t, err, stream.ErrUnknown)
	results, err := p.PublishBatch(t.Context(), topic, []stream.Event{orderPlaced.Event("k", order{}), orderPlaced.Event("k", order{})})
	require.ErrorIs(t, err, stream.ErrUnknown)
	for _, r := range results {
		require.ErrorIs(t, r.Err, stream.ErrUnknown)
	}
	require.NoError(t, server.Resume())
	seen := map[string]bool{}
	for _, entry := range readAll(t, rdb, topic, 4) {
		require.False(t, seen[entry.Event.ID], "an event was written twice")
		seen[entry.Event.ID] = true
	}
}

// 100 publishes while servers stall, one by one and in pipelines, through a Client and a
// ClusterClient: whatever the callers were told, no event is there twice.
func TestAHundredPublishesToStallingServersLeaveAtMostOneEntryEach(t *testing.T) {
	t.Parallel()
	single := testenv.PrivateRedis(t, servers.RedisConfig{})
	cluster := testenv.Cluster(t)
	options := redis.ClusterOptions{Addrs: cluster.Addrs(), ReadTimeout: 50 * time.Millisecond, WriteTimeout: 50 * time.Millisecond}
	clusterRDB := redis.NewClusterClient(&options)
	t.Cleanup(func() { _ = clusterRDB.Close() })
	patient := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	t.Cleanup(func() { _ = patient.Close() })
	for name, c := range map[string]struct {
		rdb, patient redis.UniversalClient
		nodes        []*servers.Redis
	}{
		"client": {
			testenv.RedisClient(t, single.URL(), func(o *redis.Options) { o.ReadTimeout = 50 * time.Millisecond }),
			testenv.RedisClient(t, single.URL()),
			[]*servers.Redis{single},
		},
		"cluster": {clusterRDB, patient, cluster.Nodes()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := topicOf(t, 4)
			p := publisher(t, c.rdb, stream.PublisherConfig{})
			require.Eventually(t, func() bool {
				_, err := p.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
				return err == nil
			}, 30*time.Second, 10*time.Millisecond)
			stop := make(chan struct{})
			var stalling sync.WaitGroup
			stalling.Go(func() { // stall for twice the timeout, over and over
				for {
					for _, node := range c.nodes {
						assert.NoError(t, node.Pause())
					}
					select {
					case <-time.After(120 * time.Millisecond):
					case <-t.Context().Done():
					}
					for _, node := range c.nodes {
						assert.NoError(t, node.Resume())
					}
					select {
					case <-stop:
						return
					case <-time.After(30 * time.Millisecond):
					}
				}
			})
			var publishing sync.WaitGroup
			var unknown atomic.Int32
			for i := range 10 {
				publishing.Go(func() {
					for k := range 5 {
						_, err := p.Publish(t.Context(), topic, orderPlaced.Event(strconv.Itoa(i*k), order{}))
						batch := make([]stream.Event, 5)
						for b := range batch {
							batch[b] = orderPlaced.Event(strconv.Itoa(i*k+b), order{})
						}
						_, batchErr := p.PublishBatch(t.Context(), topic, batch)
						if errors.Is(err, stream.ErrUnknown) || errors.Is(batchErr, stream.ErrUnknown) {
							unknown.Add(1)
						}
					}
				})
			}
			publishing.Wait()
			close(stop)
			stalling.Wait()
			require.Positive(t, unknown.Load(), "no server stalled in the way of a publish")
			seen := map[string]bool{}
			for _, key := range topic.StreamKeys() {
				entries, err := c.patient.XRange(t.Context(), key, "-", "+").Result()
				require.NoError(t, err)
				for _, en := range entries {
					id, _ := en.Values["id"].(string)
					require.False(t, seen[id], "event %s is there twice", id)
					seen[id] = true
				}
			}
		})
	}
}

func TestRefusedConnectionIsNotUnknown(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", DialerRetries: 1})
	t.Cleanup(func() { _ = rdb.Close() })
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	_, err = p.Publish(t.Context(), topicOf(t, 1), orderPlaced.Event("k", order{}))
	require.Error(t, err)
	require.NotErrorIs(t, err, stream.ErrUnknown)
}

func TestUnfitServersAreRefused(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Settings: map[string]string{"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}})
	rdb := testenv.RedisClient(t, server.URL())
	topic := topicOf(t, 1)
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	_, err = p.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
	require.ErrorIs(t, err, stream.ErrEviction)
	p, err = stream.NewPublisher(rdb, stream.PublisherConfig{AllowEviction: true})
	require.NoError(t, err)
	_, err = p.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
	require.NoError(t, err)

	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": server.Addr()}})
	t.Cleanup(func() { _ = ring.Close() })
	require.ErrorIs(t, stream.CheckServer(t.Context(), ring, false), stream.ErrUnsupportedServer)
}

func TestClusterIsPublishedToAndReadFrom(t *testing.T) {
	t.Parallel()
	rdb := clusterClient(t)
	topic := topicOf(t, 6)
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	events := make([]stream.Event, 300)
	for i := range events {
		events[i] = orderPlaced.Event(string(rune('a'+i%26)), order{Cents: int64(i)})
	}
	_, err = p.PublishBatch(t.Context(), topic, events)
	require.NoError(t, err)
	require.Len(t, readAll(t, rdb, topic, 300), 300)
}

func TestTimesStandInUTC(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	p := publisher(t, rdb, stream.PublisherConfig{})
	at := time.Date(2026, 2, 3, 4, 5, 6, 789_000, time.UTC)
	for _, topic := range []stream.Topic{{Name: "plain"}, {Name: "dedup", Dedup: time.Minute}} {
		topic.Namespace = testenv.Namespace(t)
		e := orderPlaced.Event("k", order{})
		e.Time, e.Expires = at.In(time.FixedZone("east", 3600)), at
		_, err := p.Publish(t.Context(), topic, e)
		require.NoError(t, err)
		fields := rdb.XRange(t.Context(), topic.StreamKey(0), "-", "+").Val()[0].Values
		require.Equal(t, "2026-02-03T04:05:06.000789Z", fields["time"])
		require.Equal(t, fields["time"], fields["expirytime"])
	}
}
