// Package testenv gives tests real servers. Redis and Postgres give a test its own corner of a shared server;
// PrivateRedis, PrivatePostgres and Cluster give it a server of its own, to be killed and paused.
//
// The shared servers are those that STREAMKEEL_TEST_REDIS_URL and STREAMKEEL_TEST_POSTGRES_URL name, which `make
// test` sets. Where one is not set, the test binary starts the server from the programs on this machine when a test first
// asks for it; it ends with the binary, however that ends. A shared server that cannot be had fails the test.
package testenv

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/streamkeel/streamkeel/internal/servers"
)

const (
	redisVar    = "STREAMKEEL_TEST_REDIS_URL"
	postgresVar = "STREAMKEEL_TEST_POSTGRES_URL"
	longVar     = "STREAMKEEL_TEST_LONG"
)

// Bounds each step that helps a test to its server: far more than a step takes on a busy machine.
const stepTimeout = time.Minute

// Main runs a package's tests and then fails it if goroutines outlived them. A package that wants
// this has
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// Nothing else needs it: servers end without it.
func Main(m *testing.M) {
	passed := m.Run()
	code := passed
	for _, s := range []*shared{sharedRedis, sharedPostgres} {
		if err := s.close(); err != nil {
			fmt.Fprintln(os.Stderr, "testenv:", err)
			code = max(code, 1)
		}
	}
	if code == 0 {
		err := goleak.Find() // which waits for about a second
		for try := 0; err != nil && try < 5; try++ {
			err = goleak.Find() // a dial of go-redis notices only after a second that its pool is closed
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "testenv: goroutines outlived the tests:", err)
			code = 1
		}
	}
	if code != passed { // or else the binary ends with it by itself, after what TestMain defers
		os.Exit(code)
	}
}

// Long skips the test unless long tests are wanted.
func Long(t testing.TB) {
	t.Helper()
	if !IsLong() {
		t.Skip("a long test: make test-long")
	}
}

// IsLong reports whether long tests are wanted, to tests that have a short and a long form.
func IsLong() bool { return os.Getenv(longVar) == "1" }

// shared is a server that the tests of a binary share.
type shared struct {
	variable string
	start    func(context.Context) (server, error)

	mu      sync.Mutex
	started bool
	server  server // nil where the variable names a server, or the start failed
	err     error
}

// server is what servers.Redis and servers.Postgres have in common.
type server interface {
	URL() string
	Close() error
}

var (
	sharedRedis = &shared{variable: redisVar, start: func(ctx context.Context) (server, error) {
		return servers.StartRedis(ctx, servers.RedisConfig{Quiet: true})
	}}
	sharedPostgres = &shared{variable: postgresVar, start: func(ctx context.Context) (server, error) {
		return servers.StartPostgres(ctx, servers.PostgresConfig{})
	}}
)

// url returns the server's address, and starts it if need be; a failed start is not tried again.
func (s *shared) url(t testing.TB) string {
	t.Helper()
	if url := os.Getenv(s.variable); url != "" {
		return url
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		// Not the test's context: the server is for all tests.
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		defer cancel()
		s.started = true
		s.server, s.err = s.start(ctx)
	}
	if s.err != nil {
		t.Fatalf("testenv: %v\nOr run `make test`, which finds or installs the servers, or set %s.", s.err, s.variable)
	}
	return s.server.URL()
}

// running reports whether there is a server to clean up on.
func (s *shared) running() bool {
	if os.Getenv(s.variable) != "" {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started && s.err == nil
}

func (s *shared) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started || s.err != nil {
		return nil
	}
	s.started = false
	return s.server.Close()
}
