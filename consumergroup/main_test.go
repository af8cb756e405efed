package consumergroup_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

// fixture is a topic of its own on the shared Redis, and what a test does with it.
type fixture struct {
	t     testing.TB
	rdb   redis.UniversalClient
	topic stream.Topic
}

type order struct {
	N int `json:"n"`
}

var orderPlaced = stream.Define[order]("order.placed")

func newFixture(t testing.TB, partitions int) *fixture {
	t.Helper()
	return &fixture{t: t, rdb: testenv.Redis(t), topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t), Partitions: partitions}}
}

// publish writes n orders, numbered from 0, with keys that spread them.
func (f *fixture) publish(n int) []stream.Event {
	f.t.Helper()
	p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
	require.NoError(f.t, err)
	events := make([]stream.Event, n)
	for i := range events {
		events[i] = orderPlaced.Event(string(rune('a'+i%26)), order{N: i})
	}
	_, err = p.PublishBatch(f.t.Context(), f.topic, events)
	require.NoError(f.t, err)
	return events
}

// config is that of a consumer which waits for nothing longer than a test should.
func (f *fixture) config(handler consumergroup.Handler) consumergroup.Config {
	return consumergroup.Config{
		Topics: []stream.Topic{f.topic}, Group: "billing", Handler: handler, Concurrency: 4,
		Limits:          pel.Limits{MinIdle: 600 * time.Millisecond},
		Retry:           consumergroup.Policy{MaxAttempts: 3, MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond},
		ShutdownTimeout: 5 * time.Second,
		Logger:          slog.New(slog.DiscardHandler),
	}
}

// running is a consumer in a goroutine.
type running struct {
	*consumergroup.Consumer
	cancel func()
	stop   func() error // cancels Run and returns its error
	ended  func() error // waits until Run returns by itself
}

// run starts a consumer; the test's end stops it.
func (f *fixture) run(cfg consumergroup.Config) *running {
	f.t.Helper()
	c, err := consumergroup.New(f.rdb, cfg)
	require.NoError(f.t, err)
	ctx, cancel := context.WithCancel(f.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	wait := sync.OnceValue(func() error {
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return errors.New("Run did not return")
		}
	})
	stop := func() error { cancel(); return wait() }
	f.t.Cleanup(func() { _ = stop() })
	return &running{c, cancel, stop, wait}
}

func (f *fixture) keys(p int) pel.Keys { return pel.KeysOf(f.topic.StreamKey(p), "billing") }

// atRest waits until the group has nothing pending, no retry, and nothing unread.
func (f *fixture) atRest() {
	f.t.Helper()
	require.Eventually(f.t, func() bool {
		for p := range f.topic.Count() {
			k := f.keys(p)
			ctx, tx := f.t.Context(), f.rdb.TxPipeline() // an attempt that fails moves its entry from one to the other
			infos := []*redis.XInfoGroupsCmd{tx.XInfoGroups(ctx, k.Stream), tx.XInfoGroups(ctx, k.Retry)}
			due, retry := tx.ZCard(ctx, k.Due), tx.XLen(ctx, k.Retry)
			if _, err := tx.Exec(ctx); err != nil || due.Val() != 0 || retry.Val() != 0 {
				return false
			}
			for _, info := range infos {
				if groups := info.Val(); len(groups) != 1 || groups[0].Pending != 0 || groups[0].Lag != 0 {
					return false
				}
			}
		}
		return true
	}, patience, 10*time.Millisecond, "the group does not come to rest")
}

// ledger counts what a handler was given.
type ledger struct {
	mu    sync.Mutex
	times map[string]int
}

func (l *ledger) add(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.times == nil {
		l.times = map[string]int{}
	}
	l.times[id]++
	return l.times[id]
}

func (l *ledger) count(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.times[id]
}

func (l *ledger) eventually(t testing.TB, events []stream.Event, times int) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, e := range events {
			if l.count(e.ID) < times {
				return false
			}
		}
		return true
	}, patience, 5*time.Millisecond, "not every event was handled %d times", times)
}

// observer collects observations.
type observer struct {
	mu  sync.Mutex
	all []consumergroup.Observation
}

func (o *observer) Observe(_ context.Context, one consumergroup.Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, one)
}

func (o *observer) count(m consumergroup.Moment) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, one := range o.all {
		if one.Moment == m {
			n++
		}
	}
	return n
}
