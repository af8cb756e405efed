package testenv

import (
	"context"
	"database/sql"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver that migrations are applied with
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/migrations"
)

// Postgres returns a pool of connections to a database of the test's own, with all migrations applied and
// nothing else in it. A subtest has its own again; a second call in one test gives another pool
// on the same database. At the end of the test the pool is closed and the database dropped.
//
// The pool opens 8 connections at most, unless edit says otherwise.
func Postgres(t testing.TB, edit ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	return Pool(t, PostgresURL(t), edit...)
}

// Pool is Postgres for any database, such as one of PrivatePostgres.
func Pool(t testing.TB, databaseURL string, edit ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(databaseURL)
	require.NoError(t, err, "testenv: address of Postgres")
	cfg.MaxConns = 8
	for _, e := range edit {
		e(cfg)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	require.NoError(t, err, "testenv: pool")
	t.Cleanup(func() { closePool(t, pool, 10*time.Second) })
	return pool
}

// closePool closes the pool, and does not wait for ever for a connection that a failed test never gave back.
func closePool(t testing.TB, pool *pgxpool.Pool, patience time.Duration) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("testenv: the pool does not close: the test kept a connection")
	}
}

// Migrate applies the migrations to a database, such as one of PrivatePostgres.
func Migrate(t testing.TB, databaseURL string) {
	t.Helper()
	MigrateIn(t, databaseURL, "")
}

// MigrateIn is Migrate for the tables of a schema of their own.
func MigrateIn(t testing.TB, databaseURL, schema string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	require.NoError(t, migrate(ctx, databaseURL, schema))
}

func migrate(ctx context.Context, databaseURL, schema string) error {
	tables, err := migrations.In(schema)
	if err != nil {
		return err
	}
	db, err := sql.Open("pgx", databaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	return tables.Up(ctx, db)
}

// databases holds the URL of each running test's database.
var databases = struct {
	sync.Mutex
	urls map[testing.TB]string
}{urls: map[testing.TB]string{}}

// PostgresURL returns the address of the database that Postgres connects the test to, for tests that
// hand it to another process.
func PostgresURL(t testing.TB) string {
	t.Helper()
	databases.Lock()
	databaseURL, has := databases.urls[t]
	databases.Unlock()
	if has {
		return databaseURL
	}
	serverURL := sharedPostgres.url(t)
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	name := "streamkeel_test_" + randomName()
	require.NoError(t, sharedTemplate.clone(ctx, serverURL, name), "testenv: make database")
	t.Logf("database %s", name)

	databaseURL, err := withDatabase(serverURL, name)
	require.NoError(t, err, "testenv: make database")
	databases.Lock()
	databases.urls[t] = databaseURL
	databases.Unlock()
	t.Cleanup(func() {
		databases.Lock()
		delete(databases.urls, t)
		databases.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		defer cancel()
		require.NoError(t, execute(ctx, serverURL, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"), "testenv: drop database")
	})
	return databaseURL
}
