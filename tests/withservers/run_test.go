package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCommandFindsServersInVariablesAndTheyAreRemovedAfterwards(t *testing.T) {
	w := &fakeWorld{programs: true}
	code, _, env := runFake(t, w)
	require.Zero(t, code)
	require.Equal(t, []string{"R_URL=redis://local", "P_URL=postgres://local"}, env)
	require.Equal(t, []string{"local redis", "local postgres", "close postgres", "close redis"}, w.log)
}

func TestOnlyTheServersThatAreNeededAreStarted(t *testing.T) {
	w := &fakeWorld{programs: true}
	_, _, env := runFake(t, w, "--only", "postgres")
	require.Equal(t, []string{"P_URL=postgres://local"}, env)
	require.Equal(t, []string{"local postgres", "close postgres"}, w.log)
}

func TestServerThatIsGivenIsNotTouched(t *testing.T) {
	w := &fakeWorld{programs: true, vars: map[string]string{"R_URL": "redis://mine"}}
	_, _, env := runFake(t, w)
	require.Equal(t, []string{"P_URL=postgres://local"}, env, "R_URL is in the environment already")
	require.Equal(t, []string{"local postgres", "close postgres"}, w.log)
}

func TestProgramsAreEnsuredAndNotStarted(t *testing.T) {
	for _, w := range []*fakeWorld{{programs: true}, {apt: true}} {
		code, _, env := runFake(t, w, "--ensure-programs")
		require.Zero(t, code)
		require.Empty(t, env)
		require.Empty(t, w.log)
		require.True(t, w.programs)
	}
}

func TestContainersStandInForProgramsThatAreEnsured(t *testing.T) {
	w := &fakeWorld{images: []string{"redis:8", "postgres:18"}}
	_, _, env := runFake(t, w, "--ensure-programs")
	require.Equal(t, []string{"R_URL=redis://redis:8", "P_URL=postgres://postgres:18"}, env)
	require.Equal(t, []string{"redis:8 redis", "postgres:18 postgres", "close postgres", "close redis"}, w.log)
}

func TestServerThatFailsTakesTheOthersWithItAndNothingIsRun(t *testing.T) {
	w := &fakeWorld{programs: true, startFails: "postgres"}
	code, stderr, env := runFake(t, w)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "no luck with postgres")
	require.Nil(t, env)
	require.Equal(t, []string{"local redis", "local postgres", "close redis"}, w.log)
}

func TestFailureToTidyUpIsAFailure(t *testing.T) {
	w := &fakeWorld{programs: true, closeFails: true}
	code, stderr, _ := runFake(t, w)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "cannot close redis")
	require.Contains(t, stderr, "cannot close postgres")
}

func TestInterruptBeforeTheCommandRemovesWhatWasStarted(t *testing.T) {
	w := &fakeWorld{programs: true}
	signals := make(chan os.Signal, 1)
	world := &interruptingWorld{fakeWorld: w, signals: signals}
	code := run([]string{"--", "false"}, world, signals, new(strings.Builder))
	require.Equal(t, 130, code)
	require.Equal(t, []string{"local redis", "close redis"}, w.log)
}

// interruptingWorld sends an interrupt while postgres is looked for, and waits until it is heeded.
type interruptingWorld struct {
	*fakeWorld
	signals chan os.Signal
}

func (w *interruptingWorld) servers() []server {
	all := w.fakeWorld.servers()
	all[1].start = func(ctx context.Context) (running, error) {
		w.signals <- syscall.SIGINT
		<-ctx.Done()
		return running{}, context.Cause(ctx)
	}
	return all
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	for _, args := range [][]string{{}, {"--only", "mysql", "--", "true"}, {"--nonsense"}, {"--only", "redis"}} {
		w := &fakeWorld{programs: true}
		require.Equal(t, 2, run(args, w, nil, new(strings.Builder)), args)
		require.Empty(t, w.log)
	}
	require.Zero(t, run([]string{"-h"}, &fakeWorld{}, nil, new(strings.Builder)))
}

func TestRulesForPackagesAreTakenBack(t *testing.T) {
	dir := t.TempDir()
	there, absent := filepath.Join(dir, "there"), filepath.Join(dir, "new", "absent")
	require.NoError(t, os.WriteFile(there, []byte("before"), 0o755))
	restore, err := putRules(map[string]string{there: "rule 1", absent: "rule 2"})
	require.NoError(t, err)
	require.Equal(t, "rule 1", content(t, there))
	require.Equal(t, "rule 2", content(t, absent))
	require.NoError(t, restore())
	require.Equal(t, "before", content(t, there))
	require.NoFileExists(t, absent)
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// runFake has a command write down the variables that it was given, in the order of the servers; nil if it was not run.
func runFake(t *testing.T, w *fakeWorld, flags ...string) (code int, stderr string, env []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "env")
	var messages strings.Builder
	args := append(flags, "--", "sh", "-c", `env | grep -E '^(R|P)_URL=' | sort -r >"$0"; :`, file)
	code = run(args, w, nil, &messages)
	written, err := os.ReadFile(file)
	if err != nil {
		return code, messages.String(), nil
	}
	return code, messages.String(), strings.Fields(string(written))
}
