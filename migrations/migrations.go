// Package migrations holds the SQL that makes and changes Streamkeel's tables, all in one schema,
// "streamkeel" unless [In] names another, and applies it. The files are plain SQL in the order of their numbers, readable for any
// migrator; goose, which Up uses, finds its marks in their comments.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/streamkeel/streamkeel/internal/pgschema"
)

// FS holds the migrations, each a file NNNNN_name.sql, for the schema "streamkeel".
//
//go:embed *.sql
var FS embed.FS

const lockID = 7_236_837_160_519_171_407 // one advisory lock for every Up on a database

// Up applies what is missing, each migration in a transaction of its own, and records it in
// goose_db_version in the schema. Where nothing is missing it does nothing, and a database that a newer version of
// Streamkeel has migrated further is left as it is. Any number of processes may call it at once: one
// works, the others wait for it, looking once a second, until ctx ends or 10 minutes are over.
//
// If a migration fails, the ones before it stay applied, and the next Up goes on from there. The
// lock belongs to a session: db must not go through a pooler that shares sessions between transactions.
// The role needs the right to create tables in the schema, and where that schema is
// missing, to create schemas in the database.
func Up(ctx context.Context, db *sql.DB) error { return Schema{}.Up(ctx, db) }

// Up is the package's Up, for this schema.
func (s Schema) Up(ctx context.Context, db *sql.DB) error {
	if err := s.ensure(ctx, db); err != nil {
		return fmt.Errorf("migrations: create schema: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker(
		lock.WithLockID(lockID),
		lock.WithLockTimeout(1, 600), // seconds, tries
	)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	store, err := s.store()
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectCustom, db, s.FS(),
		goose.WithStore(store),
		goose.WithSessionLocker(locker),
		goose.WithDisableGlobalRegistry(true),
	)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	// Not closed: that would close db, which is the caller's.
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrations: apply: %w", err)
	}
	return nil
}

// ensure makes the schema in which goose keeps its table. It asks first, since CREATE SCHEMA IF
// NOT EXISTS wants the right to create schemas also where there is nothing to create.
func (s Schema) ensure(ctx context.Context, db *sql.DB) error {
	var exists bool
	err := db.QueryRowContext(ctx, "SELECT to_regnamespace($1) IS NOT NULL", s.quoted()).Scan(&exists)
	if err != nil || exists {
		return err
	}
	_, err = db.ExecContext(ctx, "CREATE SCHEMA "+s.quoted())
	var pgErr interface{ SQLState() string }
	if errors.As(err, &pgErr) && (pgErr.SQLState() == "42P06" || pgErr.SQLState() == "23505") {
		return nil // somebody else made it: duplicate_schema, or unique_violation while theirs was not committed
	}
	return err
}

// MigrationStatus tells about one migration.
type MigrationStatus struct {
	Version int64
	// Name is the file's name, or "" for one that was applied by a newer version of Streamkeel.
	Name string
	// AppliedAt is zero where the migration is missing.
	AppliedAt time.Time
}

const statusQuery = `
SELECT version_id, max(tstamp::timestamptz)
FROM {schema}.goose_db_version
WHERE is_applied AND version_id > 0
GROUP BY version_id`

// Status lists the migrations, in order: those of this version of Streamkeel, and those that the database
// has beyond them. It only reads, and needs no more than SELECT on goose_db_version.
func Status(ctx context.Context, db *sql.DB) ([]MigrationStatus, error) {
	return Schema{}.Status(ctx, db)
}

// Status is the package's Status, for this schema.
func (s Schema) Status(ctx context.Context, db *sql.DB) ([]MigrationStatus, error) {
	known, err := sources()
	if err != nil {
		return nil, err
	}
	statuses := map[int64]MigrationStatus{}
	for version, name := range known {
		statuses[version] = MigrationStatus{Version: version, Name: name}
	}
	applied, err := s.readApplied(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("migrations: read status: %w", err)
	}
	for version, at := range applied {
		statuses[version] = MigrationStatus{Version: version, Name: known[version], AppliedAt: at}
	}
	inOrder := make([]MigrationStatus, 0, len(statuses))
	for _, version := range slices.Sorted(maps.Keys(statuses)) {
		inOrder = append(inOrder, statuses[version])
	}
	return inOrder, nil
}

func (s Schema) readApplied(ctx context.Context, db *sql.DB) (_ map[int64]time.Time, err error) {
	var exists bool
	err = db.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", s.versionTable()).Scan(&exists)
	if err != nil || !exists {
		return nil, err
	}
	rows, err := db.QueryContext(ctx, pgschema.Name(s).SQL(statusQuery))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	applied := map[int64]time.Time{}
	for rows.Next() {
		var version int64
		var at time.Time
		if err := rows.Scan(&version, &at); err != nil {
			return nil, err
		}
		applied[version] = at
	}
	return applied, rows.Err()
}

// Latest returns the version of the last migration: that of a database after Up.
func Latest() int64 {
	known, err := sources()
	if err != nil {
		panic(err) // a test applies these files
	}
	return slices.Max(slices.Collect(maps.Keys(known)))
}

// sources returns the file names by version.
func sources() (map[int64]string, error) {
	files, err := FS.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	names := map[int64]string{}
	for _, file := range files {
		version, err := goose.NumericComponent(path.Base(file.Name()))
		if err != nil {
			return nil, fmt.Errorf("migrations: %s: %w", file.Name(), err)
		}
		names[version] = file.Name()
	}
	return names, nil
}
