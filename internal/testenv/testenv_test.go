package testenv

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
)

// helperVar makes the tests named TestHelper... run, as other tests' test binaries.
const helperVar = "STREAMKEEL_TEST_TESTENV_HELPER"

func TestSharedServersEndWithTheTestBinary(t *testing.T) {
	t.Parallel()
	requirePrograms(t)
	for _, way := range []string{"passes", "panics"} {
		output, err := runHelper(t, "TestHelperUsesSharedServers", redisVar+"=", postgresVar+"=", helperVar+"="+way)
		require.Equal(t, way == "passes", err == nil, output)
		_, output, found := strings.Cut(output, "redis at ")
		require.True(t, found, output)
		addr, output, _ := strings.Cut(output, " ")
		_, output, _ = strings.Cut(output, "postgres at ")
		databaseURL, _, _ := strings.Cut(output, "\n")
		require.Contains(t, databaseURL, "postgres://")

		rdb := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
		require.Eventually(t, func() bool { return rdb.Ping(t.Context()).Err() != nil }, 30*time.Second, 50*time.Millisecond)
		require.NoError(t, rdb.Close())
		require.Eventually(t, func() bool { return execute(t.Context(), databaseURL, "SELECT") != nil }, 30*time.Second, 50*time.Millisecond)
	}
}

func TestHelperUsesSharedServers(t *testing.T) {
	way := helper(t)
	rdb := Redis(t)
	require.NoError(t, rdb.Ping(t.Context()).Err())
	_, err := os.Stdout.WriteString("redis at " + rdb.Options().Addr + " postgres at " + PostgresURL(t) + "\n")
	require.NoError(t, err)
	if way == "panics" {
		panic("as wanted")
	}
}

func TestMissingSharedServerFailsAndSaysWhatToInstall(t *testing.T) {
	t.Parallel()
	empty := t.TempDir()
	for _, ci := range []string{"", "true"} {
		output, err := runHelper(t, "TestHelperUsesSharedServers", helperVar+"=passes", "CI="+ci, redisVar+"=", "PATH="+empty, "REDIS_BIN_DIR=")
		require.Error(t, err)
		require.Contains(t, output, "--- FAIL")
		require.Contains(t, output, "apt-get install redis-server")
		require.Contains(t, output, "make test")
	}
}

func TestMissingPrivateServerSkipsExceptInCI(t *testing.T) {
	t.Parallel()
	missing := []string{helperVar + "=1", "REDIS_BIN_DIR=" + t.TempDir()}
	output, err := runHelper(t, "TestHelperUsesAPrivateServer", append(missing, "CI=")...)
	require.NoError(t, err, output)
	require.Contains(t, output, "--- SKIP")
	require.Contains(t, output, "REDIS_BIN_DIR")

	output, err = runHelper(t, "TestHelperUsesAPrivateServer", append(missing, "CI=true")...)
	require.Error(t, err)
	require.Contains(t, output, "--- FAIL")
}

func TestHelperUsesAPrivateServer(t *testing.T) {
	helper(t)
	PrivateRedis(t, servers.RedisConfig{})
}

func TestMainFailsTheBinaryIfGoroutinesOutliveTheTests(t *testing.T) {
	t.Parallel()
	output, err := runHelper(t, "TestHelperLeaksAGoroutine", helperVar+"=1")
	require.Error(t, err)
	require.Contains(t, output, "--- PASS")
	require.Contains(t, output, "goroutines outlived the tests")
}

func TestHelperLeaksAGoroutine(t *testing.T) {
	helper(t)
	go func() { select {} }()
}

func TestLongTestsRunOnlyWhenWanted(t *testing.T) {
	for value, want := range map[string]bool{"": false, "0": false, "1": true} {
		t.Setenv(longVar, value)
		require.Equal(t, want, IsLong())
		ran := false
		t.Run("long", func(t *testing.T) {
			Long(t)
			ran = true
		})
		require.Equal(t, want, ran)
	}
}

// helper skips a helper in an ordinary run.
func helper(t *testing.T) string {
	t.Helper()
	value := os.Getenv(helperVar)
	if value == "" {
		t.Skip("not a test: runs in a test binary that another test starts")
	}
	return value
}

func runHelper(t *testing.T, name string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+name+"$", "-test.v")
	cmd.Env = append(os.Environ(), env...)
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// requirePrograms skips tests whose helper starts servers from programs.
func requirePrograms(t *testing.T) {
	t.Helper()
	_, err := servers.FindRedis()
	RequireInstalled(t, err)
	_, err = servers.FindPostgres()
	RequireInstalled(t, err)
}
