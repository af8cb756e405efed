package demo

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// bin is the folder of the programs that the demo starts.
var bin string

func TestMain(m *testing.M) {
	var err error
	if bin, err = os.MkdirTemp("", "streamkeel-demo-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer os.RemoveAll(bin)
	testenv.Main(m)
}

// build builds the programs, once: without the race detector, which their packages' own tests have.
var build = sync.OnceValue(func() error {
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin+string(filepath.Separator), "./cmd/...")
	build.Dir = filepath.Join("..", "..")
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
})

func small(t *testing.T) Config {
	t.Helper()
	_, err := servers.FindPostgres()
	testenv.RequireInstalled(t, err)
	_, err = servers.FindRedis()
	testenv.RequireInstalled(t, err)
	require.NoError(t, build())
	return Config{
		Events: 1200, Orders: 150, Seed: 7, MinIdle: time.Second, LeaseTTL: time.Second, Timeout: 4 * time.Minute,
		Bin: bin, Self: filepath.Join(bin, "streamkeel"),
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

func TestInterruptedDemoProvesNothingAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	_ = small(t) // builds the programs
	temp, err := os.MkdirTemp("", "streamkeel-demo-test-")
	require.NoError(t, err)
	defer func() { require.NoError(t, os.RemoveAll(temp)) }()
	require.NoError(t, os.Chmod(temp, 0o755)) // Postgres, where it is not this user, must reach it
	cmd := exec.Command(filepath.Join(bin, "streamkeel"), "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp, "STREAMKEEL_TEST_REDIS_URL=", "STREAMKEEL_TEST_POSTGRES_URL=")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(stderr)
	var last string
	for lines.Scan() {
		if last = lines.Text(); strings.HasPrefix(last, "publish ") {
			require.NoError(t, cmd.Process.Signal(os.Interrupt))
		}
	}
	require.ErrorContains(t, cmd.Wait(), "exit status 1")
	require.Contains(t, last, "interrupted")
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
}
