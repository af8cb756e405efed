package migrations_test

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/migrations"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestUpMakesTheTablesOnceHoweverOftenItRuns(t *testing.T) {
	t.Parallel()
	pool, db := fresh(t)
	before := time.Now().Add(-time.Minute)
	var first []migrations.MigrationStatus
	for range 3 {
		require.NoError(t, migrations.Up(t.Context(), db))
		status, err := migrations.Status(t.Context(), db)
		require.NoError(t, err)
		require.NotEmpty(t, status)
		require.True(t, slices.IsSortedFunc(status, func(a, b migrations.MigrationStatus) int { return cmp.Compare(a.Version, b.Version) }))
		for _, s := range status {
			require.NotEmpty(t, s.Name)
			require.WithinRange(t, s.AppliedAt, before, time.Now().Add(time.Minute))
		}
		require.Equal(t, migrations.Latest(), status[len(status)-1].Version)
		if first == nil {
			first = status
		}
		require.Equal(t, first, status)
	}
	require.Equal(t, 1, number(t, pool, "SELECT count(*) FROM streamkeel.layout"))
	require.Zero(t, number(t, pool, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "all in one schema")
}

func TestConcurrentUpsAllSucceed(t *testing.T) {
	t.Parallel()
	pool, _ := fresh(t)
	const processes = 4
	errs := make([]error, processes)
	var wg sync.WaitGroup
	for i := range processes {
		db := open(t, testenv.PostgresURL(t))
		db.SetMaxOpenConns(1) // one is enough
		wg.Go(func() { errs[i] = migrations.Up(t.Context(), db) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.Equal(t, 1, number(t, pool, "SELECT count(*) FROM streamkeel.layout"))
	require.Zero(t, number(t, pool, "SELECT count(*) - count(DISTINCT version_id) FROM streamkeel.goose_db_version"), "each applied once")
}

func TestWaitingUpEndsWithItsContext(t *testing.T) {
	t.Parallel()
	pool, db := fresh(t)
	holder, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer holder.Release()
	_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock($1)", migrations.LockID)
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, migrations.Up(ctx, db), context.DeadlineExceeded)
	require.False(t, exists(t, pool, "streamkeel.layout"))

	_, err = holder.Exec(t.Context(), "SELECT pg_advisory_unlock($1)", migrations.LockID)
	require.NoError(t, err)
	require.NoError(t, migrations.Up(t.Context(), db))
}

func TestStatusOfAFreshDatabaseChangesNothing(t *testing.T) {
	t.Parallel()
	pool, db := fresh(t)
	status, err := migrations.Status(t.Context(), db)
	require.NoError(t, err)
	require.Equal(t, migrations.MigrationStatus{Version: 1, Name: "00001_layout.sql"}, status[0])
	for _, s := range status {
		require.Zero(t, s.AppliedAt)
	}
	require.Zero(t, number(t, pool, "SELECT count(*) FROM pg_namespace WHERE nspname = 'streamkeel'"))
}

func TestDatabaseOfANewerVersionIsLeftAlone(t *testing.T) {
	t.Parallel()
	_, db := fresh(t)
	require.NoError(t, migrations.Up(t.Context(), db))
	newer := migrations.Latest() + 1
	_, err := db.ExecContext(t.Context(), "INSERT INTO streamkeel.goose_db_version (version_id, is_applied) VALUES ($1, true)", newer)
	require.NoError(t, err)
	require.NoError(t, migrations.Up(t.Context(), db))
	status, err := migrations.Status(t.Context(), db)
	require.NoError(t, err)
	last := status[len(status)-1]
	require.Equal(t, newer, last.Version)
	require.Empty(t, last.Name)
	require.NotZero(t, last.AppliedAt)
}

func TestRoleWithoutRightToCreateSchemasNeedsOnlyTheSchema(t *testing.T) {
	t.Parallel()
	pool, _ := fresh(t)
	role := testenv.Namespace(t)
	_, err := pool.Exec(t.Context(), "CREATE ROLE "+role)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := pool.Exec(context.Background(), fmt.Sprintf("DROP OWNED BY %s CASCADE; DROP ROLE %s", role, role))
		require.NoError(t, err)
	})
	u, err := url.Parse(testenv.PostgresURL(t))
	require.NoError(t, err)
	query := u.Query()
	query.Set("role", role)
	u.RawQuery = query.Encode()
	db := open(t, u.String())

	require.ErrorContains(t, migrations.Up(t.Context(), db), "permission denied")
	_, err = pool.Exec(t.Context(), "CREATE SCHEMA streamkeel AUTHORIZATION "+role)
	require.NoError(t, err)
	require.NoError(t, migrations.Up(t.Context(), db))
}

func TestLayoutIsOneRow(t *testing.T) {
	t.Parallel()
	_, err := testenv.Postgres(t).Exec(t.Context(), "INSERT INTO streamkeel.layout (version) VALUES (2)")
	require.ErrorContains(t, err, "layout_one_row")
}

// fresh returns two ways to the test's database, as if nothing had ever been applied to it.
func fresh(t *testing.T) (*pgxpool.Pool, *sql.DB) {
	t.Helper()
	pool := testenv.Postgres(t)
	_, err := pool.Exec(t.Context(), "DROP SCHEMA streamkeel CASCADE")
	require.NoError(t, err)
	return pool, open(t, testenv.PostgresURL(t))
}

func open(t *testing.T, databaseURL string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", databaseURL)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func number(t *testing.T, pool *pgxpool.Pool, query string) (n int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), query).Scan(&n))
	return n
}

func exists(t *testing.T, pool *pgxpool.Pool, table string) (yes bool) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT to_regclass($1) IS NOT NULL", table).Scan(&yes))
	return yes
}
