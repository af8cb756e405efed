package demo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// The test's program is the demo's worker too.
func TestMain(m *testing.M) {
	if config := os.Getenv(WorkerVar); config != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := Work(ctx, config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testenv.Main(m)
}

// daemons builds the daemons, once.
// TestMain's process removes them with TMPDIR's other leftovers: see cleanUp.
var daemons = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "streamkeel-demo-test-"); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-o", dir+string(filepath.Separator), "./cmd/outbox-relay", "./cmd/reclaimer")
	build.Dir = filepath.Join("..", "..")
	output, err := build.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, output)
	}
	return dir, nil
})

func small(t *testing.T) Config {
	t.Helper()
	_, err := servers.FindPostgres()
	testenv.RequireInstalled(t, err)
	_, err = servers.FindRedis()
	testenv.RequireInstalled(t, err)
	bin, err := daemons()
	require.NoError(t, err)
	return Config{
		Events: 2000, Orders: 300, Seed: 7, MinIdle: time.Second, LeaseTTL: time.Second, Timeout: 4 * time.Minute,
		Bin: bin, Self: os.Args[0],
	}
}

func run(t *testing.T, cfg Config) Report {
	t.Helper()
	report, err := Run(t.Context(), cfg, t.Logf, func(p Progress) { t.Log(p) })
	require.NoError(t, err)
	for _, c := range report.Checks {
		t.Logf("%-6v %s: %s", c.OK, c.Name, c.Detail)
	}
	return report
}

func TestDemoPassesAndItsFaultsBite(t *testing.T) {
	t.Parallel()
	report := run(t, small(t))
	require.Zero(t, report.ChecksFailed)
	require.Empty(t, report.Invalid)
	require.Zero(t, report.Lost+report.Duplicated+report.OutOfOrder)
	require.True(t, report.Passed())
}

// Each of these is a fault that people build, and the reason why a part of Streamkeel is as it is.
func TestCheckerFindsWhatIsBrokenOnPurpose(t *testing.T) {
	t.Parallel()
	for _, broken := range []struct {
		what  Break
		check string
		count func(Report) int64
	}{
		{BreakAckEarly, "group notify: every committed event", func(r Report) int64 { return r.Lost }},
		{BreakPublishOutside, "transactions that were rolled back", func(r Report) int64 { return r.Duplicated }},
		{BreakNoInbox, "group notify: every committed event", func(r Report) int64 { return r.Duplicated }},
		{BreakRelayBySeq, "stream webhooks:", func(r Report) int64 { return r.Lost }},
		{BreakUndoRefused, "sagas: money balances", func(r Report) int64 { return int64(r.ChecksFailed) }},
	} {
		t.Run(string(broken.what), func(t *testing.T) {
			t.Parallel()
			cfg := small(t)
			cfg.Break = broken.what
			report := run(t, cfg)
			require.False(t, report.Passed())
			require.Positive(t, broken.count(report))
			for _, c := range report.Checks {
				if strings.HasPrefix(c.Name, broken.check) {
					require.False(t, c.OK, "%s: %s", c.Name, c.Detail)
					return
				}
			}
			require.Fail(t, "no such check", broken.check)
		})
	}
}

func TestDemoOnServersOfOthersLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	cfg := small(t)
	cfg.Events, cfg.Orders = 1200, 200
	cfg.RedisURL, cfg.PostgresURL = testenv.RedisURL(t), testenv.PostgresURL(t)
	report := run(t, cfg)
	require.True(t, report.Passed(), "%v", report.Invalid)

	rdb := testenv.Redis(t)
	keys, _, err := rdb.Scan(t.Context(), 0, "*demo-*", 1_000_000).Result()
	require.NoError(t, err)
	require.Empty(t, keys)
	conn, err := pgx.Connect(t.Context(), cfg.PostgresURL)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	var databases int
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_database WHERE datname ~ '^streamkeel_[0-9a-f]{8}$'`).Scan(&databases))
	require.Zero(t, databases)
}

func TestConfigReportsEveryFault(t *testing.T) {
	t.Parallel()
	err := Config{Events: 1, Orders: 1, RedisURL: "redis://x", Break: "x"}.Validate()
	for _, text := range []string{"--events 1 must", "--orders 1 must", "--min-idle 0s must", "--lease-ttl 0s must", "--timeout 0s must", "go together", `--break "x" is none of ack-before-handle`} {
		require.ErrorContains(t, err, text)
	}
}
