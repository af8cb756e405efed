// Package commandtest runs Streamkeel's programs in tests.
package commandtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command"
)

// Patience is how long a test waits for what must come.
const Patience = 30 * time.Second

// Canary stands for a password in tests. It must never be seen anywhere.
const Canary = "canary-9f/3#x?y@z%"

// Outcome is what became of a program.
type Outcome struct {
	Code           int
	Stdout, Stderr string
}

// Call runs a program in this process, until it ends by itself.
func Call(t testing.TB, run func(context.Context, command.Process) int, env []string, args ...string) Outcome {
	t.Helper()
	return CallWith(t, run, strings.NewReader(""), env, args...)
}

// CallWith is Call with something on standard input.
func CallWith(t testing.TB, run func(context.Context, command.Process) int, stdin io.Reader, env []string, args ...string) Outcome {
	t.Helper()
	var stdout, stderr Buffer
	code := run(t.Context(), command.Process{Args: args, Env: env, Stdin: stdin, Stdout: &stdout, Stderr: &stderr})
	return Outcome{code, stdout.String(), stderr.String()}
}

// Run runs a program in a process of its own, until it ends by itself.
func Run(t testing.TB, path string, env []string, args ...string) Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	var stdout, stderr Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return Outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// RequireUnfit checks that a program said in one line what is wrong, and ended with code 2.
func RequireUnfit(t testing.TB, o Outcome, parts ...string) {
	t.Helper()
	require.Equal(t, command.ExitUnfit, o.Code, o.Stderr)
	require.Empty(t, o.Stdout)
	require.Equal(t, 1, strings.Count(o.Stderr, "\n"), "one line: %s", o.Stderr)
	for _, word := range []string{"goroutine", "Usage", "panic", "runtime error"} {
		require.NotContains(t, o.Stderr, word)
	}
	for _, part := range parts {
		require.Contains(t, o.Stderr, part)
	}
	require.NotContains(t, o.Stderr, Canary)
}

// Buffer is a bytes.Buffer for many goroutines.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var builds sync.Map // sync.OnceValues by package

// Build builds the program in a folder of the module, once in a test process, and returns its
// path. Remove removes it.
func Build(t testing.TB, folder string) string {
	t.Helper()
	once, _ := builds.LoadOrStore(folder, sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "streamkeel-build-")
		if err != nil {
			return "", err
		}
		path := filepath.Join(dir, filepath.Base(folder))
		cmd := exec.Command("go", "build", "-o", path, "./"+folder)
		cmd.Dir = Root()
		if output, err := cmd.CombinedOutput(); err != nil {
			return "", errors.Join(fmt.Errorf("build %s: %w\n%s", folder, err, output), os.RemoveAll(dir))
		}
		return path, nil
	}))
	path, err := once.(func() (string, error))()
	require.NoError(t, err)
	return path
}

// Remove removes what Build has built.
func Remove() {
	builds.Range(func(_, once any) bool {
		if path, err := once.(func() (string, error))(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
		return true
	})
}

// Root returns the module's folder: tests run in the folder of their package.
func Root() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	panic("commandtest: no go.mod above the working folder")
}

// Program is a running program.
type Program struct {
	t      testing.TB
	cmd    *exec.Cmd
	stderr Buffer
	ended  chan struct{}
	err    error
}

// Start starts a program. The test's end kills it.
func Start(t testing.TB, path string, env []string, args ...string) *Program {
	t.Helper()
	p := &Program{t: t, cmd: exec.Command(path, args...), ended: make(chan struct{})}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	p.cmd.Stderr = &p.stderr
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.ended
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(path), p.stderr.String())
		}
	})
	return p
}

// Stderr returns what the program has written to standard error so far.
func (p *Program) Stderr() string { return p.stderr.String() }

// Signal sends a signal.
func (p *Program) Signal(s os.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(s))
}

// Wait waits for the end and returns the exit code, -1 where a signal ended the program.
func (p *Program) Wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(Patience):
		require.Fail(p.t, "the program does not end", p.Stderr())
	}
	return p.cmd.ProcessState.ExitCode()
}

// Addr waits until a daemon has started, and returns the address that it listens on.
func (p *Program) Addr() string {
	p.t.Helper()
	addr := ""
	require.Eventually(p.t, func() bool {
		addr = ListenAddr(p.Stderr())
		return addr != "" || isClosed(p.ended)
	}, Patience, 5*time.Millisecond, "the daemon does not start")
	require.NotEmpty(p.t, addr, "the daemon ended: %s", p.Stderr())
	return addr
}

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// ListenAddr returns the address that a daemon's JSON log says it listens on, or "".
func ListenAddr(log string) string {
	for line := range strings.Lines(log) {
		var record struct{ Msg, Listen string }
		if err := json.Unmarshal([]byte(line), &record); err == nil && record.Msg == "started" {
			return record.Listen
		}
	}
	return ""
}

// Daemon is a daemon that runs in this process.
type Daemon struct {
	t      testing.TB
	Cancel context.CancelFunc
	stderr Buffer
	code   chan int
}

// Serve runs a daemon in this process. The test's end cancels it.
func Serve(t testing.TB, run func(context.Context, command.Process) int, env []string, args ...string) *Daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background()) // a drain outlives the test's own
	d := &Daemon{t: t, Cancel: cancel, code: make(chan int, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.code <- run(ctx, command.Process{Args: args, Env: env, Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: &d.stderr})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			t.Logf("daemon:\n%s", d.stderr.String())
		}
	})
	return d
}

// Stderr returns what the daemon has written to standard error so far.
func (d *Daemon) Stderr() string { return d.stderr.String() }

// Addr waits until the daemon has started, and returns the address that it listens on.
func (d *Daemon) Addr() string {
	d.t.Helper()
	addr := ""
	require.Eventually(d.t, func() bool {
		addr = ListenAddr(d.Stderr())
		return addr != "" || len(d.code) > 0
	}, Patience, 5*time.Millisecond, "the daemon does not start")
	require.NotEmpty(d.t, addr, "the daemon ended: %s", d.Stderr())
	return addr
}

// Wait waits for the end and returns the exit code.
func (d *Daemon) Wait() int {
	d.t.Helper()
	select {
	case code := <-d.code:
		return code
	case <-time.After(Patience):
		require.Fail(d.t, "the daemon does not end", d.Stderr())
		return -1
	}
}

// client keeps no connections, which would be goroutines.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: Patience}

// Get asks a daemon, and returns status and body.
func Get(t testing.TB, addr, path string) (int, string) {
	t.Helper()
	status, body, err := get(addr, path)
	require.NoError(t, err)
	return status, body
}

func get(addr, path string) (int, string, error) {
	response, err := client.Get("http://" + addr + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// Eventually waits until a daemon's answer has a status and holds a text.
func Eventually(t testing.TB, addr, path string, status int, part string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		got, body, err := get(addr, path)
		require.NoError(c, err)
		require.Equal(c, status, got, body)
		require.Contains(c, body, part)
	}, Patience, 20*time.Millisecond)
}
