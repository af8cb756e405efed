package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/migrations"
)

// The template is a database with the migrations applied, made once on each server; a test's database
// is a copy of it, which is several times faster than applying the migrations.

const templateLock = 7_236_837_160_519_171_408 // advisory lock of whoever makes a template

// template is the template of one server.
type template struct {
	mu   sync.Mutex
	name string // once it is known to be there
}

var sharedTemplate template

// clone makes a database that holds what the migrations make.
func (m *template) clone(ctx context.Context, serverURL, name string) error {
	source, err := m.ensure(ctx, serverURL)
	if err != nil {
		return fmt.Errorf("make template: %w", err)
	}
	return withConn(ctx, serverURL, func(conn *pgx.Conn) error {
		// Copying files beats copying through the log, by a third and more where several tests do it at
		// once. Before version 15 there was no other way, and no option.
		var strategy string
		err := conn.QueryRow(ctx, `SELECT CASE WHEN current_setting('server_version_num')::int >= 150000 THEN 'STRATEGY file_copy' ELSE '' END`).Scan(&strategy)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+source+" "+strategy)
		return err
	})
}

// ensure makes the template where it is missing. Test binaries that run at the same time share it.
func (m *template) ensure(ctx context.Context, serverURL string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.name != "" {
		return m.name, nil
	}
	hash, err := hashMigrations()
	if err != nil {
		return "", err
	}
	name := "streamkeel_template_" + hash
	err = withConn(ctx, serverURL, func(conn *pgx.Conn) error {
		// Held until the connection closes.
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(templateLock)); err != nil {
			return err
		}
		var complete bool
		err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)", name).Scan(&complete)
		if err != nil || complete {
			return err
		}
		return makeTemplate(ctx, conn, serverURL, name)
	})
	if err != nil {
		return "", err
	}
	m.name = name
	return name, nil
}

// makeTemplate marks the template as one last of all: without the mark it is half-made, and made anew.
func makeTemplate(ctx context.Context, conn *pgx.Conn, serverURL, name string) error {
	for _, statement := range []string{"DROP DATABASE IF EXISTS " + name + " WITH (FORCE)", "CREATE DATABASE " + name} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	templateURL, err := withDatabase(serverURL, name)
	if err != nil {
		return err
	}
	if err := migrate(ctx, templateURL, ""); err != nil {
		return err
	}
	// A database that somebody is connected to cannot be copied.
	_, err = conn.Exec(ctx, "ALTER DATABASE "+name+" IS_TEMPLATE true ALLOW_CONNECTIONS false")
	return err
}

// hashMigrations names the migrations by their content.
func hashMigrations() (string, error) {
	hash := sha256.New()
	err := fs.WalkDir(migrations.FS, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := migrations.FS.ReadFile(path)
		fmt.Fprintf(hash, "%s %d\n%s", path, len(content), content)
		return err
	})
	return hex.EncodeToString(hash.Sum(nil))[:12], err
}

func withConn(ctx context.Context, url string, use func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return errors.Join(use(conn), conn.Close(ctx))
}

func execute(ctx context.Context, url, statement string) error {
	return withConn(ctx, url, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, statement)
		return err
	})
}

// withDatabase returns the address of another database on the same server.
func withDatabase(serverURL, name string) (string, error) {
	u, err := url.Parse(serverURL)
	if err != nil {
		return "", err
	}
	if u.Scheme == "" {
		return "", errors.New("the address of Postgres must be a URL (postgres://)")
	}
	u.Path = "/" + name
	return u.String(), nil
}
