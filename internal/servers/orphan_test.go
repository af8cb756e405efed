package servers_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// helperVar makes TestHelperProcess work: it names the way in which the helper ends.
const helperVar = "STREAMKEEL_TEST_SERVERS_HELPER"

func TestServersEndWithTheProcessThatStartedThem(t *testing.T) {
	t.Parallel()
	_, err := servers.FindPostgres()
	testenv.RequireInstalled(t, err)
	for _, way := range []string{"killed", "exit", "panic"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			temp := openDir(t)
			helper := exec.Command(os.Args[0], "-test.run=^TestHelperProcess$")
			helper.Env = append(os.Environ(), helperVar+"="+way, "TMPDIR="+temp)
			stdout, err := helper.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, helper.Start())
			line, err := bufio.NewReader(stdout).ReadString('\n')
			require.NoError(t, err)
			pids := strings.Fields(line)
			require.Len(t, pids, 3, line)
			require.Len(t, entries(t, temp), 3)
			if way == "killed" {
				require.NoError(t, helper.Process.Kill())
			}
			require.Error(t, helper.Wait(), "each way is a failure")

			require.Eventually(t, func() bool { return len(entries(t, temp)) == 0 }, 30*time.Second, 10*time.Millisecond)
			for _, pid := range pids {
				n, err := strconv.Atoi(pid)
				require.NoError(t, err)
				require.False(t, runs(n), "server with pid %d", n)
				require.Zero(t, sharedMemory(t, n))
			}
		})
	}
}

// TestHelperProcess is the process that leaves its servers behind, one of them paused.
func TestHelperProcess(t *testing.T) {
	way := os.Getenv(helperVar)
	if way == "" {
		t.Skip("not a test: the process that TestServersEndWithTheProcessThatStartedThem starts")
	}
	running, err := servers.StartRedis(t.Context(), servers.RedisConfig{})
	require.NoError(t, err)
	paused, err := servers.StartRedis(t.Context(), servers.RedisConfig{})
	require.NoError(t, err)
	postgres, err := servers.StartPostgres(t.Context(), servers.PostgresConfig{})
	require.NoError(t, err)
	require.NoError(t, postgres.Stop()) // and a server that was started again is as well guarded
	require.NoError(t, postgres.Start(t.Context()))
	require.NoError(t, paused.Pause())
	fmt.Println(running.Pid(), paused.Pid(), postgres.Pid())
	switch way {
	case "exit":
		os.Exit(3)
	case "panic":
		panic("as wanted")
	}
	select {} // until killed
}

// runs reports whether the process is there and is more than an entry that nobody has waited for.
func runs(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
