package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

var postgresConfig = servers.PostgresConfig{Settings: map[string]string{"max_prepared_transactions": "5"}}

func TestMain(m *testing.M) {
	if order := os.Getenv(childVar); order != "" {
		childMain(order)
	}
	testenv.Main(m)
}

// A child is a relay in a process of its own: this test binary, run again. It kills or stops itself at a point of its
// work. The points are seen from outside, through hooks of the clients, so that the relay knows nothing of them.
const childVar = "STREAMKEEL_TEST_RELAY"

type childOrder struct {
	Postgres, Redis string
	Point           point
	After           int32 // how often the point is passed before
	Signal          syscall.Signal
}

type point string

const (
	nowhere   point = ""
	frozenNow point = "frozen"     // a batch was frozen, nothing of it is published
	beforeAdd point = "before add" // a page is about to be added
	withinAdd point = "within add" // some calls of a page were carried out
	afterAdd  point = "after add"  // a page was added, the relay does not know it yet
)

func childMain(text string) {
	var order childOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	crash := &crasher{order: order}
	config, err := pgxpool.ParseConfig(order.Postgres)
	if err != nil {
		panic(err)
	}
	config.ConnConfig.Tracer = crash
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		panic(err)
	}
	options, err := redis.ParseURL(order.Redis)
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(options)
	rdb.AddHook(crash)
	r, err := NewRelay(pool, rdb, RelayConfig{LeaseTTL: time.Second, PollMax: 20 * time.Millisecond})
	if err == nil {
		err = r.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

type crasher struct {
	order  childOrder
	passed atomic.Int32
}

func (c *crasher) pass(p point) {
	if p == c.order.Point && c.passed.Add(1) == c.order.After+1 {
		_ = syscall.Kill(os.Getpid(), c.order.Signal)
		if c.order.Signal == syscall.SIGKILL {
			select {} // until it is there
		}
		time.Sleep(50 * time.Millisecond) // of which SIGSTOP takes what it wants
	}
}

type freezing struct{}

func (c *crasher) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "INSERT INTO "+query("{schema}.relay_batch")) {
		return context.WithValue(ctx, freezing{}, true)
	}
	return ctx
}

func (c *crasher) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(freezing{}) != nil {
		c.pass(frozenNow)
	}
}

func (c *crasher) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (c *crasher) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (c *crasher) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		publishing := len(cmds) > 0 && cmds[0].Name() == "evalsha"
		if !publishing {
			return next(ctx, cmds)
		}
		c.pass(beforeAdd)
		if c.order.Point == withinAdd && len(cmds) > 1 {
			half := cmds[:len(cmds)/2]
			if err := next(ctx, half); err == nil { // not before the script is known
				c.pass(withinAdd)
			}
			if err := next(ctx, cmds[len(half):]); err != nil {
				return err
			}
		} else if err := next(ctx, cmds); err != nil {
			return err
		}
		c.pass(afterAdd)
		return nil
	}
}

// child starts a relay in a process of its own. It is killed at the end of the test at the latest.
func (w *world) child(redisURL, postgresURL string, p point, after int32, signal syscall.Signal) *exec.Cmd {
	w.t.Helper()
	order, err := json.Marshal(childOrder{Postgres: postgresURL, Redis: redisURL, Point: p, After: after, Signal: signal})
	require.NoError(w.t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVar+"="+string(order))
	cmd.Stderr = os.Stderr
	require.NoError(w.t, cmd.Start())
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// A relay that dies, wherever it is, leaves nothing out and nothing twice.
func TestRelayThatIsKilledLosesAndRepeatsNothing(t *testing.T) {
	for _, c := range []struct {
		point point
		after int32
	}{
		{frozenNow, 0}, {frozenNow, 2}, {beforeAdd, 0}, {beforeAdd, 1}, {withinAdd, 0}, {withinAdd, 1}, {afterAdd, 0}, {afterAdd, 1}, {afterAdd, 3},
	} {
		t.Run(fmt.Sprintf("%s %d", c.point, c.after), func(t *testing.T) {
			w := newWorld(t, 3)
			b := w.bank(12)
			// One large batch, of several pages of each shard, and then single ones.
			for range 3 {
				require.NoError(t, pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
					for range 60 {
						for k := range 12 {
							if err := b.change(t.Context(), tx, fmt.Sprint("k", k)); err != nil {
								return err
							}
						}
					}
					return nil
				}))
			}
			cmd := w.child(testenv.RedisURL(t), testenv.PostgresURL(t), c.point, c.after, syscall.SIGKILL)
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			for ended := false; !ended; {
				select {
				case err := <-done:
					require.ErrorContains(t, err, "killed")
					ended = true
				case <-time.After(20 * time.Millisecond):
					require.NoError(t, InTx(t.Context(), w.pool, func(tx pgx.Tx) error { return b.change(t.Context(), tx, "k1") }))
				}
			}
			start(t, w.relay())
			b.verify()
		})
	}
}

// A relay that is held up for longer than its lease, in the middle of its work, finds another one in its place, and
// does no harm when it goes on.
func TestFormerOwnerThatGoesOnDoesNoHarm(t *testing.T) {
	for _, p := range []point{frozenNow, beforeAdd, withinAdd, afterAdd} {
		t.Run(string(p), func(t *testing.T) {
			w := newWorld(t, 3)
			b := w.bank(12)
			changes := func(n int) {
				require.NoError(t, pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
					for i := range n {
						if err := b.change(t.Context(), tx, fmt.Sprint("k", i%12)); err != nil {
							return err
						}
					}
					return nil
				}))
			}
			change := func() { changes(24) }
			changes(720) // several calls of each stream
			cmd := w.child(testenv.RedisURL(t), testenv.PostgresURL(t), p, 0, syscall.SIGSTOP)
			var status syscall.WaitStatus
			for !status.Stopped() {
				_, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
				if err == syscall.EINTR {
					continue
				}
				require.NoError(t, err)
				require.False(t, status.Exited() || status.Signaled(), "the child is to stop")
			}
			other := &recorder{}
			start(t, w.relay(func(c *RelayConfig) { c.Observer = other }))
			b.verify()
			change()
			b.verify()
			require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
			for range 20 {
				change()
			}
			b.verify()
			require.Empty(t, other.of(Stopped))
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, cmd.Wait(), "it had stepped down, and ends as it should")
			change()
			b.verify()
		})
	}
}

// The relay hands its shards over when it stops, and those of one that is gone are taken over within LeaseTTL.
func TestRelaysShareTheShardsEvenlyAsTheyComeAndGo(t *testing.T) {
	w := newWorld(t, 8)
	b := w.bank(16)
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan struct{})
	go func() {
		defer close(written)
		b.write(ctx, 2, 1_000_000)
	}()
	defer func() { stop(); <-written }()
	counts := func(relays ...*Relay) (n []int) {
		for _, r := range relays {
			n = append(n, len(r.Owned()))
		}
		return n
	}
	r1, r2, r3 := w.relay(), w.relay(), w.relay()
	start(t, r1)
	eventuallyEqual(t, []int{8}, func() []int { return counts(r1) })
	stop2 := start(t, r2)
	eventuallyEqual(t, []int{4, 4}, func() []int { return counts(r1, r2) })
	start(t, r3)
	require.Eventually(t, func() bool {
		n := counts(r1, r2, r3)
		return n[0]+n[1]+n[2] == 8 && min(n[0], n[1], n[2]) >= 2
	}, patience, 10*time.Millisecond)
	stop2()
	eventuallyEqual(t, []int{4, 0, 4}, func() []int { return counts(r1, r2, r3) })

	cmd := w.child(testenv.RedisURL(t), testenv.PostgresURL(t), nowhere, 0, 0)
	require.Eventually(t, func() bool { n := counts(r1, r3); return n[0]+n[1] <= 6 }, patience, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	killed := time.Now()
	eventuallyEqual(t, []int{4, 4}, func() []int { return counts(r1, r3) })
	t.Logf("taken over after %s", time.Since(killed))
	stop()
	<-written
	b.verify()
}

func eventuallyEqual[T any](t *testing.T, want T, have func() T) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.Equal(c, want, have()) }, patience, 10*time.Millisecond)
}

// recorder is an Observer that keeps what it is told.
type recorder struct{ seen atomic.Pointer[[]Observation] }

func (r *recorder) Observe(_ context.Context, o Observation) {
	for {
		old := r.seen.Load()
		var all []Observation
		if old != nil {
			all = append(all, *old...)
		}
		all = append(all, o)
		if r.seen.CompareAndSwap(old, &all) {
			return
		}
	}
}

// eventually waits until the moment is told: the tables may show it before.
func (r *recorder) eventually(t testing.TB, m Moment) {
	t.Helper()
	require.Eventually(t, func() bool { return len(r.of(m)) > 0 }, patience, 10*time.Millisecond, "nobody was told: %s", m)
}

func (r *recorder) of(m Moment) (list []Observation) {
	if all := r.seen.Load(); all != nil {
		for _, o := range *all {
			if o.Moment == m {
				list = append(list, o)
			}
		}
	}
	return list
}
