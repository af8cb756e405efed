package command

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

type settings struct {
	keep  time.Duration
	names []string
	on    bool
	count int
}

func newSettings() (*settings, *Flags) {
	s, f := &settings{}, NewFlags("prog", "prog does something.")
	f.DurationVar(&s.keep, "keep-for", time.Hour, "how long")
	f.StringSliceVar(&s.names, "names", []string{"sk"}, "`names` of something")
	f.BoolVar(&s.on, "turn-on", false, "turn it on")
	f.IntVar(&s.count, "count", 7, "`days` of it")
	return s, f
}

func read(f *Flags, env []string, args ...string) (done bool, out string, err error) {
	var stdout strings.Builder
	done, faults := f.Read(Process{Args: args, Env: env, Stdout: &stdout})
	return done, stdout.String(), errors.Join(faults...)
}

func TestEverySettingIsAFlagAndAnEnvironmentVariableAndTheFlagWins(t *testing.T) {
	t.Parallel()
	require.Equal(t, "STREAMKEEL_REDIS_URL", EnvName("redis-url"))
	env := []string{"STREAMKEEL_KEEP_FOR=5m", "STREAMKEEL_NAMES=a,b", "STREAMKEEL_TURN_ON=true", "STREAMKEEL_COUNT=", "COUNT=9", "odd"}
	s, f := newSettings()
	_, _, err := read(f, env, "--keep-for=1s")
	require.NoError(t, err)
	require.Equal(t, settings{keep: time.Second, names: []string{"a", "b"}, on: true, count: 7}, *s)

	s, f = newSettings()
	_, _, err = read(f, nil)
	require.NoError(t, err)
	require.Equal(t, settings{keep: time.Hour, names: []string{"sk"}, count: 7}, *s)
}

func TestFlagsOfHelpAndVersionHaveNoVariable(t *testing.T) {
	t.Parallel()
	_, f := newSettings()
	done, out, err := read(f, []string{"STREAMKEEL_HELP=true", "STREAMKEEL_VERSION=1"})
	require.NoError(t, err)
	require.False(t, done)
	require.Empty(t, out)
}

func TestHelpListsFlagVariableAndDefault(t *testing.T) {
	t.Parallel()
	_, f := newSettings()
	done, out, err := read(f, nil, "--help")
	require.NoError(t, err)
	require.True(t, done)
	for _, part := range []string{
		"prog does something.", "--keep-for duration\n        how long (default 1h) [STREAMKEEL_KEEP_FOR]",
		"--names names\n        names of something (default sk) [STREAMKEEL_NAMES]", "(default off) [STREAMKEEL_TURN_ON]", "--count days", "(default 7)",
	} {
		require.Contains(t, out, part)
	}
	done, out, err = read(f, nil, "--version")
	require.NoError(t, err)
	require.True(t, done)
	require.Contains(t, out, "prog ")
}

func TestEveryWrongSettingIsToldAtOnceAndOnce(t *testing.T) {
	t.Parallel()
	s, f := newSettings()
	_, _, err := read(f, []string{"STREAMKEEL_KEEP_FOR=soon", "STREAMKEEL_TURN_ON=maybe"}, "--count=many")
	require.ErrorContains(t, err, `--count: invalid value "many"`)
	require.ErrorContains(t, err, `STREAMKEEL_KEEP_FOR: invalid value "soon"`)
	require.ErrorContains(t, err, `STREAMKEEL_TURN_ON: invalid value "maybe"`)
	require.Equal(t, settings{keep: time.Hour, names: []string{"sk"}, count: 7}, *s, "what is wrong keeps its default")

	_, f = newSettings()
	_, _, err = read(f, nil, "--no-such")
	require.ErrorContains(t, err, "unknown flag: --no-such; prog --help")
	_, f = newSettings()
	_, _, err = read(f, nil, "redis://u:"+canary+"@host")
	require.ErrorContains(t, err, "no flag")
	require.NotContains(t, err.Error(), canary)
}

func TestDefaultsReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	for name, d := range map[string]time.Duration{"1h": time.Hour, "15m": 15 * time.Minute, "1h30m": 90 * time.Minute, "10s": 10 * time.Second, "2ms": 2 * time.Millisecond, "1m30s": 90 * time.Second} {
		flags.Duration(name, d, "")
		require.Equal(t, name, Default(flags.Lookup(name)))
	}
	flags.String("none", "", "")
	require.Empty(t, Default(flags.Lookup("none")))
}
