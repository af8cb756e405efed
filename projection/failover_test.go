package projection_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/projection"
)

// pair is a master and a replica that can be made to lag, and then be promoted.
type pair struct {
	*world
	master, replica *servers.Redis
	replicaClient   *redis.Client
}

func newPair(t *testing.T) *pair {
	t.Parallel()
	master := testenv.PrivateRedis(t, servers.RedisConfig{})
	replica := testenv.PrivateRedis(t, servers.RedisConfig{ReplicaOf: master.Addr()})
	p := &pair{world: worldOn(t, testenv.RedisClient(t, master.URL()), 1), master: master, replica: replica}
	p.replicaClient = testenv.RedisClient(t, replica.URL())
	return p
}

// replicated waits until the replica has what the master has, and its history knows it.
func (p *pair) replicated() {
	p.t.Helper()
	key := p.topic.StreamKey(0)
	require.Eventually(p.t, func() bool {
		want, err1 := p.rdb.XInfoStream(p.t.Context(), key).Result()
		have, err2 := p.replicaClient.XInfoStream(p.t.Context(), key).Result()
		return err1 == nil && err2 == nil && want.LastGeneratedID == have.LastGeneratedID && want.Length == have.Length
	}, 30*time.Second, 10*time.Millisecond)
}

// lag makes the replica miss everything from here on: its link is cut. (A stopped process
// would still find the tail in its socket.)
func (p *pair) lag() {
	p.t.Helper()
	require.NoError(p.t, p.replicaClient.ReplicaOf(p.t.Context(), "127.0.0.1", "1").Err())
}

// failover kills the master and promotes the replica, which lacks what came after lag.
func (p *pair) failover() {
	p.t.Helper()
	require.NoError(p.t, p.master.Kill())
	require.NoError(p.t, p.replicaClient.ReplicaOf(p.t.Context(), "NO", "ONE").Err())
	p.rdb = p.replicaClient
}

func TestPromotedReplicaThatLostAppliedEntriesIsReadAgain(t *testing.T) {
	t.Parallel()
	for name, keep := range map[string]int64{"whole": 5, "trimmed": 2, "trimmed to nothing": 0} {
		t.Run(name, func(t *testing.T) { promotedReplica(t, keep) })
	}
}

func promotedReplica(t *testing.T, keep int64) {
	p := newPair(t)
	p.addRelayed(0, numbered("e", 1, 5)...)
	p.drain(p.runner())
	p.rdb.XTrimMaxLen(t.Context(), p.topic.StreamKey(0), keep)
	p.replicated()
	p.lag()
	p.addRelayed(0, numbered("e", 6, 9)...)
	p.drain(p.runner())
	p.failover()

	// The relay finds the gap, and publishes again what it knows to be missing, and more.
	for i := 6; i <= 9; i++ {
		p.add(0, at(direct(numbered("e", i, i)[0]), int64(i)))
	}
	p.addRelayed(0, "e10")
	seen := &moments{}
	result := p.drain(p.runner(func(c *projection.Config) { c.Observer = seen }))
	require.Equal(t, numbered("e", 1, 10), p.ledger(), "each once, in order")
	require.Equal(t, projection.Result{Events: 1, Skipped: 4 + int(keep)}, result)
	require.Equal(t, 1, seen.count(projection.Rewound))
	require.EqualValues(t, 0, p.group(0).Lag)
}

// The new master's clock is behind: what it publishes again gets IDs up to the checkpoint,
// and the counters agree with those of the lost history.
func TestPromotedReplicaWithAClockBehindIsReadAgain(t *testing.T) {
	p := newPair(t)
	for i := 1; i <= 5; i++ {
		p.addTo(p.rdb, 0, id(1000+i), p.relayed(numbered("e", i, i)[0]))
	}
	p.drain(p.runner())
	p.replicated()
	p.lag()
	for i := 6; i <= 9; i++ {
		p.addTo(p.rdb, 0, id(2000+i), p.relayed(numbered("e", i, i)[0]))
	}
	p.drain(p.runner())
	p.failover()

	for i := 6; i <= 10; i++ {
		ms := 1500 + i
		if i == 10 {
			ms = 3000
		}
		p.addTo(p.rdb, 0, id(ms), at(direct(numbered("e", i, i)[0]), int64(i)))
	}
	p.drain(p.runner())
	require.Equal(t, numbered("e", 1, 10), p.ledger())
}

func TestPromotedReplicaThatLostOnlyUnreadEntriesGoesOn(t *testing.T) {
	p := newPair(t)
	p.addDirect(0, numbered("e", 1, 5)...)
	p.drain(p.runner())
	p.replicated()
	p.lag()
	p.addDirect(0, "lost1", "lost2")
	p.failover()
	p.addDirect(0, "e6")
	p.drain(p.runner())
	require.Equal(t, numbered("e", 1, 6), p.ledger())
}

func TestPromotedReplicaWithoutSequencesIsAnErrorUntilAccepted(t *testing.T) {
	p := newPair(t)
	p.addDirect(0, numbered("e", 1, 5)...)
	p.drain(p.runner())
	p.replicated()
	p.lag()
	p.addDirect(0, "lost1", "lost2")
	p.drain(p.runner())
	p.failover()
	r := p.runner()
	_, err := r.RunOnce(t.Context())
	require.ErrorIs(t, err, projection.ErrRewound, "before anything new is there")
	p.addDirect(0, "e6", "e7", "e8")
	_, err = r.RunOnce(t.Context())
	require.ErrorIs(t, err, projection.ErrRewound, "and after")
	require.NoError(t, r.Accept(t.Context(), p.topic.StreamKey(0)))
	p.drain(p.runner())
	require.Equal(t, append(append(numbered("e", 1, 5), "lost1", "lost2"), numbered("e", 6, 8)...), p.ledger())
}

// A runner that is connected all the while follows a failover that it is not told of.
func TestRunFollowsAFailoverByItself(t *testing.T) {
	p := newPair(t)
	var to atomic.Value
	to.Store(p.master.Addr())
	moving := testenv.RedisClient(t, p.master.URL(), func(o *redis.Options) {
		dialer := redis.NewDialer(o)
		o.Dialer = func(ctx context.Context, network, _ string) (conn netConn, err error) {
			return dialer(ctx, network, to.Load().(string))
		}
	})
	r, err := projection.NewRunner(p.pool, moving, projection.Config{Name: projectionName, Topics: topics(p.topic), Apply: record})
	require.NoError(t, err)
	p.addRelayed(0, numbered("e", 1, 5)...)
	stop := start(t, r)
	p.eventually(5)
	p.replicated()
	p.lag()
	p.addRelayed(0, numbered("e", 6, 9)...)
	p.eventually(9)
	to.Store(p.replica.Addr())
	p.failover()
	for i := 6; i <= 12; i++ {
		p.add(0, at(direct(numbered("e", i, i)[0]), int64(i)))
	}
	p.eventually(12)
	require.NoError(t, stop())
	require.Equal(t, numbered("e", 1, 12), p.ledger())
}
