package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/demo"
	"github.com/streamkeel/streamkeel/internal/servers"
)

// The variables that name servers for tests, and for the demo. Those of the other commands may
// name servers in use, and the demo leaves them alone.
const (
	testRedis    = "STREAMKEEL_TEST_REDIS_URL"
	testPostgres = "STREAMKEEL_TEST_POSTGRES_URL"
)

func newDemoCommand(a *app) *cobra.Command {
	var cfg demo.Config
	var broken string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Send real events through everything, kill processes on the way, and prove that nothing was lost",
		Long: `Send real GitHub webhooks and an order saga through outbox, relay, streams, groups, retries,
dead letters and a projection; kill a worker, a relay and Redis on the way; and check from Postgres and
Redis that nothing was lost and nothing counted twice. It starts servers of its own and removes them,
or uses those that ` + testRedis + ` and ` + testPostgres + ` name. Exit code 1 says that a check failed,
or that the run proves nothing because a fault did not bite.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, arg := range a.process.Args {
				if strings.HasPrefix(arg, "--redis-url") || strings.HasPrefix(arg, "--postgres-url") {
					return command.Unfitf("the demo starts servers of its own; set %s and %s to use others", testRedis, testPostgres)
				}
			}
			cfg.RedisURL, cfg.PostgresURL = a.env(testRedis), a.env(testPostgres)
			cfg.Break = demo.Break(broken)
			if err := cfg.Validate(); err != nil {
				return command.Unfit(err)
			}
			return a.demo(cmd.Context(), cfg)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&cfg.Events, "events", 20_000, "webhook deliveries, 400 to 1,000,000; a run of N occupies about 40 KB times N in memory and on disk")
	flags.IntVar(&cfg.Orders, "orders", 2_000, "orders, 100 to 100,000")
	flags.Int64Var(&cfg.Seed, "seed", 1, "what input and faults are drawn from; timings differ all the same")
	flags.DurationVar(&cfg.MinIdle, "min-idle", 3*time.Second, "after how long the entries of a worker that was killed are taken over; at least 1s")
	flags.DurationVar(&cfg.LeaseTTL, "lease-ttl", 3*time.Second, "after how long the shards of a relay that was killed are; at least 1s")
	flags.DurationVar(&cfg.Timeout, "timeout", 5*time.Minute, "when to give up; at least 10s")
	flags.StringVar(&broken, "break", "", "break the `code` on purpose, to see the checks fail: "+strings.Join(demo.Breaks(), ", "))
	return cmd
}

func (a *app) env(name string) string {
	for _, entry := range slices.Backward(a.process.Env) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

func (a *app) demo(ctx context.Context, cfg demo.Config) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("demo: find its own program: %w", err)
	}
	cfg.Self, cfg.Bin = self, filepath.Dir(self)
	status := newStatusLine(a.process.Stderr)
	report, err := demo.Run(ctx, cfg, status.say, status.progress)
	status.end()
	switch {
	case err != nil && ctx.Err() != nil:
		return unfinished{errors.New("demo: interrupted, so that nothing is proven; its servers are gone")}
	case errors.Is(err, servers.ErrNotInstalled), errors.Is(err, os.ErrNotExist):
		return command.Unfit(err)
	case err != nil:
		return err
	}
	if err := a.print(report, func(w io.Writer) { printReport(w, report) }); err != nil {
		return err
	}
	if !report.Passed() {
		return fmt.Errorf("demo: %d checks failed%s", report.ChecksFailed, invalid(report))
	}
	return nil
}

func invalid(r demo.Report) string {
	if len(r.Invalid) == 0 {
		return ""
	}
	return "; the run is invalid: " + strings.Join(r.Invalid, ", ")
}

func printReport(w io.Writer, r demo.Report) {
	var rows [][]string
	for _, c := range r.Checks {
		rows = append(rows, []string{map[bool]string{true: "ok", false: "FAILED"}[c.OK], c.Name, c.Detail})
	}
	table(w, []string{"", "CHECK", "FOUND"}, rows)
	fmt.Fprintf(w, "\ncommitted %d, published %d, handled %d; redelivered %d, retried %d, reclaimed %d, dead-lettered %d, redriven %d\n",
		r.Committed, r.Published, r.Handled, r.Redelivered, r.Retried, r.Reclaimed, r.DeadLettered, r.Redriven)
	fmt.Fprintf(w, "sagas completed %d, compensated %d; lost %d, duplicated %d, out of order %d; checks failed %d\n",
		r.SagasCompleted, r.SagasCompensated, r.Lost, r.Duplicated, r.OutOfOrder, r.ChecksFailed)
	fmt.Fprintf(w, "%.1f s; it occupied %d MB in Postgres, %d MB in Redis, %d MB of append-only file\n",
		r.Seconds, r.PostgresBytes>>20, r.RedisBytes>>20, r.AppendOnlyBytes>>20)
	if text := invalid(r); text != "" {
		fmt.Fprintln(w, strings.TrimPrefix(text, "; "))
	}
}

// statusLine writes what happens as lines, and on a terminal the state of things in a line
// that is written over.
type statusLine struct {
	w     io.Writer
	width int // 0: no terminal

	mu    sync.Mutex
	shown bool
	last  time.Time
}

func newStatusLine(w io.Writer) *statusLine {
	s := &statusLine{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.width, _, _ = term.GetSize(int(f.Fd())) // 0 where it cannot tell: plain lines
	}
	return s
}

func (s *statusLine) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.w, format+"\n", args...)
}

// plainEvery is how often the state goes to what is no terminal.
const plainEvery = 5 * time.Second

func (s *statusLine) progress(p demo.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := p.String()
	switch {
	case s.width > 0:
		s.clear()
		fmt.Fprint(s.w, text[:min(len(text), s.width-1)])
		s.shown = true
	case time.Since(s.last) >= plainEvery:
		s.last = time.Now()
		fmt.Fprintln(s.w, text)
	}
}

func (s *statusLine) clear() {
	if s.shown {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.shown = false
	}
}

func (s *statusLine) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}
