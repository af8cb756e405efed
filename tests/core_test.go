package tests

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The core is the log and its consumption. Who imports it gets a Redis client with it, and nothing of
// databases, telemetry or command lines.
func TestCoreDependsOnNothingThatItDoesNotNeed(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./stream", "./dlq", "./pel", "./retention", "./consumergroup")
	cmd.Dir = ".."
	output, err := cmd.Output()
	require.NoError(t, err)
	deps := strings.Fields(string(output))
	require.Contains(t, deps, "github.com/redis/go-redis/v9")
	require.NotContains(t, deps, "testing")
	require.NotContains(t, deps, "database/sql")
	for _, dep := range deps {
		for _, unwanted := range []string{
			"jackc/", "prometheus/", "opentelemetry.io/", "spf13/", "jsonschema", "pressly/", // what other packages of this module need
			"stretchr/", "pgregory.net/", "goleak", "testcontainers", "toxiproxy", "miniredis", // tests
		} {
			require.NotContains(t, dep, unwanted)
		}
	}
}
