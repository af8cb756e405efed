package servers_test

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

func TestPostgresKeepsCommittedRowsAcrossStops(t *testing.T) {
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{})
	execute(t, server, "CREATE TABLE t AS SELECT 1 AS n")
	url := server.URL()
	for name, end := range map[string]func() error{"fast": server.Stop, "immediate": server.StopImmediate} {
		// Neither waits for clients.
		idle, err := pgx.Connect(t.Context(), url)
		require.NoError(t, err)
		require.NoError(t, end(), name)
		require.Zero(t, server.Pid())
		require.Error(t, idle.Ping(t.Context()))
		_, err = pgx.Connect(t.Context(), url)
		require.Error(t, err)
		require.NoError(t, server.Start(t.Context()), name)
		require.Equal(t, url, server.URL())
		require.Equal(t, "1", query(t, server, "SELECT n::text FROM t"), name)
	}
}

func TestPostgresListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{})
	require.Equal(t, "127.0.0.1", query(t, server, "SHOW listen_addresses"))
	require.Equal(t, "", query(t, server, "SHOW unix_socket_directories"))
	require.Equal(t, "streamkeel", query(t, server, "SELECT current_user::text"))
	require.Equal(t, "on", query(t, server, "SHOW is_superuser"))
	require.Equal(t, "200", query(t, server, "SHOW max_connections"))
	require.Equal(t, "off", query(t, server, "SHOW fsync"))
}

func TestPostgresSettingsWin(t *testing.T) {
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{Durable: true, Settings: map[string]string{
		"max_prepared_transactions": "7", "max_connections": "30", "cluster_name": "it's",
	}})
	require.Equal(t, "on", query(t, server, "SHOW fsync"))
	require.Equal(t, "on", query(t, server, "SHOW full_page_writes"))
	require.Equal(t, "7", query(t, server, "SHOW max_prepared_transactions"))
	require.Equal(t, "30", query(t, server, "SHOW max_connections"))
	require.Equal(t, "it's", query(t, server, "SHOW cluster_name"))
}

func TestFailedPostgresStartShowsTheLogAndLeavesNothing(t *testing.T) {
	temp := useTempDir(t)
	_, err := servers.StartPostgres(t.Context(), servers.PostgresConfig{Settings: map[string]string{"wal_level": "nonsense"}})
	testenv.RequireInstalled(t, err)
	require.ErrorContains(t, err, "nonsense")
	require.ErrorContains(t, err, "wal_level")
	require.Empty(t, entries(t, temp))
}

func TestClosedPostgresLeavesNoMemoryAndNoFolder(t *testing.T) {
	temp := useTempDir(t)
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{})
	pid := server.Pid()
	require.Len(t, entries(t, temp), 1)
	require.NotZero(t, sharedMemory(t, pid))
	require.Equal(t, "mmap", query(t, server, "SHOW dynamic_shared_memory_type"), "in its folder")

	require.NoError(t, server.Close())
	require.NoError(t, server.Close(), "a second Close does nothing")
	require.Empty(t, entries(t, temp))
	require.Zero(t, sharedMemory(t, pid))
	require.ErrorContains(t, server.Start(t.Context()), "closed")
}

// sharedMemory counts the System V segments that a process made and that are still there.
func sharedMemory(t *testing.T, pid int) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	table, err := os.ReadFile("/proc/sysvipc/shm")
	require.NoError(t, err)
	n := 0
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == strconv.Itoa(pid) { // cpid
			n++
		}
	}
	return n
}

func execute(t *testing.T, server *servers.Postgres, statement string) {
	t.Helper()
	_, err := testenv.Pool(t, server.URL()).Exec(t.Context(), statement)
	require.NoError(t, err)
}

// query returns the one value of the one row, a text.
func query(t *testing.T, server *servers.Postgres, statement string) (value string) {
	t.Helper()
	require.NoError(t, testenv.Pool(t, server.URL()).QueryRow(t.Context(), statement).Scan(&value))
	return value
}
