package testenv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/migrations"
)

func TestMain(m *testing.M) { Main(m) }

func TestEachTestHasAMigratedDatabaseOfItsOwn(t *testing.T) {
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			pool := Postgres(t)
			_, err := pool.Exec(t.Context(), "CREATE TABLE mine (n int); INSERT INTO mine VALUES (1)") // fails where another test made it
			require.NoError(t, err)
			var version int64
			require.NoError(t, pool.QueryRow(t.Context(), "SELECT max(version_id) FROM streamkeel.goose_db_version").Scan(&version))
			require.Equal(t, migrations.Latest(), version)

			other, err := pgxpool.New(t.Context(), PostgresURL(t))
			require.NoError(t, err)
			defer other.Close()
			for _, same := range []*pgxpool.Pool{other, Postgres(t)} {
				require.NoError(t, same.QueryRow(t.Context(), "SELECT n FROM mine").Scan(new(int)))
			}
		})
	}
}

func TestDatabaseIsDroppedWhenItsTestEnds(t *testing.T) {
	t.Parallel()
	var databaseURL string
	var left *pgx.Conn
	t.Run("that test", func(t *testing.T) {
		databaseURL = PostgresURL(t)
		var err error
		left, err = pgx.Connect(t.Context(), databaseURL)
		require.NoError(t, err)
	})
	require.Error(t, left.Ping(t.Context()), "with the connections that are left")
	_, err := pgx.Connect(t.Context(), databaseURL)
	require.ErrorContains(t, err, "does not exist")
}

func TestPoolOpensEightConnectionsUnlessToldOtherwise(t *testing.T) {
	t.Parallel()
	require.EqualValues(t, 8, Postgres(t).Config().MaxConns)
	require.EqualValues(t, 3, Postgres(t, func(c *pgxpool.Config) { c.MaxConns = 3 }).Config().MaxConns)
}

func TestKeptConnectionFailsTheTestAndDoesNotHangIt(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), PostgresURL(t))
	require.NoError(t, err)
	kept, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	recorder := &recorder{TB: t}
	closePool(recorder, pool, 50*time.Millisecond)
	require.Contains(t, recorder.errors, "kept a connection")
	kept.Release()
	pool.Close()
}

// recorder is a test that notes an error instead of failing.
type recorder struct {
	testing.TB
	errors string
}

func (r *recorder) Error(args ...any) { r.errors += fmt.Sprint(args...) }

func TestTestBinariesShareOneTemplate(t *testing.T) {
	t.Parallel()
	serverURL := PrivatePostgres(t, servers.PostgresConfig{}).URL()
	const binaries = 6
	errs := make([]error, binaries)
	var wg sync.WaitGroup
	for i := range binaries {
		wg.Go(func() {
			var own template
			for n := range 2 {
				errs[i] = errors.Join(errs[i], own.clone(t.Context(), serverURL, fmt.Sprintf("clone_%d_%d", i, n)))
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.Equal(t, 1, count(t, serverURL, "SELECT count(*) FROM pg_database WHERE datname LIKE 'streamkeel_template_%'"))
	require.Equal(t, 2*binaries, count(t, serverURL, "SELECT count(*) FROM pg_database WHERE datname LIKE 'clone_%'"))
}

func TestHalfMadeTemplateIsMadeAnew(t *testing.T) {
	t.Parallel()
	serverURL := PrivatePostgres(t, servers.PostgresConfig{}).URL()
	hash, err := hashMigrations()
	require.NoError(t, err)
	require.NoError(t, execute(t.Context(), serverURL, "CREATE DATABASE streamkeel_template_"+hash))
	require.NoError(t, new(template).clone(t.Context(), serverURL, "c"))
	cloneURL, err := withDatabase(serverURL, "c")
	require.NoError(t, err)
	require.Equal(t, 1, count(t, cloneURL, "SELECT count(*) FROM streamkeel.layout"))
}

func TestPrivatePostgresIsMigratedOnDemand(t *testing.T) {
	t.Parallel()
	server := PrivatePostgres(t, servers.PostgresConfig{})
	Migrate(t, server.URL())
	require.Equal(t, 1, count(t, server.URL(), "SELECT count(*) FROM streamkeel.layout"))
}

func TestAddressOfPostgresMustBeAURL(t *testing.T) {
	_, err := withDatabase("host=localhost dbname=x", "y")
	require.ErrorContains(t, err, "must be a URL")
	got, err := withDatabase("postgres://u:p@h:1/x?sslmode=disable", "y")
	require.NoError(t, err)
	require.Equal(t, "postgres://u:p@h:1/y?sslmode=disable", got)
}

func count(t *testing.T, databaseURL, query string) (n int) {
	t.Helper()
	require.NoError(t, withConn(t.Context(), databaseURL, func(conn *pgx.Conn) error {
		return conn.QueryRow(context.Background(), query).Scan(&n)
	}))
	return n
}
