package consumergroup_test

import (
	"context"
	"os"
	"os/signal"
	"strconv"
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

// The test binary is a worker process too: childRedis makes it one.
const (
	childRedis     = "CONSUMERGROUP_TEST_CHILD_REDIS"
	childNamespace = "CONSUMERGROUP_TEST_CHILD_NAMESPACE"
	childUpkeep    = "CONSUMERGROUP_TEST_CHILD_UPKEEP"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childRedis); url != "" {
		if os.Getenv(childKind) != "" {
			crewChild(url)
		} else {
			child(url)
		}
		return
	}
	testenv.Main(m)
}

const killer = 13 // the order whose handler kills its process

// child consumes until it is told to stop. Every run of the handler is counted in Redis,
// since the process does not live to tell.
func child(url string) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(opts)
	topic := stream.Topic{Name: "orders", Namespace: os.Getenv(childNamespace)}
	mux := consumergroup.NewMux()
	consumergroup.Handle(mux, orderPlaced, func(ctx context.Context, _ stream.Event, o order) error {
		rdb.HIncrBy(ctx, topic.Namespace+":runs", strconv.Itoa(o.N), 1)
		if o.N == killer {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	})
	c, err := consumergroup.New(rdb, consumergroup.Config{
		Topics: []stream.Topic{topic}, Group: "billing", Handler: mux, Concurrency: 4,
		Limits: pel.Limits{MinIdle: pel.MinMinIdle, MaxDeliveries: 3}, DisableUpkeep: os.Getenv(childUpkeep) == "",
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

// keepAlive runs a child and starts another whenever one dies, until the test ends.
func keepAlive(t *testing.T, env ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		new(crew).keep(ctx, env)
	}()
	t.Cleanup(func() { cancel(); <-ended })
}

func TestHandlerThatKillsItsProcessIsDeadLetteredAfterMaxDeliveriesAndNothingElseIs(t *testing.T) {
	t.Parallel()
	for name, daemon := range map[string]bool{"by the consumers' own upkeep": false, "by the daemon": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1)
			events := f.publish(60)
			env := []string{childRedis + "=" + testenv.RedisURL(t), childNamespace + "=" + f.topic.Namespace}
			if daemon {
				f.upkeep(pel.MinMinIdle, 3)
			} else {
				env = append(env, childUpkeep+"=1")
			}
			keepAlive(t, env...)
			keepAlive(t, env...)

			q, err := dlq.Open(f.rdb, f.topic, "billing")
			require.NoError(t, err)
			require.Eventually(t, func() bool { n, _ := q.Count(t.Context()); return n > 0 }, 2*patience, 20*time.Millisecond)
			f.atRest()
			page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
			require.NoError(t, err)
			require.Len(t, page.Letters, 1, "an innocent event went to the dead letters")
			require.Equal(t, dlq.ReasonDeliveries, page.Letters[0].Reason)
			require.Equal(t, 3, page.Letters[0].Deliveries)
			require.Equal(t, events[killer].ID, page.Letters[0].Entry.Event.ID)
			runs := f.rdb.HGetAll(t.Context(), f.topic.Namespace+":runs").Val()
			require.Equal(t, "3", runs[strconv.Itoa(killer)], "handed over exactly MaxDeliveries times")
			require.Len(t, runs, len(events))
		})
	}
}

// upkeep runs what the reclaimer daemon runs.
func (f *fixture) upkeep(minIdle time.Duration, maxDeliveries int) {
	f.t.Helper()
	up, err := consumergroup.NewUpkeep(f.rdb, consumergroup.UpkeepConfig{Targets: func(context.Context) ([]consumergroup.Target, error) {
		return []consumergroup.Target{{Topic: f.topic, Group: stream.Group{Name: "billing", MinIdleMs: minIdle.Milliseconds(), MaxDeliveries: maxDeliveries}}}, nil
	}})
	require.NoError(f.t, err)
	ctx, cancel := context.WithCancel(f.t.Context())
	ended := make(chan struct{})
	go func() { up.Run(ctx); close(ended) }()
	f.t.Cleanup(func() { cancel(); <-ended })
}
