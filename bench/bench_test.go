package main

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// Every workload runs, small, and says what it is to say.
func TestEveryWorkloadGivesAFigureForEachSystem(t *testing.T) {
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	t.Setenv(redisVar, server.URL())
	t.Setenv(postgresVar, testenv.PrivatePostgres(t, servers.PostgresConfig{}).URL())
	for _, w := range workloads() {
		t.Run(w.name, func(t *testing.T) {
			var out bytes.Buffer
			require.NoError(t, run(t.Context(), []string{"-json", "-rounds=1", "-scale=0.005", "-only=" + w.name}, &out, io.Discard))
			lines := json.NewDecoder(&out)
			for _, s := range w.systems {
				var f figure
				require.NoError(t, lines.Decode(&f))
				require.Equal(t, w.name, f.Workload)
				require.Equal(t, s.name, f.System)
				require.Equal(t, w.base, f.Base)
				require.Equal(t, w.unit, f.Unit)
				require.Positive(t, f.Value)
				require.Positive(t, f.Ratio)
			}
			require.False(t, lines.More(), "one line a system")
		})
	}
}

func TestMemoryIsShownFlat(t *testing.T) {
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	t.Setenv(redisVar, server.URL())
	for _, kind := range []string{"-ordered=false", "-ordered"} {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), []string{"memory", "-backlog=3000", "-minutes=0.005", kind}, &out, io.Discard))
		require.Regexp(t, `(?s)^backlog: \d+ events.*MiB of the start\nfull rate: \d+ events.*MiB of the start\n$`, out.String())
	}
}

func TestMedianRatioIsThatOfRounds(t *testing.T) {
	require.InDelta(t, 2, median([]float64{9, 2, 1}), 0)
	require.InDelta(t, 1.5, median([]float64{2, 1}), 0)
}

func TestSlowBaseMakesFiguresInvalid(t *testing.T) {
	t.Parallel()
	w := workload{name: "w", unit: "events/s", base: "b", least: 100, systems: []system{{name: "b"}, {name: "s"}}}
	for base, invalid := range map[float64]bool{69: true, 71: false} {
		for _, f := range w.figures([]string{"b", "s"}, map[string][]float64{"b": {base}, "s": {35}}) {
			require.Equal(t, invalid, f.Invalid != "", f)
		}
	}
}

func TestBadFlagsAreTold(t *testing.T) {
	for part, args := range map[string][]string{
		"no workload":     {"-only", "publish-bach"},
		"-rounds 0":       {"-rounds", "0"},
		"-scale 2":        {"-scale", "2"},
		"is no flag":      {"json"},
		"no system":       {"-systems", "kafka"},
		"is not set":      {"-only", "read"},
		"not be negative": {"memory", "-minutes=-1"},
		"not defined":     {"-no-such"},
	} {
		t.Setenv(redisVar, "")
		require.ErrorContains(t, run(t.Context(), args, io.Discard, io.Discard), part)
	}
}
