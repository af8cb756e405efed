package stream_test

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func publisher(t testing.TB, rdb redis.UniversalClient, config stream.PublisherConfig) *stream.Publisher {
	t.Helper()
	p, err := stream.NewPublisher(rdb, config)
	require.NoError(t, err)
	return p
}

func TestRepeatedPublishWithinTheWindowChangesNothing(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := topicOf(t, 2)
	topic.Dedup = time.Minute
	p := publisher(t, rdb, stream.PublisherConfig{})
	events := make([]stream.Event, 350)
	for i := range events {
		events[i] = orderPlaced.Event(strconv.Itoa(i), order{Cents: int64(i)})
	}
	first, err := p.PublishBatch(t.Context(), topic, events)
	require.NoError(t, err)
	again, err := p.PublishBatch(t.Context(), topic, events)
	require.NoError(t, err)
	for i := range first {
		require.False(t, first[i].Duplicate)
		require.True(t, again[i].Duplicate)
		require.Equal(t, first[i].ID, again[i].ID, "a duplicate has the place of the first")
		require.Equal(t, first[i].Stream, again[i].Stream)
	}
	one, err := p.Publish(t.Context(), topic, events[7])
	require.NoError(t, err)
	require.True(t, one.Duplicate)
	other := events[7]
	other.Source = "another"
	one, err = p.Publish(t.Context(), topic, other)
	require.NoError(t, err)
	require.False(t, one.Duplicate, "events are the same if source and id are")
	for source, id := range map[string]string{"a": "b/c", "a/b": "c"} {
		other.Source, other.ID = source, id
		one, err = p.Publish(t.Context(), topic, other)
		require.NoError(t, err)
		require.False(t, one.Duplicate, "%s %s", source, id)
	}
	readAll(t, rdb, topic, len(events)+3)
}

// Events of one call say the names of their fields once, if they have the same ones.
func TestEventsOfAllShapesComeBackWithDedup(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := topicOf(t, 1)
	topic.Dedup = time.Minute
	p := publisher(t, rdb, stream.PublisherConfig{})
	var events []stream.Event
	for i := range 200 {
		e := orderPlaced.Event("k", order{Cents: int64(i)})
		e.Source = "shop"
		if events = append(events, e); i%50 > 20 { // many of the same
			continue
		}
		e.Attributes = map[string]string{}
		if i%2 == 0 {
			e.Schema = "v1"
		}
		if i%3 == 0 {
			e.Expires = e.Time.Add(time.Hour)
		}
		if i%5 == 0 {
			e.Key = ""
		}
		for a := range i % 7 {
			e.Attributes["a"+strconv.Itoa(a)] = strconv.Itoa(i)
		}
		if len(e.Attributes) == 0 {
			e.Attributes = nil
		}
		events[i] = e
	}
	results, err := p.PublishBatch(t.Context(), topic, append(events, events[150:]...))
	require.NoError(t, err)
	for i, entry := range readAll(t, rdb, topic, len(events)) {
		require.NoError(t, entry.Err)
		require.Equal(t, events[i], entry.Event)
		require.Equal(t, results[i].ID, entry.ID)
	}
	for i, again := range results[len(events):] {
		require.True(t, again.Duplicate)
		require.Equal(t, results[150+i].ID, again.ID)
	}
	results, err = p.PublishBatch(t.Context(), topic, []stream.Event{events[0], orderPlaced.Event("k", order{}), events[0]})
	require.NoError(t, err)
	require.Equal(t, []bool{true, false, true}, []bool{results[0].Duplicate, results[1].Duplicate, results[2].Duplicate})
	twice := orderPlaced.Event("k", order{})
	results, err = p.PublishBatch(t.Context(), topic, []stream.Event{twice, twice})
	require.NoError(t, err)
	require.Equal(t, results[0].ID, results[1].ID, "the second of one call is a duplicate too")
	require.True(t, results[1].Duplicate)
	readAll(t, rdb, topic, len(events)+2)
}

// A call that fails in its middle remembers what it added, so that a repeat adds only the rest.
func TestRepeatedCallThatFailedInItsMiddleAddsTheRest(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := topicOf(t, 1)
	topic.Dedup = time.Minute
	p := publisher(t, rdb, stream.PublisherConfig{})
	key := topic.StreamKey(0)
	const last = "18446744073709551615-18446744073709551613" // two more, and the stream has no IDs left
	require.NoError(t, rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: key, ID: last, Values: []string{"a", "b"}}).Err())
	events := make([]stream.Event, 3)
	for i := range events {
		events[i] = orderPlaced.Event("k", order{})
	}
	_, err := p.PublishBatch(t.Context(), topic, events)
	require.ErrorContains(t, err, "exhausted")
	require.Equal(t, int64(3), rdb.XLen(t.Context(), key).Val())
	require.NoError(t, rdb.Del(t.Context(), key).Err())
	results, err := p.PublishBatch(t.Context(), topic, events)
	require.NoError(t, err)
	require.Equal(t, []bool{true, true, false}, []bool{results[0].Duplicate, results[1].Duplicate, results[2].Duplicate})
}

func TestIdsAreForgottenAfterTheWindowAndNotBefore(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := topicOf(t, 1)
	topic.Dedup = 400 * time.Millisecond
	p := publisher(t, rdb, stream.PublisherConfig{})
	e := orderPlaced.Event("k", order{})
	began := time.Now()
	_, err := p.Publish(t.Context(), topic, e)
	require.NoError(t, err)
	// Others go on publishing, so that the hashes change places as they do in production.
	require.Eventually(t, func() bool {
		_, err := p.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
		require.NoError(t, err)
		sent := time.Now()
		again, err := p.Publish(t.Context(), topic, e)
		require.NoError(t, err)
		if sent.Sub(began) < topic.Dedup {
			require.True(t, again.Duplicate, "forgotten after %s", sent.Sub(began))
		}
		return !again.Duplicate
	}, 30*time.Second, 10*time.Millisecond, "never forgotten")
	key := topic.StreamKey(0)
	for _, group := range []string{"", "0", "1"} {
		ttl, err := rdb.PTTL(t.Context(), stream.KeyDedup.Key(key, group)).Result()
		require.NoError(t, err)
		require.NotEqual(t, time.Duration(-1), ttl, "a topic that falls silent leaves nothing behind")
	}
}

// The promise of Dedup: after an unknown outcome the same event may be published again.
func TestUnknownOutcomesAreSafeToRepeatWithDedup(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	rdb := testenv.RedisClient(t, server.URL(), func(o *redis.Options) { o.ReadTimeout = 100 * time.Millisecond })
	topic := topicOf(t, 1)
	topic.Dedup = time.Minute
	p := publisher(t, rdb, stream.PublisherConfig{})
	_, err := p.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
	require.NoError(t, err)
	events := []stream.Event{orderPlaced.Event("k", order{}), orderPlaced.Event("k", order{})}
	require.NoError(t, server.Pause())
	_, err = p.PublishBatch(t.Context(), topic, events)
	require.ErrorIs(t, err, stream.ErrUnknown)
	require.NoError(t, server.Resume())
	require.Eventually(t, func() bool {
		_, err = p.PublishBatch(t.Context(), topic, events)
		return err == nil
	}, 30*time.Second, 10*time.Millisecond)
	readAll(t, rdb, topic, 3)
}

func TestFullPartitionsAreRefused(t *testing.T) {
	t.Parallel()
	rdb, topic := testenv.Redis(t), topicOf(t, 2)
	p := publisher(t, rdb, stream.PublisherConfig{MaxLen: 3, Reject: true})
	for range 3 {
		_, err := p.PublishTo(t.Context(), topic, 0, []stream.Event{orderPlaced.Event("k", order{})})
		require.NoError(t, err)
	}
	results, err := p.PublishTo(t.Context(), topic, 0, []stream.Event{orderPlaced.Event("k", order{})})
	require.ErrorIs(t, err, stream.ErrBackpressure)
	require.ErrorIs(t, results[0].Err, stream.ErrBackpressure)
	_, err = p.PublishTo(t.Context(), topic, 1, []stream.Event{orderPlaced.Event("k", order{})})
	require.NoError(t, err, "the other partition has room")
	require.EqualValues(t, 3, rdb.XLen(t.Context(), topic.StreamKey(0)).Val())
	_, err = p.PublishTo(t.Context(), topic, 2, nil)
	require.ErrorIs(t, err, stream.ErrInvalid)
	require.NoError(t, rdb.Set(t.Context(), topic.StreamKey(1)+"x", "", 0).Err())
	wrong := topic
	wrong.Partitions, wrong.Name, wrong.Stream = 1, "wrong", topic.StreamKey(1)+"x"
	_, err = p.Publish(t.Context(), wrong, orderPlaced.Event("k", order{}))
	require.True(t, redisx.IsWrongType(err))
}

func TestNobodyWaitsForReplicasOfWhatWasRefused(t *testing.T) {
	t.Parallel()
	rdb, topic := testenv.RedisClient(t, testenv.PrivateRedis(t, servers.RedisConfig{}).URL()), topicOf(t, 1)
	_, err := publisher(t, rdb, stream.PublisherConfig{}).Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
	require.NoError(t, err)
	p := publisher(t, rdb, stream.PublisherConfig{MaxLen: 1, Reject: true, Replicas: 1})
	_, err = p.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
	require.ErrorIs(t, err, stream.ErrBackpressure)
	require.NotContains(t, rdb.Info(t.Context(), "commandstats").Val(), "cmdstat_wait:")
}

func TestReplicasAndDisksConfirmOrTheOutcomeSaysSo(t *testing.T) {
	t.Parallel()
	primary := testenv.PrivateRedis(t, servers.RedisConfig{AppendOnly: true})
	replica := testenv.PrivateRedis(t, servers.RedisConfig{ReplicaOf: primary.Addr(), AppendOnly: true})
	rdb := testenv.RedisClient(t, primary.URL())
	topic := topicOf(t, 1)
	require.Eventually(t, func() bool { return rdb.Wait(t.Context(), 1, 100*time.Millisecond).Val() == 1 }, 30*time.Second, 10*time.Millisecond)
	server, err := redisx.Probe(t.Context(), rdb, "")
	require.NoError(t, err)
	configs := []stream.PublisherConfig{{Replicas: 1}}
	if server.AtLeast(7, 2) {
		configs = append(configs, stream.PublisherConfig{Replicas: 1, Fsync: true}, stream.PublisherConfig{Fsync: true})
	} else {
		_, err := publisher(t, rdb, stream.PublisherConfig{Fsync: true}).Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
		require.ErrorIs(t, err, stream.ErrUnsupportedServer)
	}
	for _, config := range configs {
		config.DurableTimeout = 2 * time.Second
		_, err := publisher(t, rdb, config).Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
		require.NoError(t, err)
		_, err = publisher(t, rdb, config).PublishBatch(t.Context(), topic, []stream.Event{orderPlaced.Event("k", order{}), orderPlaced.Event("j", order{})})
		require.NoError(t, err)
	}
	require.NoError(t, replica.Pause())
	t.Cleanup(func() { _ = replica.Resume() })
	for _, config := range configs {
		if config.Replicas == 0 {
			continue
		}
		config.DurableTimeout = 50 * time.Millisecond
		length := rdb.XLen(t.Context(), topic.StreamKey(0)).Val()
		result, err := publisher(t, rdb, config).Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
		require.ErrorIs(t, err, stream.ErrNotDurable)
		require.NotZero(t, result.ID, "it is written all the same")
		require.Equal(t, length+1, rdb.XLen(t.Context(), topic.StreamKey(0)).Val())
	}
}

func TestClusterConfirmsAndDedupsOnEachNode(t *testing.T) {
	t.Parallel()
	rdb := clusterClient(t)
	topic := topicOf(t, 6)
	topic.Dedup = time.Minute
	events := make([]stream.Event, 200)
	for i := range events {
		events[i] = orderPlaced.Event(strconv.Itoa(i), order{})
	}
	p := publisher(t, rdb, stream.PublisherConfig{Replicas: 1, DurableTimeout: 20 * time.Millisecond})
	results, err := p.PublishBatch(t.Context(), topic, events)
	require.ErrorIs(t, err, stream.ErrNotDurable, "no node has a replica")
	for _, r := range results {
		require.NotZero(t, r.ID)
	}
	results, err = publisher(t, rdb, stream.PublisherConfig{MaxLen: 1000, Reject: true}).PublishBatch(t.Context(), topic, events)
	require.NoError(t, err)
	for _, r := range results {
		require.True(t, r.Duplicate)
	}
}

func TestPublisherConfigsAreValidatedWhole(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	_, err := stream.NewPublisher(rdb, stream.PublisherConfig{Replicas: -1, DurableTimeout: -1, MaxLen: 5})
	for _, part := range []string{"Replicas -1", "DurableTimeout -1ns", "MaxLen and Reject"} {
		require.ErrorContains(t, err, part)
	}
	_, err = stream.NewPublisher(rdb, stream.PublisherConfig{Replicas: 1, DurableTimeout: time.Minute})
	require.ErrorContains(t, err, "below the client's ReadTimeout")
	_, err = stream.NewPublisher(nil, stream.PublisherConfig{})
	require.ErrorIs(t, err, stream.ErrInvalid)
	_, err = stream.NewBatcher(nil, stream.BatcherConfig{MaxEvents: -1, Linger: time.Second})
	for _, part := range []string{"publisher is nil", "MaxEvents -1", "Linger 1s"} {
		require.ErrorContains(t, err, part)
	}
}

func TestBatcherCarriesEventsOfManyGoroutinesTogether(t *testing.T) {
	t.Parallel()
	rdb, topic := testenv.Redis(t), topicOf(t, 4)
	var pipelines pipelineCounter
	rdb.AddHook(&pipelines)
	b, err := stream.NewBatcher(publisher(t, rdb, stream.PublisherConfig{}), stream.BatcherConfig{MaxEvents: 16})
	require.NoError(t, err)
	const goroutines, each = 64, 30
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				e := orderPlaced.Event("g"+strconv.Itoa(g), order{Cents: int64(i)})
				if g == 0 && i == 5 {
					e.Type = ""
				}
				result, err := b.Publish(t.Context(), topic, e)
				if e.Type == "" {
					assert.ErrorIs(t, err, stream.ErrInvalid, "an invalid event fails alone")
					continue
				}
				assert.NoError(t, err)
				assert.NotZero(t, result.ID)
			}
		})
	}
	wg.Wait()
	last := map[string]int64{}
	for _, entry := range readAll(t, rdb, topic, goroutines*each-1) {
		o, err := orderPlaced.Decode(entry.Event)
		require.NoError(t, err)
		before, seen := last[entry.Event.Key]
		require.True(t, !seen || o.Cents > before, "a goroutine's events are out of order")
		last[entry.Event.Key] = o.Cents
	}
	require.Less(t, pipelines.count(), goroutines*each/3, "events were not carried together")
}

func TestBatcherTellsEachCallerItsOutcome(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	rdb := testenv.RedisClient(t, server.URL(), func(o *redis.Options) { o.ReadTimeout = 300 * time.Millisecond })
	topic := topicOf(t, 1)
	b, err := stream.NewBatcher(publisher(t, rdb, stream.PublisherConfig{}), stream.BatcherConfig{})
	require.NoError(t, err)
	published := func() bool {
		_, err := b.Publish(t.Context(), topic, orderPlaced.Event("k", order{}))
		return err == nil
	}
	require.Eventually(t, published, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, server.Pause())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx := t.Context()
			if i%2 == 1 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			_, err := b.Publish(ctx, topic, orderPlaced.Event("k", order{}))
			assert.ErrorIs(t, err, stream.ErrUnknown)
		})
	}
	wg.Wait()
	require.NoError(t, server.Resume())
	require.Eventually(t, published, 30*time.Second, 10*time.Millisecond)
}

// A server forgets scripts at a failover, of all moments: what counts as confirmed was written before the WAIT.
func TestWaitStandsBehindAScriptThatTheServerDidNotKnow(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	rdb := testenv.RedisClient(t, server.URL())
	var sent pipelineCounter
	rdb.AddHook(&sent)
	topic := topicOf(t, 1)
	topic.Dedup = time.Minute
	p := publisher(t, rdb, stream.PublisherConfig{Replicas: 1, DurableTimeout: 20 * time.Millisecond})
	events := make([]stream.Event, 150)
	for i := range events {
		events[i] = orderPlaced.Event("k", order{})
	}
	results, err := p.PublishBatch(t.Context(), topic, events)
	require.ErrorIs(t, err, stream.ErrNotDurable)
	require.Equal(t, []string{"evalsha evalsha wait", "eval eval wait"}, sent.names[len(sent.names)-2:])
	again, err := publisher(t, rdb, stream.PublisherConfig{}).PublishBatch(t.Context(), topic, events)
	require.NoError(t, err)
	for i, r := range results {
		require.False(t, r.Duplicate)
		require.NotZero(t, r.ID)
		require.Equal(t, r.ID, again[i].ID)
	}
}

// pipelineCounter counts the pipelines that a client sends, and notes the names of their commands.
type pipelineCounter struct {
	mu    sync.Mutex
	n     int
	names []string
}

func (c *pipelineCounter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *pipelineCounter) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (c *pipelineCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (c *pipelineCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		names := make([]string, len(cmds))
		for i, cmd := range cmds {
			names[i] = cmd.Name()
		}
		c.mu.Lock()
		c.n++
		c.names = append(c.names, strings.Join(names, " "))
		c.mu.Unlock()
		return next(ctx, cmds)
	}
}
