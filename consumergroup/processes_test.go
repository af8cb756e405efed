package consumergroup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// The worker process of a group that processes are killed of: childKind makes one of the test
// binary, and says of which kind its group is.
const childKind = "CONSUMERGROUP_TEST_CHILD_KIND"

const crewMinIdle = 1500 * time.Millisecond

// crewDeaths is MaxDeliveries: more than the kills of a run are likely to hit an innocent event.
func crewDeaths() int {
	if testenv.IsLong() {
		return 6
	}
	return 3
}

// What an event does, by its number.
func fails(n int) bool   { return n%20 == 7 }     // its first attempt
func poison(n int) bool  { return n%100 == 42 }   // every attempt
func killing(n int) bool { return n%1000 == 500 } // it kills its process

// record is a line of what the processes did, in the order in which Redis got it. It is
// refused, as a database would, where a handler with a newer generation has written: that is
// what the fence is for.
var record = redis.NewScript(`
local fence = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
if fence > tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('RPUSH', KEYS[1], ARGV[3])
return 1`)

type line struct {
	N       int    `json:"n"`
	Key     string `json:"key"`
	Attempt int    `json:"attempt"`
	OK      bool   `json:"ok"`
}

// crewChild consumes until it is told to stop.
func crewChild(url string) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(opts)
	topic := stream.Topic{Name: "orders", Namespace: os.Getenv(childNamespace), Partitions: 4}
	mux := consumergroup.NewMux()
	consumergroup.Handle(mux, orderPlaced, func(ctx context.Context, e stream.Event, o order) error {
		m, _ := consumergroup.MetadataFrom(ctx)
		l := line{N: o.N, Key: e.Key, Attempt: m.Attempt, OK: !poison(o.N) && (!fails(o.N) || m.Attempt > 1) && !killing(o.N)}
		text, err := json.Marshal(l)
		if err != nil {
			return err
		}
		keys := []string{topic.Namespace + ":lines", topic.Namespace + ":fences"}
		ok, err := record.Run(context.WithoutCancel(ctx), rdb, keys, e.Key, m.Generation, text).Int()
		switch {
		case err != nil:
			return err
		case ok == 0:
			return errors.New("refused by the fence")
		case killing(o.N):
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case !l.OK:
			return errors.New("no money")
		}
		return nil
	})
	c, err := consumergroup.New(rdb, consumergroup.Config{
		Topics: []stream.Topic{topic}, Group: "billing", Handler: mux, Concurrency: 8,
		Ordered: os.Getenv(childKind) == string(stream.GroupOrdered),
		Limits:  pel.Limits{MinIdle: crewMinIdle, MaxDeliveries: crewDeaths()},
		Retry:   consumergroup.Policy{MaxAttempts: 2, MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond},
	})
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := c.Run(ctx); err != nil {
		panic(err)
	}
}

// crew is worker processes; each that dies is replaced.
type crew struct {
	mu   sync.Mutex
	live []*os.Process
}

func (w *crew) keep(ctx context.Context, env []string) {
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), env...)
		cmd.Stderr = os.Stderr
		cmd.Cancel = func() error {
			_ = cmd.Process.Signal(syscall.SIGCONT)
			return cmd.Process.Signal(syscall.SIGTERM)
		}
		cmd.WaitDelay = patience
		if err := cmd.Start(); err != nil {
			if ctx.Err() == nil {
				panic(err) // or the crew would shrink unseen
			}
			return
		}
		w.mu.Lock()
		w.live = append(w.live, cmd.Process)
		w.mu.Unlock()
		_ = cmd.Wait() // it is killed; that is the test
		w.mu.Lock()
		for i, p := range w.live {
			if p == cmd.Process {
				w.live = append(w.live[:i], w.live[i+1:]...)
				break
			}
		}
		w.mu.Unlock()
	}
}

// any returns one of the processes.
func (w *crew) any() *os.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.live) == 0 {
		return nil
	}
	return w.live[rand.IntN(len(w.live))]
}

// TestGroupsOfProcessesThatAreKilledAndPaused has four processes. Each two seconds one is
// killed, each third time one is paused past the lease meanwhile. The long form takes a
// minute of it, and does it to an unordered group too.
func TestGroupsOfProcessesThatAreKilledAndPaused(t *testing.T) {
	t.Parallel()
	n, turns, patience := 4000, 4, 3*patience
	if testenv.IsLong() {
		n, turns, patience = 20_000, 30, 10*patience
	}
	for _, kind := range []stream.GroupKind{stream.GroupOrdered, stream.GroupWork} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			if kind == stream.GroupWork {
				testenv.Long(t)
			}
			testCrew(t, kind, n, turns, patience)
		})
	}
}

// namesLive reports whether all consumers that have a name at the stream were heard of lately.
func (f *fixture) namesLive(key string, k pel.Keys) bool {
	consumers, err := f.rdb.XInfoConsumers(f.t.Context(), key, "billing").Result()
	tenures, err2 := pel.Tenures(f.t.Context(), f.rdb, k)
	if err != nil || err2 != nil {
		return false
	}
	for _, c := range consumers {
		if silent, known := tenures[0].Members[c.Name]; !known || silent > crewMinIdle {
			return false
		}
	}
	return true
}

func testCrew(t *testing.T, kind stream.GroupKind, n, turns int, patience time.Duration) {
	f := newFixture(t, 4)
	events := make([]stream.Event, n)
	for i := range events {
		events[i] = orderPlaced.Event("key-"+strconv.Itoa(i%97), order{N: i})
	}
	p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	var workers, pauses sync.WaitGroup
	var w crew
	env := []string{childRedis + "=" + testenv.RedisURL(t), childNamespace + "=" + f.topic.Namespace, childKind + "=" + string(kind)}
	for range 4 {
		workers.Go(func() { w.keep(ctx, env) })
	}
	t.Cleanup(func() { cancel(); workers.Wait() })

	part, killed, paused := n/turns, 0, 0
	for i := range turns {
		_, err = p.PublishBatch(ctx, f.topic, events[i*part:(i+1)*part])
		require.NoError(t, err)
		if victim := w.any(); victim != nil && i%3 == 0 {
			paused++
			pauses.Go(func() {
				_ = victim.Signal(syscall.SIGSTOP)
				wait(t, 2*crewMinIdle) // past the lease
				_ = victim.Signal(syscall.SIGCONT)
			})
		}
		require.False(t, wait(t, 2*time.Second))
		if victim := w.any(); victim != nil {
			killed++
			_ = victim.Kill() // it may have died by itself
		}
	}
	pauses.Wait()
	events = events[:part*turns]
	require.Eventually(t, func() bool {
		for p := range f.topic.Count() {
			k := f.keys(p)
			for _, key := range []string{k.Stream, k.Retry} {
				groups, err := f.rdb.XInfoGroups(ctx, key).Result()
				if err != nil || len(groups) != 1 || groups[0].Pending != 0 || groups[0].Lag != 0 || !f.namesLive(key, k) {
					return false
				}
			}
			if f.rdb.Exists(ctx, k.Due, k.Attempts).Val() != 0 {
				return false
			}
		}
		return true
	}, patience, 50*time.Millisecond, "the group does not come to rest, with nothing left of the dead")
	cancel()
	workers.Wait()

	// What was handled for the first time, by key.
	lines, err := f.rdb.LRange(t.Context(), f.topic.Namespace+":lines", 0, -1).Result()
	require.NoError(t, err)
	last, done := map[string]int{}, map[int]bool{}
	attempts := map[int]int{}
	for _, text := range lines {
		var l line
		require.NoError(t, json.Unmarshal([]byte(text), &l))
		attempts[l.N] = max(attempts[l.N], l.Attempt)
		if !l.OK || done[l.N] {
			continue
		}
		done[l.N] = true
		if before, any := last[l.Key]; any && kind == stream.GroupOrdered {
			require.Less(t, before, l.N, "%s is out of order", l.Key)
		}
		last[l.Key] = l.N
	}
	q, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	letters, wanted := map[string]int{}, map[string]int{}
	for next := ""; ; {
		page, err := q.List(t.Context(), dlq.Filter{}, next, 1000)
		require.NoError(t, err)
		for _, l := range page.Letters {
			o, err := orderPlaced.Decode(l.Entry.Event)
			require.NoError(t, err)
			letters[fmt.Sprint(o.N, " ", l.Reason)]++
		}
		if next = page.Next; next == "" {
			break
		}
	}
	for i := range events {
		switch {
		case killing(i):
			wanted[fmt.Sprint(i, " ", dlq.ReasonDeliveries)]++
		case poison(i):
			wanted[fmt.Sprint(i, " ", dlq.ReasonAttempts)]++
			require.Equal(t, 2, attempts[i])
		default:
			require.True(t, done[i], "%d was not handled", i)
		}
	}
	require.Equal(t, wanted, letters, "the letters are exactly the poison and the killers")
	t.Logf("%s: %d events, %d killed and %d paused, %d handler runs, %d letters", kind, len(events), killed, paused, len(lines), len(letters))
	for p := range f.topic.Count() {
		require.Zero(t, f.rdb.Exists(t.Context(), f.keys(p).Attempts, f.keys(p).Due).Val())
		require.Zero(t, f.rdb.XLen(t.Context(), f.keys(p).Retry).Val())
		for _, key := range []string{f.keys(p).Stream, f.keys(p).Retry} {
			consumers, err := f.rdb.XInfoConsumers(t.Context(), key, "billing").Result()
			require.NoError(t, err)
			require.Empty(t, consumers, "a consumer's name is left behind")
		}
	}
}
