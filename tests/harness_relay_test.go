package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/outbox"
)

// relayVar makes this test binary, run again, a relay.
const relayVar = "STREAMKEEL_TEST_RELAY"

// relayOrder says what a relay's process does. It sends itself the signal when it passes the point for the first time.
type relayOrder struct {
	Name, Postgres, Redis string
	Lease                 time.Duration
	Point                 point
	Signal                syscall.Signal
}

// point is a moment in the work of a relay. They are seen from outside, through hooks of its clients.
type point string

const (
	nowhere      point = ""
	afterFreeze  point = "after freeze"       // a batch is frozen, and nothing of it published
	beforeAdd    point = "before add"         // a page is about to be added
	withinAdd    point = "after k of n"       // some calls of a page were carried out
	betweenPages point = "between pages"      // a page was added, and there are more
	afterLastAdd point = "after the last add" // all of a batch was added, and the relay does not know it yet
	pageRows           = 500                  // of every page but a batch's last
	freezes            = `INSERT INTO "streamkeel".relay_batch`
)

var points = []point{afterFreeze, beforeAdd, withinAdd, betweenPages, afterLastAdd}

// relayMain is the process.
func relayMain(text string) {
	if err := runRelay(text); err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runRelay(text string) error {
	var order relayOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		return err
	}
	go func() { // it goes with the test that started it
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(2)
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	crash := &crasher{order: order, pages: map[string]string{}}
	config, err := pgxpool.ParseConfig(order.Postgres)
	if err != nil {
		return err
	}
	config.ConnConfig.Tracer = crash
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	options, err := redis.ParseURL(order.Redis)
	if err != nil {
		return err
	}
	rdb := redis.NewClient(options)
	rdb.AddHook(crash)
	log := slog.DiscardHandler
	if os.Getenv("STREAMKEEL_TEST_VERBOSE") != "" {
		log = slog.NewTextHandler(os.Stderr, nil)
	}
	relay, err := outbox.NewRelay(pool, rdb, outbox.RelayConfig{
		Name: order.Name, LeaseTTL: order.Lease, PollMax: 20 * time.Millisecond, Logger: slog.New(log).With("relay", order.Name),
	})
	if err != nil {
		return err
	}
	return relay.Run(ctx)
}

// crasher kills or stops its own process.
type crasher struct {
	order relayOrder
	once  sync.Once

	mu    sync.Mutex
	pages map[string]string // by stream, the batch of the page before
}

func (c *crasher) pass(p point) {
	if p != c.order.Point {
		return
	}
	c.once.Do(func() {
		_ = syscall.Kill(os.Getpid(), c.order.Signal)
		if c.order.Signal == syscall.SIGKILL {
			select {} // until it is there
		}
		pause(context.Background(), 50*time.Millisecond) // of which SIGSTOP takes what it wants
	})
}

type freezing struct{}

func (c *crasher) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, freezes) {
		return context.WithValue(ctx, freezing{}, true)
	}
	return ctx
}

func (c *crasher) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if ctx.Value(freezing{}) != nil && data.CommandTag.RowsAffected() > 0 {
		c.pass(afterFreeze)
	}
}

func (c *crasher) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (c *crasher) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (c *crasher) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) == 0 || !strings.HasPrefix(cmds[0].Name(), "eval") {
			return next(ctx, cmds)
		}
		later, last := c.look(cmds)
		if later {
			c.pass(betweenPages)
		}
		c.pass(beforeAdd)
		if c.order.Point == withinAdd && len(cmds) > 1 {
			half := len(cmds) / 2
			if err := next(ctx, cmds[:half]); err == nil { // it knew the script
				c.pass(withinAdd)
			}
			if err := next(ctx, cmds[half:]); err != nil {
				return err
			}
		} else if err := next(ctx, cmds); err != nil {
			return err
		}
		if last {
			c.pass(afterLastAdd)
		}
		return nil
	}
}

// look reports whether the calls are a later page of a batch than its first, and whether they are its last one.
// Each has the script, the number of keys, a stream, its position's key, the system, the batch, its tag, the position that
// must be there, how many rows, and these.
func (c *crasher) look(cmds []redis.Cmder) (later, last bool) {
	rows := 0
	first := cmds[0].Args()
	for _, cmd := range cmds {
		n, ok := cmd.Args()[10].(int)
		if !ok {
			panic(fmt.Sprintf("the publish script takes other arguments than this expects: %.200q", cmd.Args()))
		}
		rows += n
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key, batch := fmt.Sprint(first[3]), fmt.Sprint(first[6])
	later = c.pages[key] == batch
	c.pages[key] = batch
	return later, later && rows < pageRows
}

// child is a relay in a process of its own.
type child struct {
	h    *harness
	name string
	cmd  *exec.Cmd
}

// The lease of a relay, and of one that is to keep its shards over a stop.
const (
	shortLease = 500 * time.Millisecond
	longLease  = 10 * time.Second
)

// child starts a relay. It is killed at the end of the test at the latest.
func (h *harness) child(p point, signal syscall.Signal, lease time.Duration) *child {
	h.t.Helper()
	c := &child{h: h, name: fmt.Sprint("relay", h.serial.Add(1))}
	order, err := json.Marshal(relayOrder{Name: c.name, Postgres: h.postgresURL, Redis: h.redisURL, Lease: lease, Point: p, Signal: signal})
	require.NoError(h.t, err)
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), relayVar+"="+string(order))
	c.cmd.Stderr = os.Stderr
	_, err = c.cmd.StdinPipe() // open until this process ends
	require.NoError(h.t, err)
	require.NoError(h.t, c.cmd.Start())
	h.t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Wait()
		}
	})
	return c
}

// died waits until the relay has killed itself.
func (c *child) died() {
	c.h.t.Helper()
	c.ended("killed")
}

// ended waits until the process is gone, and requires that it went as it should: by itself, or by a signal.
func (c *child) ended(how string) {
	c.h.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = c.cmd.Process.Signal(syscall.SIGABRT) })
	defer timer.Stop()
	err := c.cmd.Wait()
	if how == "" {
		require.NoError(c.h.t, err, c.name)
		return
	}
	require.ErrorContains(c.h.t, err, how, c.name)
}

// stopped waits until the relay has stopped itself.
func (c *child) stopped() {
	c.h.t.Helper()
	c.h.until(c.name+" stops", func() bool {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(c.cmd.Process.Pid, &status, syscall.WUNTRACED|syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			return false
		}
		require.NoError(c.h.t, err)
		require.False(c.h.t, pid != 0 && !status.Stopped(), "%s ended", c.name)
		return pid != 0
	})
}

func (c *child) goOn() { require.NoError(c.h.t, c.cmd.Process.Signal(syscall.SIGCONT)) }

func (c *child) kill() {
	require.NoError(c.h.t, c.cmd.Process.Kill())
	c.ended("killed")
}

// retire has the relay finish what it has in hand, and hand its shards over.
func (c *child) retire() {
	c.h.t.Helper()
	require.NoError(c.h.t, c.cmd.Process.Signal(syscall.SIGTERM))
	c.ended("")
}

// instead runs fn without the relay that is always there, and with what was written in one transaction and is not
// published.
func (h *harness) instead(fn func()) {
	h.t.Helper()
	if h.relay != nil {
		h.relay.retire()
	}
	h.burst()
	fn()
	h.employ()
}

// employ starts the relay that is always there.
func (h *harness) employ() { h.relay = h.child(nowhere, 0, shortLease) }
