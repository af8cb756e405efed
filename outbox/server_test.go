package outbox

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// A Postgres that recovers from the crash of a backend gives transaction numbers out again, though it was not started
// anew: to a relay it is another server.
func TestPostgresThatRecoveredFromACrashCountsAsStartedAnew(t *testing.T) {
	t.Parallel()
	url := testenv.PrivatePostgres(t, servers.PostgresConfig{}).URL()
	started := func(ctx context.Context) (at, postmaster time.Time, err error) {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return at, postmaster, err
		}
		defer conn.Close(ctx)
		err = conn.QueryRow(ctx, "SELECT "+startedSQL+", pg_postmaster_start_time()").Scan(&at, &postmaster)
		return at, postmaster, err
	}
	before, postmaster, err := started(t.Context())
	require.NoError(t, err)
	again, _, err := started(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, again, "it stays while nothing happens")

	victim, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer victim.Close(t.Context())
	require.NoError(t, syscall.Kill(int(victim.PgConn().PID()), syscall.SIGKILL))
	require.Eventually(t, func() bool {
		after, same, err := started(t.Context())
		return err == nil && after.After(before) && same.Equal(postmaster)
	}, patience, 10*time.Millisecond)
}
