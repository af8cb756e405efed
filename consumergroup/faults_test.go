package consumergroup_test

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// site is a server of which every kind of group is served while a fault strikes.
type site struct {
	server *servers.Redis
	rdb    *redis.Client
	crews  []*crewAtFault
}

// fault is what happens to a Redis while handlers run, and how it ends.
type fault struct {
	strike, heal func(t *testing.T, s *site)
	again        bool // what was in hand is handed over again: Redis does not know any more that it was
	lost         bool // the events are lost too
}

var faults = map[string]fault{
	"connections killed": {strike: func(t *testing.T, s *site) {
		for range 20 {
			_ = s.rdb.Do(t.Context(), "client", "kill", "type", "normal", "skipme", "no").Err() // its own too
			require.False(t, wait(t, 20*time.Millisecond))
		}
	}},
	"restarted": {
		strike: func(t *testing.T, s *site) { require.NoError(t, s.server.Stop()) },
		heal:   startServer,
	},
	"away for longer than MinIdle": {
		strike: func(t *testing.T, s *site) { require.NoError(t, s.server.Kill()); longer(t) },
		heal:   startServer,
	},
	"hanging for longer than MinIdle": {
		strike: func(t *testing.T, s *site) { require.NoError(t, s.server.Pause()); longer(t) },
		heal:   func(t *testing.T, s *site) { require.NoError(t, s.server.Resume()) },
	},
	"LOADING": {
		strike: func(t *testing.T, s *site) {
			fill := "for i = 1, 15000 do redis.call('SET', 'filler:' .. i, i) end return 1" // each takes key-load-delay to load
			require.NoError(t, s.rdb.Eval(t.Context(), fill, nil).Err())
			require.NoError(t, s.server.Stop())
		},
		heal: func(t *testing.T, s *site) {
			loading := make(chan error, 1)
			go func() { loading <- awaitLoading(t, s.server) }()
			startServer(t, s)
			require.NoError(t, <-loading)
		},
	},
	"FLUSHALL": {
		strike: func(t *testing.T, s *site) { require.NoError(t, s.rdb.FlushAll(t.Context()).Err()) },
		again:  true, lost: true,
	},
	"stream deleted": {
		strike: func(t *testing.T, s *site) {
			for _, c := range s.crews {
				require.NoError(t, s.rdb.Del(t.Context(), c.topic.StreamKey(0)).Err())
			}
		},
		again: true, lost: true,
	},
	"group destroyed": {
		strike: func(t *testing.T, s *site) {
			for _, c := range s.crews {
				require.NoError(t, s.rdb.XGroupDestroy(t.Context(), c.topic.StreamKey(0), "billing").Err())
			}
		},
		again: true,
	},
	"OOM": {
		strike: func(t *testing.T, s *site) { setMaxMemory(t, s, "1"); longer(t) },
		heal:   func(t *testing.T, s *site) { setMaxMemory(t, s, "0") },
	},
	"READONLY": {
		strike: func(t *testing.T, s *site) { replicaOf(t, s, "127.0.0.1", "1"); longer(t) },
		heal:   func(t *testing.T, s *site) { replicaOf(t, s, "no", "one") },
	},
}

const faultMinIdle = time.Second

// longer lets more than MinIdle pass.
func longer(t *testing.T) { require.False(t, wait(t, faultMinIdle*5/2)) }

func startServer(t *testing.T, s *site) { require.NoError(t, s.server.Start(t.Context())) }

func setMaxMemory(t *testing.T, s *site, bytes string) {
	require.NoError(t, s.rdb.ConfigSet(t.Context(), "maxmemory", bytes).Err())
}

func replicaOf(t *testing.T, s *site, host, port string) {
	require.NoError(t, s.rdb.Do(t.Context(), "replicaof", host, port).Err())
}

// awaitLoading returns when the server has refused a command because it is loading.
func awaitLoading(t *testing.T, server *servers.Redis) error {
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	defer rdb.Close()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if err := rdb.Ping(t.Context()).Err(); err != nil && strings.HasPrefix(err.Error(), "LOADING") {
			return nil
		}
	}
	return errors.New("the server never said that it is loading")
}

func TestConsumersGoOnByThemselvesAfterFaultsAndNothingIsTakenOrCounted(t *testing.T) {
	t.Parallel()
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &site{server: testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, AppendOnly: true, Settings: map[string]string{
				"appendfsync": "always", "key-load-delay": "100", // µs
			}})}
			s.rdb = testenv.RedisClient(t, s.server.URL())
			for _, ordered := range []bool{false, true} {
				s.crews = append(s.crews, startCrewAtFault(t, s.rdb, ordered))
			}
			fault.strike(t, s)
			for _, c := range s.crews {
				close(c.struck)
			}
			if fault.heal != nil {
				fault.heal(t, s)
			}
			fresh := testenv.RedisClient(t, s.server.URL()) // no connection of it is stale
			for _, c := range s.crews {
				c.rdb = fresh
				c.after = c.publish(40)
			}
			longer(t)
			for _, c := range s.crews {
				c.requireUnharmed(t, fault)
			}
		})
	}
}

// crewAtFault is two consumers of a group. Four handlers of one of them run while a fault
// strikes: two return while it lasts, two when anything that was to be taken from them
// would have been.
type crewAtFault struct {
	*fixture
	kind             string
	began            time.Time
	struck, over     chan struct{}
	before, after    []stream.Event
	owner            string // the consumer whose handlers run
	seen             ledger
	inHand, attempts atomic.Int32
	held             sync.Map // the entry IDs of those that run until the end
	log              logLines
}

func startCrewAtFault(t *testing.T, rdb redis.UniversalClient, ordered bool) *crewAtFault {
	c := &crewAtFault{
		fixture: &fixture{t: t, rdb: rdb, topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}},
		kind:    "unordered", began: time.Now(), struck: make(chan struct{}), over: make(chan struct{}), log: logLines{lines: map[string]int{}},
	}
	if ordered {
		c.kind = "ordered"
	}
	cfg := c.config(consumergroup.HandlerFunc(c.handle))
	cfg.Ordered, cfg.ShutdownTimeout, cfg.MinIdle, cfg.Logger = ordered, time.Second, faultMinIdle, slog.New(&c.log)
	c.owner = c.run(cfg).Name()
	c.before = c.publish(40)
	require.Eventually(t, func() bool { return c.inHand.Load() >= 4 }, patience, time.Millisecond)
	c.run(cfg) // it would take what is in hand, if it could
	require.Eventually(t, func() bool { return rdb.HExists(t.Context(), c.keys(0).Hash, "checkpoint").Val() }, patience, time.Millisecond)
	return c
}

func (c *crewAtFault) handle(ctx context.Context, e stream.Event) error {
	m, _ := consumergroup.MetadataFrom(ctx)
	if m.Attempt != 1 {
		c.attempts.Add(1)
	}
	c.seen.add(e.ID)
	until := c.struck
	switch n := c.inHand.Add(1); {
	case n > 4:
		return nil
	case n%2 == 0:
		until = c.over
		c.held.Store(m.ID.String(), true)
	}
	select {
	case <-until:
	case <-ctx.Done():
	}
	return nil
}

// requireUnharmed holds the promise after the fault.
func (c *crewAtFault) requireUnharmed(t *testing.T, fault fault) {
	c.held.Range(func(id, _ any) bool {
		pending, err := c.rdb.XPendingExt(t.Context(), &redis.XPendingExtArgs{
			Stream: c.topic.StreamKey(0), Group: "billing", Start: id.(string), End: id.(string), Count: 1,
		}).Result()
		require.NoError(t, err)
		if !fault.again {
			require.Len(t, pending, 1, c.kind)
			require.Equal(t, c.owner, pending[0].Consumer, "%s: the fault took an event from a live consumer", c.kind)
			require.EqualValues(t, 1, pending[0].RetryCount, "%s: the fault counted as a delivery", c.kind)
		}
		return true
	})
	close(c.over)
	c.seen.eventually(t, c.after, 1)
	if !fault.lost {
		c.seen.eventually(t, c.before, 1)
	}
	c.atRest()
	for _, e := range c.before {
		require.True(t, fault.again || c.seen.count(e.ID) == 1, "%s: the fault made an event be handled twice", c.kind)
	}
	require.Zero(t, c.attempts.Load(), "%s: the fault counted as an attempt", c.kind)
	require.Zero(t, c.rdb.XLen(t.Context(), c.keys(0).Dead).Val(), "%s: the fault filled the letters", c.kind)
	c.log.requireFew(t, 2, time.Since(c.began))
}

// logLines counts the lines of a log by what they say, and where.
type logLines struct {
	slog.Handler
	mu    sync.Mutex
	lines map[string]int
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) WithAttrs([]slog.Attr) slog.Handler       { return l }

func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "at" {
			line += " " + a.Value.String()
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines[line]++
	return nil
}

// requireFew holds the promise that each consumer says the same once in ten seconds at the most.
func (l *logLines) requireFew(t *testing.T, consumers int, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line, n := range l.lines {
		require.LessOrEqual(t, n, consumers*int(1+d/(10*time.Second)), line)
	}
}

func TestEntryTrimmedWhileItsHandlerRunsIsStillSettled(t *testing.T) {
	t.Parallel()
	for kind, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1)
			events := make([]stream.Event, 3)
			for i := range events {
				events[i] = orderPlaced.Event(strconv.Itoa(i), order{N: i})
			}
			release := make(chan struct{})
			var inHand atomic.Int32
			var runs ledger
			cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
				run := runs.add(e.ID)
				if run == 1 {
					inHand.Add(1)
					select {
					case <-release:
					case <-ctx.Done():
					}
				}
				switch {
				case e.ID == events[0].ID, e.ID == events[1].ID && run > 1:
					return nil
				case e.ID == events[1].ID:
					return errors.New("once more")
				}
				return consumergroup.Permanent(errors.New("never"))
			}))
			cfg.Ordered = ordered
			obs := &observer{}
			cfg.Observer = obs
			f.run(cfg)
			p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
			require.NoError(t, err)
			_, err = p.PublishBatch(t.Context(), f.topic, events)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return inHand.Load() == 3 }, patience, time.Millisecond)
			require.NoError(t, f.rdb.XTrimMaxLen(t.Context(), f.topic.StreamKey(0), 0).Err())
			close(release)
			runs.eventually(t, events[:2], 1)
			runs.eventually(t, events[1:2], 2)
			f.atRest()
			require.Equal(t, 1, runs.count(events[0].ID), "its success acks quietly")
			q, err := dlq.Open(f.rdb, f.topic, "billing")
			require.NoError(t, err)
			page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
			require.NoError(t, err)
			require.Len(t, page.Letters, 1)
			require.Equal(t, dlq.ReasonPermanent, page.Letters[0].Reason)
			require.Equal(t, events[2].ID, page.Letters[0].Entry.Event.ID, "with its body, though it was gone from the stream")
			require.Equal(t, 1, obs.count(consumergroup.Retried))
		})
	}
}
