package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// These tests run the program as a process: their own binary, which becomes it by mainVar.
const mainVar = "STREAMKEEL_TEST_WITHSERVERS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainVar) != "" {
		main()
	}
	testenv.Main(m)
}

// untilGo is a command that says where its servers are, and runs until the test says go.
const untilGo = `echo $STREAMKEEL_TEST_REDIS_URL $STREAMKEEL_TEST_POSTGRES_URL; until [ -e "$0/go" ]; do sleep 0.05; done; exit 7`

func TestCommandHasServersUntilItEnds(t *testing.T) {
	t.Parallel()
	requirePrograms(t)
	requireServersUntilGo(t)
}

func TestCommandHasContainersUntilItEnds(t *testing.T) {
	t.Parallel()
	if os.Getenv("STREAMKEEL_TEST_CONTAINERS") != "1" {
		t.Skip("needs a Docker daemon: make test-containers")
	}
	requireServersUntilGo(t, "--containers")
}

func requireServersUntilGo(t *testing.T, flags ...string) {
	t.Helper()
	folder := t.TempDir()
	p := start(t, append(flags, "--", "sh", "-c", untilGo, folder)...)
	redisURL, postgresURL, _ := strings.Cut(p.firstLine(t), " ")
	require.NoError(t, pingRedis(t.Context(), redisURL))
	require.NoError(t, pingPostgres(t.Context(), postgresURL))

	sayGo(t, folder)
	require.Equal(t, 7, p.exitCode(t))
	require.Equal(t, redisURL+" "+postgresURL+"\n", p.stdout.String(), "standard output is the command's alone")
	require.Error(t, pingRedis(t.Context(), redisURL))
	require.Error(t, pingPostgres(t.Context(), postgresURL))
}

func TestSignalsGoToTheCommandWhoseExitCodeIsKept(t *testing.T) {
	t.Parallel()
	requirePrograms(t)
	for name, signal := range map[string]syscall.Signal{"TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP} {
		p := start(t, "--only", "redis", "--", "sh", "-c",
			`trap 'echo TERM; exit 5' TERM; trap 'echo HUP; exit 5' HUP; echo $STREAMKEEL_TEST_REDIS_URL; while :; do sleep 0.05; done`)
		url := p.firstLine(t)
		require.NoError(t, p.cmd.Process.Signal(signal))
		require.Equal(t, 5, p.exitCode(t))
		require.Equal(t, url+"\n"+name+"\n", p.stdout.String())
		require.Error(t, pingRedis(t.Context(), url))
	}
}

func TestExitCodesAreThoseOfAShell(t *testing.T) {
	t.Parallel()
	requirePrograms(t)
	require.Equal(t, 137, start(t, "--only", "redis", "--", "sh", "-c", "kill -KILL $$").exitCode(t))
	require.Equal(t, 127, start(t, "--only", "redis", "--", "no-such-command").exitCode(t))
}

func TestServersEndWhenWithserversIsKilled(t *testing.T) {
	t.Parallel()
	requirePrograms(t)
	folder := t.TempDir()
	p := start(t, "--only", "redis", "--", "sh", "-c", untilGo, folder)
	url := strings.TrimSpace(p.firstLine(t))
	require.NoError(t, pingRedis(t.Context(), url))
	require.NoError(t, p.cmd.Process.Kill())
	require.Eventually(t, func() bool { return pingRedis(t.Context(), url) != nil }, 30*time.Second, 20*time.Millisecond)
	sayGo(t, folder) // the command is not killed with it
	require.Equal(t, -1, p.exitCode(t))
}

// program is a running withservers.
type program struct {
	cmd            *exec.Cmd
	stdout, stderr output
}

func start(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.CommandContext(t.Context(), os.Args[0], args...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	// What make test has set is not to be found by the program.
	p.cmd.Env = append(os.Environ(), mainVar+"=1", "STREAMKEEL_TEST_REDIS_URL=", "STREAMKEEL_TEST_POSTGRES_URL=")
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", p.cmd, p.stderr.String())
		}
	})
	return p
}

func (p *program) firstLine(t *testing.T) (line string) {
	t.Helper()
	require.Eventually(t, func() (complete bool) {
		line, _, complete = strings.Cut(p.stdout.String(), "\n")
		return complete
	}, time.Minute, 10*time.Millisecond)
	return line
}

// exitCode waits for the end.
func (p *program) exitCode(t *testing.T) int {
	t.Helper()
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil {
		require.ErrorAs(t, err, &exit)
	}
	return p.cmd.ProcessState.ExitCode()
}

// output is a buffer that can be read while it is written.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func sayGo(t *testing.T, folder string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(folder, "go"), nil, 0o600))
}

func pingRedis(ctx context.Context, url string) error {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return err
	}
	opts.MaxRetries, opts.DialerRetries = -1, 1
	rdb := redis.NewClient(opts)
	defer rdb.Close()
	return rdb.Ping(ctx).Err()
}

func pingPostgres(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func requirePrograms(t *testing.T) {
	t.Helper()
	_, err := servers.FindRedis()
	testenv.RequireInstalled(t, err)
	_, err = servers.FindPostgres()
	testenv.RequireInstalled(t, err)
}
