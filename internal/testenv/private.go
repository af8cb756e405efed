package testenv

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
)

// PrivateRedis starts a Redis server for one test, to be killed, stopped and paused. It is closed when
// the test ends. Where the program is not installed the test is skipped, or fails if CI=true.
func PrivateRedis(t testing.TB, cfg servers.RedisConfig) *servers.Redis {
	t.Helper()
	return private(t, func(ctx context.Context) (*servers.Redis, error) { return servers.StartRedis(ctx, cfg) })
}

// PrivatePostgres is PrivateRedis for Postgres. Its database is empty: Migrate fills it.
func PrivatePostgres(t testing.TB, cfg servers.PostgresConfig) *servers.Postgres {
	t.Helper()
	return private(t, func(ctx context.Context) (*servers.Postgres, error) { return servers.StartPostgres(ctx, cfg) })
}

// Cluster is PrivateRedis for a Redis Cluster of three masters, which takes two seconds to start.
func Cluster(t testing.TB) *servers.Cluster {
	t.Helper()
	return private(t, func(ctx context.Context) (*servers.Cluster, error) { return servers.StartCluster(ctx, 3) })
}

func private[S interface{ Close() error }](t testing.TB, start func(context.Context) (S, error)) S {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	s, err := start(ctx)
	RequireInstalled(t, err)
	require.NoError(t, err, "testenv: start a private server")
	t.Cleanup(func() { require.NoError(t, s.Close(), "testenv: close a private server") })
	return s
}

// RequireInstalled ends the test if err says that a server's programs are not installed: skipped, or failed
// if CI=true. For tests that start servers by themselves.
func RequireInstalled(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, servers.ErrNotInstalled) {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("testenv: %v", err)
	}
	t.Skipf("testenv: %v", err)
}
