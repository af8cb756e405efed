package consumergroup_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// orderly records what handlers of an ordered group are given, and what is out of order.
type orderly struct {
	mu      sync.Mutex
	busy    map[string]bool  // keys whose handler runs
	done    map[string][]int // what was handled, by key
	wrong   []string
	handled int
}

// enter notes that a handler of the key begins.
func (o *orderly) enter(key string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy == nil {
		o.busy, o.done = map[string]bool{}, map[string][]int{}
	}
	if o.busy[key] {
		o.wrong = append(o.wrong, fmt.Sprintf("%s/%d beside another of its key", key, n))
	}
	o.busy[key] = true
}

// leave notes that it ended, and that the event was handled if it was.
func (o *orderly) leave(key string, n int, handled bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy[key] = false
	if !handled {
		return
	}
	if done := o.done[key]; len(done) > 0 && done[len(done)-1] >= n {
		o.wrong = append(o.wrong, fmt.Sprintf("%s/%d after %d", key, n, done[len(done)-1]))
	}
	o.done[key] = append(o.done[key], n)
	o.handled++
}

func (o *orderly) of(key string) []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]int(nil), o.done[key]...)
}

func (o *orderly) eventually(t testing.TB, handled int) {
	t.Helper()
	require.Eventually(t, func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.handled >= handled },
		2*patience, 5*time.Millisecond, "not everything was handled")
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Empty(t, o.wrong)
	require.Equal(t, handled, o.handled)
}

// handler handles orders through o, with what the test does in between.
func (o *orderly) handler(do func(ctx context.Context, e stream.Event, n int) error) consumergroup.Handler {
	mux := consumergroup.NewMux()
	consumergroup.Handle(mux, orderPlaced, func(ctx context.Context, e stream.Event, v order) error {
		o.enter(e.Key, v.N)
		err := do(ctx, e, v.N)
		o.leave(e.Key, v.N, err == nil)
		return err
	})
	return mux
}

func (f *fixture) ordered(handler consumergroup.Handler) consumergroup.Config {
	cfg := f.config(handler)
	cfg.Ordered = true
	cfg.MinIdle = 2 * time.Second
	return cfg
}

// publishKeys writes an order for each of the keys, numbered from 0.
func (f *fixture) publishKeys(keys ...string) []stream.Event {
	f.t.Helper()
	p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
	require.NoError(f.t, err)
	events := make([]stream.Event, len(keys))
	for i, key := range keys {
		events[i] = orderPlaced.Event(key, order{N: i})
	}
	_, err = p.PublishBatch(f.t.Context(), f.topic, events)
	require.NoError(f.t, err)
	return events
}

func TestOrderedGroupKeepsTheOrderOfEachKeyThroughFailures(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 4)
	events := f.publish(2000)
	var o orderly
	var runs ledger
	var generations sync.Map
	cfg := f.ordered(o.handler(func(ctx context.Context, e stream.Event, n int) error {
		m, _ := consumergroup.MetadataFrom(ctx)
		generations.Store(m.Generation, true)
		if run := runs.add(e.ID); run != m.Attempt || run != m.Deliveries {
			return consumergroup.Permanent(fmt.Errorf("run %d is attempt %d, delivery %d", run, m.Attempt, m.Deliveries))
		}
		if n%20 == 3 && m.Attempt < 3 {
			return errors.New("not yet")
		}
		return nil
	}))
	obs := &observer{}
	cfg.Observer = obs
	a, b := f.run(cfg), f.run(cfg)
	o.eventually(t, len(events))
	f.atRest()
	require.Equal(t, 200, obs.count(consumergroup.Retried))
	require.Zero(t, obs.count(consumergroup.DeadLettered))
	generations.Range(func(g, _ any) bool {
		require.Greater(t, g, int64(1e12), "handlers get the generation as a fence")
		return true
	})
	require.NoError(t, a.stop())
	require.NoError(t, b.stop())
	f.leftClean()
}

// leftClean requires that nothing of consumers is left.
func (f *fixture) leftClean() {
	f.t.Helper()
	for p := range f.topic.Count() {
		k := f.keys(p)
		for _, key := range []string{k.Stream, k.Retry} {
			consumers, err := f.rdb.XInfoConsumers(f.t.Context(), key, "billing").Result()
			require.NoError(f.t, err)
			require.Empty(f.t, consumers, "a clean stop leaves no name behind")
		}
		require.Zero(f.t, f.rdb.Exists(f.t.Context(), k.Members, k.Attempts).Val())
		require.Empty(f.t, f.rdb.HGet(f.t.Context(), k.Hash, "lease-owner").Val())
	}
}

func TestFailingKeyHoldsBackItselfOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.publishKeys("bad", "good", "bad", "good", "", "bad", "good")
	var o orderly
	var mend atomic.Bool
	cfg := f.ordered(o.handler(func(_ context.Context, e stream.Event, n int) error {
		if n == 0 && !mend.Load() {
			return errors.New("no money")
		}
		return nil
	}))
	cfg.Concurrency, cfg.Retry.MaxAttempts = 1, 1000
	cfg.MaxDeliveries = 1000
	f.run(cfg)
	o.eventually(t, 4)
	require.Equal(t, []int{1, 3, 6}, o.of("good"))
	require.Empty(t, o.of("bad"))
	require.Zero(t, f.rdb.ZCard(t.Context(), f.keys(0).Due).Val(), "a retry would let later events of the key pass")
	mend.Store(true)
	o.eventually(t, 7)
	require.Equal(t, []int{0, 2, 5}, o.of("bad"))
	f.atRest()
	require.Zero(t, f.rdb.Exists(t.Context(), f.keys(0).Attempts).Val())
}

func TestPoisonOfAnOrderedGroupBecomesALetterAndItsKeyGoesOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publishKeys("k", "k", "k", "k")
	var o orderly
	cfg := f.ordered(o.handler(func(_ context.Context, _ stream.Event, n int) error {
		switch n {
		case 0:
			return errors.New("never works")
		case 2:
			return consumergroup.Permanent(errors.New("cannot work"))
		}
		return nil
	}))
	f.run(cfg)
	o.eventually(t, 2)
	f.atRest()
	require.Equal(t, []int{1, 3}, o.of("k"))
	q, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
	require.NoError(t, err)
	require.Len(t, page.Letters, 2)
	require.Equal(t, dlq.ReasonAttempts, page.Letters[0].Reason)
	require.Equal(t, 3, page.Letters[0].Attempts)
	require.Equal(t, 3, page.Letters[0].Deliveries)
	require.Equal(t, events[0].ID, page.Letters[0].Entry.Event.ID)
	require.Equal(t, dlq.ReasonPermanent, page.Letters[1].Reason)
	require.Zero(t, f.rdb.Exists(t.Context(), f.keys(0).Attempts).Val())

	// A letter that is given back is handled by this group, once the key's turn comes.
	_, err = q.Purge(t.Context(), dlq.Ref{ID: page.Letters[0].ID})
	require.NoError(t, err)
	n, err := q.Redrive(t.Context(), dlq.Ref{ID: page.Letters[1].ID})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Eventually(t, func() bool { n, err := q.Count(t.Context()); return err == nil && n == 1 }, patience, 5*time.Millisecond)
	f.atRest()
}

func TestParkedKeyWaitsForAPersonAlsoWithAnotherOwner(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.publishKeys("a", "b", "a", "b", "c")
	var o orderly
	var mend atomic.Bool
	cfg := f.ordered(o.handler(func(_ context.Context, _ stream.Event, n int) error {
		if n < 2 && !mend.Load() {
			return consumergroup.Permanent(errors.New("cannot work"))
		}
		return nil
	}))
	obs := &observer{}
	cfg.OnPoison, cfg.Observer = consumergroup.PoisonParkKey, obs
	first := f.run(cfg)
	o.eventually(t, 1)
	require.Eventually(t, func() bool { return obs.count(consumergroup.Parked) == 2 }, patience, 5*time.Millisecond)
	require.NoError(t, first.stop())
	f.run(cfg)
	k := f.keys(0)
	var places []pel.Place
	require.Eventually(t, func() bool {
		notes, err := pel.Noted(t.Context(), f.rdb, k)
		places = places[:0]
		for p, n := range notes {
			if n.State == pel.NoteParked && n.Reason == dlq.ReasonPermanent && n.Attempts == 1 && n.Error == "cannot work" {
				places = append(places, p)
			}
		}
		return err == nil && len(places) == 2
	}, patience, 5*time.Millisecond)
	if places[0].ID.Compare(places[1].ID) > 0 {
		places[0], places[1] = places[1], places[0]
	}
	mend.Store(true)
	require.NoError(t, pel.Decide(t.Context(), f.rdb, k, places[0], pel.NoteRetry))
	require.NoError(t, pel.Decide(t.Context(), f.rdb, k, places[1], pel.NoteDead))
	require.ErrorIs(t, pel.Decide(t.Context(), f.rdb, k, pel.Place{ID: stream.ID{Ms: 1}}, pel.NoteDead), pel.ErrNotParked)
	require.ErrorContains(t, pel.Decide(t.Context(), f.rdb, k, places[1], "burn"), "burn")
	o.eventually(t, 4)
	f.atRest()
	require.Equal(t, []int{0, 2}, o.of("a"))
	require.Equal(t, []int{3}, o.of("b"))
	q, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
	require.NoError(t, err)
	require.Len(t, page.Letters, 1)
	require.Equal(t, dlq.ReasonPermanent, page.Letters[0].Reason)
	require.Equal(t, "cannot work", page.Letters[0].Error)
	require.Zero(t, f.rdb.Exists(t.Context(), k.Attempts).Val())
}

func TestPartitionIsNotReadOnWhenTooMuchIsHeld(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	keys := make([]string, 3000)
	for i := range keys {
		keys[i] = "bad"
	}
	keys[len(keys)-1] = "good"
	f.publishKeys(keys...)
	var o orderly
	var mend atomic.Bool
	cfg := f.ordered(o.handler(func(_ context.Context, _ stream.Event, n int) error {
		if n == 0 && !mend.Load() {
			return errors.New("no money")
		}
		return nil
	}))
	cfg.MaxHeld, cfg.Retry.MaxAttempts, cfg.MaxDeliveries = 1000, 1_000_000, 1_000_000
	cfg.Retry.MinBackoff, cfg.Retry.MaxBackoff = 50*time.Millisecond, 50*time.Millisecond
	f.run(cfg)
	pending := func() int64 {
		p, err := f.rdb.XPending(t.Context(), f.keys(0).Stream, "billing").Result()
		if err != nil {
			return -1
		}
		return p.Count
	}
	require.Eventually(t, func() bool { return pending() > 1000 }, patience, 5*time.Millisecond)
	require.False(t, wait(t, 300*time.Millisecond))
	require.Less(t, pending(), int64(2000), "reading stops at MaxHeld, or a read behind it")
	require.Empty(t, o.of("good"))
	mend.Store(true)
	o.eventually(t, len(keys))
	f.atRest()
}

func TestPartitionsAreSharedOutEvenlyAsConsumersComeAndGo(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 8)
	var o orderly
	cfg := f.ordered(o.handler(func(context.Context, stream.Event, int) error { return nil }))
	share := func(want map[string]int) func() bool {
		return func() bool {
			keys := make([]pel.Keys, 8)
			for p := range keys {
				keys[p] = f.keys(p)
			}
			tenures, err := pel.Tenures(t.Context(), f.rdb, keys...)
			got := map[string]int{}
			for _, tenure := range tenures {
				if tenure.Held() {
					got[tenure.Owner]++
				}
			}
			return err == nil && fmt.Sprint(got) == fmt.Sprint(want)
		}
	}
	total := 0
	say := func() {
		keys := make([]string, 300)
		for i := range keys {
			keys[i] = fmt.Sprint(total, "-", i%50)
		}
		f.publishKeys(keys...)
		total += len(keys)
	}
	a := f.run(cfg)
	require.Eventually(t, share(map[string]int{a.Name(): 8}), patience, 5*time.Millisecond)
	say()
	b := f.run(cfg)
	require.Eventually(t, share(map[string]int{a.Name(): 4, b.Name(): 4}), patience, 5*time.Millisecond)
	say()
	c := f.run(cfg)
	require.Eventually(t, func() bool {
		return share(map[string]int{a.Name(): 3, b.Name(): 3, c.Name(): 2})() || share(map[string]int{a.Name(): 3, b.Name(): 2, c.Name(): 3})() ||
			share(map[string]int{a.Name(): 2, b.Name(): 3, c.Name(): 3})()
	}, patience, 5*time.Millisecond)
	say()
	require.NoError(t, a.stop())
	require.Eventually(t, share(map[string]int{b.Name(): 4, c.Name(): 4}), patience, 5*time.Millisecond)
	say()
	require.NoError(t, b.stop())
	require.Eventually(t, share(map[string]int{c.Name(): 8}), patience, 5*time.Millisecond)
	say()
	o.eventually(t, total)
	f.atRest()
	require.NoError(t, c.stop())
	f.leftClean()
}

func TestStopOfAnOrderedConsumerCountsNothingThatItDidNotBegin(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publishKeys("a", "a", "a", "b", "b", "c")
	started := make(chan struct{}, 10)
	cfg := f.ordered(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error {
		started <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}))
	cfg.Concurrency, cfg.ShutdownTimeout = 1, 50*time.Millisecond
	c := f.run(cfg)
	<-started
	require.NoError(t, c.stop())
	var seen ledger
	var o orderly
	cfg.Handler = o.handler(func(ctx context.Context, e stream.Event, _ int) error {
		if m, _ := consumergroup.MetadataFrom(ctx); m.Attempt == 1 && m.Deliveries == 1 {
			seen.add(e.ID)
		}
		return nil
	})
	c = f.run(cfg)
	o.eventually(t, len(events))
	seen.eventually(t, events, 1)
	f.atRest()
	require.NoError(t, c.stop())
	f.leftClean()
}

// slowAck is a hook that holds the first ack of a leased partition up until it is released.
type slowAck struct {
	k        pel.Keys
	began    chan struct{}
	released chan struct{}
	once     sync.Once
}

func (*slowAck) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*slowAck) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s *slowAck) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		// EVALSHA digest 2 stream hash, group consumer generation own IDs
		if a := cmd.Args(); len(a) > 9 && a[3] == s.k.Stream && a[4] == s.k.Hash && a[8] == "0" {
			s.once.Do(func() {
				close(s.began)
				<-s.released
			})
		}
		return next(ctx, cmd)
	}
}

func TestStopDoesNotGiveUpAPartitionBeforeItsAcksAreThere(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	slow := &slowAck{k: f.keys(0), began: make(chan struct{}), released: make(chan struct{})}
	f.rdb.AddHook(slow)
	var seen ledger
	cfg := f.ordered(consumergroup.HandlerFunc(func(_ context.Context, e stream.Event) error { seen.add(e.ID); return nil }))
	a := f.run(cfg)
	events := f.publish(20)
	select {
	case <-slow.began:
	case <-time.After(patience):
		t.Fatal("no ack was seen")
	}
	stopped := make(chan error, 1)
	go func() { stopped <- a.stop() }()
	// It waits at most half a second for the read at hand, and would give the lease up then.
	require.Never(t, func() bool { return !f.rdb.HExists(t.Context(), f.keys(0).Hash, "lease-owner").Val() }, time.Second, 10*time.Millisecond,
		"the lease is given up before the ack is there")
	close(slow.released)
	require.NoError(t, <-stopped)
	b := f.run(cfg)
	seen.eventually(t, append(events, f.publish(1)...), 1)
	f.atRest()
	require.NoError(t, b.stop())
	for _, e := range events {
		require.Equal(t, 1, seen.count(e.ID), "it was handled, and again by the next owner")
	}
	f.leftClean()
}

func TestConsumersThatDisagreeAboutOrderAreRefusedWhileOneOfTheOthersLives(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	handler := consumergroup.HandlerFunc(func(context.Context, stream.Event) error { return nil })
	is := map[bool]consumergroup.Config{false: f.config(handler), true: f.ordered(handler)}
	for _, ordered := range []bool{false, true, false} { // and when all have stopped, the group changes
		first := f.run(is[ordered])
		require.Eventually(t, func() bool {
			return f.rdb.Exists(t.Context(), f.keys(0).Members, f.keys(1).Members).Val() == 2
		}, patience, time.Millisecond)
		err := f.run(is[!ordered]).ended()
		require.ErrorIs(t, err, pel.ErrGroupKind)
		require.ErrorContains(t, err, first.Name())
		same := f.run(is[ordered])
		f.publish(20)
		f.atRest()
		groups, err := stream.Groups(t.Context(), f.rdb, f.topic)
		require.NoError(t, err)
		require.Equal(t, ordered, groups[0].Kind == stream.GroupOrdered, "the refused consumer is not in the registry")
		require.NoError(t, first.stop())
		require.NoError(t, same.stop())
	}
}
