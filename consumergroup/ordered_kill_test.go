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
	"strings"
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

// The worker process of the ordered group: childOrdered makes one of the test binary.
const childOrdered = "CONSUMERGROUP_TEST_CHILD_ORDERED"

const (
	orderedMinIdle = 1500 * time.Millisecond
	orderedDeaths  = 3 // MaxDeliveries
)

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
	Runs    int    `json:"deliveries"`
	OK      bool   `json:"ok"`
}

// orderedChild consumes until it is told to stop.
func orderedChild(url string) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(opts)
	topic := stream.Topic{Name: "orders", Namespace: os.Getenv(childNamespace), Partitions: 4}
	mux := consumergroup.NewMux()
	consumergroup.Handle(mux, orderPlaced, func(ctx context.Context, e stream.Event, o order) error {
		m, _ := consumergroup.MetadataFrom(ctx)
		l := line{N: o.N, Key: e.Key, Attempt: m.Attempt, Runs: m.Deliveries, OK: !poison(o.N) && (!fails(o.N) || m.Attempt > 1) && !killing(o.N)}
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
		Topics: []stream.Topic{topic}, Group: "billing", Handler: mux, Concurrency: 8, Ordered: true,
		Limits: pel.Limits{MinIdle: orderedMinIdle, MaxDeliveries: orderedDeaths},
		Retry:  consumergroup.Policy{MaxAttempts: 2, MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond},
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
		if cmd.Start() != nil {
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

func TestOrderedGroupOfProcessesThatAreKilledAndPaused(t *testing.T) {
	t.Parallel()
	n, turns := 4000, 4
	if long := os.Getenv("STREAMKEEL_LONG"); long != "" {
		n, turns = 40_000, 30
	}
	f := newFixture(t, 4)
	events := make([]stream.Event, n)
	for i := range events {
		events[i] = orderPlaced.Event("key-"+strconv.Itoa(i%97), order{N: i})
	}
	p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	var w crew
	env := []string{childRedis + "=" + testenv.RedisURL(t), childNamespace + "=" + f.topic.Namespace, childOrdered + "=1"}
	for range 4 {
		workers.Go(func() { w.keep(ctx, env) })
	}
	t.Cleanup(func() { cancel(); workers.Wait() })

	part := n / turns
	for i := range turns {
		_, err = p.PublishBatch(ctx, f.topic, events[i*part:(i+1)*part])
		require.NoError(t, err)
		require.False(t, wait(t, time.Second))
		if victim := w.any(); victim != nil && i%2 == 0 {
			_ = victim.Kill() // it may have died by itself
		} else if victim != nil {
			_ = victim.Signal(syscall.SIGSTOP)
			require.False(t, wait(t, 2*orderedMinIdle)) // past the lease
			_ = victim.Signal(syscall.SIGCONT)
		}
	}
	events = events[:part*turns]
	require.Eventually(t, func() bool {
		for p := range f.topic.Count() {
			groups, err := f.rdb.XInfoGroups(ctx, f.topic.StreamKey(p)).Result()
			if err != nil || len(groups) != 1 || groups[0].Pending != 0 || groups[0].Lag != 0 {
				return false
			}
		}
		return true
	}, 8*patience, 50*time.Millisecond, "the group does not come to rest")
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
		if before, any := last[l.Key]; any {
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
	t.Logf("%d events, %d handler runs, %d letters", len(events), len(lines), len(letters))
	for p := range f.topic.Count() {
		require.Zero(t, f.rdb.Exists(t.Context(), f.keys(p).Attempts, f.keys(p).Due).Val())
		require.Zero(t, f.rdb.XLen(t.Context(), f.keys(p).Retry).Val())
		consumers, err := f.rdb.XInfoConsumers(t.Context(), f.topic.StreamKey(p), "billing").Result()
		require.NoError(t, err)
		var names []string
		for _, c := range consumers {
			names = append(names, c.Name)
		}
		require.Empty(t, names, strings.Join(names, " "))
	}
}
