package command_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
)

type readiness struct {
	Ready   bool
	Reasons []string
	Checks  map[string]string
}

var quietly = slog.New(slog.DiscardHandler)

// serve runs a daemon that works until it is told to end.
func serve(t *testing.T, health *command.Health, work func(context.Context) error) (addr string, stop func() error) {
	t.Helper()
	var log commandtest.Buffer
	daemon := command.Daemon{
		Log: slog.New(slog.NewJSONHandler(&log, nil)), Health: health, HTTP: command.HTTPFlags{Listen: "127.0.0.1:0"}, Work: work,
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }),
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- daemon.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	require.Eventually(t, func() bool { addr = commandtest.ListenAddr(log.String()); return addr != "" }, commandtest.Patience, time.Millisecond)
	return addr, stop
}

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func TestReadinessTellsEveryReason(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	secrets := &command.Secrets{}
	secrets.Add(commandtest.Canary)
	health := command.NewHealth(secrets, map[string]func(context.Context) error{
		"redis":    func(context.Context) error { return nil },
		"postgres": func(context.Context) error { return errors.New("refuses " + commandtest.Canary + "\nand more") },
		"registry": func(context.Context) error {
			if broken.Load() {
				return errors.New("is empty")
			}
			return nil
		},
	})
	addr, stop := serve(t, health, untilDone)
	status, body := commandtest.Get(t, addr, "/readyz")
	require.Equal(t, http.StatusServiceUnavailable, status)
	var got readiness
	require.NoError(t, json.Unmarshal([]byte(body), &got))
	require.Equal(t, readiness{
		Reasons: []string{"postgres: refuses ***; and more"},
		Checks:  map[string]string{"redis": "ok", "registry": "ok", "postgres": "refuses ***; and more"},
	}, got)
	broken.Store(true)
	commandtest.Eventually(t, addr, "/readyz", http.StatusServiceUnavailable, "registry: is empty")

	status, body = commandtest.Get(t, addr, "/healthz")
	require.Equal(t, http.StatusOK, status, "an unready process is alive")
	require.Equal(t, "ok\n", body)
	_, body = commandtest.Get(t, addr, "/metrics")
	require.Equal(t, "metrics", body)
	status, _ = commandtest.Get(t, addr, "/")
	require.Equal(t, http.StatusNotFound, status)
	require.NoError(t, stop())
}

func TestNothingButReadingIsAnswered(t *testing.T) {
	t.Parallel()
	addr, _ := serve(t, command.NewHealth(nil, nil), untilDone)
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+"/readyz", strings.NewReader("x"))
		require.NoError(t, err)
		request.Close = true
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusMethodNotAllowed, response.StatusCode)
		require.Equal(t, "nosniff", response.Header.Get("X-Content-Type-Options"))
	}
}

func TestProbesShareOneLookASecond(t *testing.T) {
	t.Parallel()
	var looks atomic.Int32
	health := command.NewHealth(nil, map[string]func(context.Context) error{
		"redis": func(context.Context) error { looks.Add(1); return nil },
	})
	addr, _ := serve(t, health, untilDone)
	began := time.Now()
	for range 20 {
		status, _ := commandtest.Get(t, addr, "/readyz")
		require.Equal(t, http.StatusOK, status)
	}
	require.LessOrEqual(t, looks.Load(), 1+int32(time.Since(began)/time.Second))
}

func TestHangingCheckIsCutOff(t *testing.T) {
	t.Parallel()
	health := command.NewHealth(nil, map[string]func(context.Context) error{
		"redis": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	})
	addr, _ := serve(t, health, untilDone)
	status, body := commandtest.Get(t, addr, "/readyz")
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Contains(t, body, "deadline")
}

func TestDrainingDaemonIsAliveAndUnready(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	addr, stop := serve(t, command.NewHealth(nil, nil), func(ctx context.Context) error {
		<-ctx.Done()
		<-finish
		return nil
	})
	status, _ := commandtest.Get(t, addr, "/readyz")
	require.Equal(t, http.StatusOK, status)
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	commandtest.Eventually(t, addr, "/readyz", http.StatusServiceUnavailable, "draining")
	status, _ = commandtest.Get(t, addr, "/healthz")
	require.Equal(t, http.StatusOK, status)
	close(finish)
	require.NoError(t, <-ended)
}

func TestTakenPortIsUnfit(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	daemon := command.Daemon{Log: quietly, Health: command.NewHealth(nil, nil), HTTP: command.HTTPFlags{Listen: listener.Addr().String()}, Work: untilDone}
	err = daemon.Run(t.Context())
	require.True(t, command.IsUnfit(err))
	require.ErrorContains(t, err, "choose another address with --listen")
	require.NotEmpty(t, (&command.HTTPFlags{Listen: "nonsense"}).Validate())
}

func TestFailureOfTheWorkEndsTheDaemonAndIsLoggedOnce(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	daemon := command.Daemon{
		Log: slog.New(slog.NewJSONHandler(&log, nil)), Health: command.NewHealth(nil, nil), HTTP: command.HTTPFlags{Disable: true},
		Work: func(context.Context) error { return errors.New("broken") },
	}
	err := daemon.Run(t.Context())
	require.ErrorContains(t, err, "broken")
	require.Equal(t, 1, strings.Count(log.String(), "broken"))
	var stderr strings.Builder
	require.Equal(t, command.ExitFailure, command.Exit(&stderr, "prog", err, nil))
	require.Empty(t, stderr.String())
}
