package migrations

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/pressly/goose/v3/database"

	"github.com/streamkeel/streamkeel/internal/pgschema"
)

// Schema is a schema of one's own for Streamkeel's tables, beside others in the same database. The zero value is
// "streamkeel", that of the package's functions.
type Schema struct{ name pgschema.Name }

// In returns the schema of that name, which must be [a-z_][a-z0-9_]{0,62} and none of Postgres's own. An empty one is
// "streamkeel".
func In(schema string) (Schema, error) {
	name, err := pgschema.Parse(schema)
	if err != nil {
		return Schema{}, fmt.Errorf("migrations: %w", err)
	}
	return Schema{name}, nil
}

// FS returns the migrations as they are for this schema, for another migrator.
func (s Schema) FS() fs.FS { return files{s.name} }

// files are those of FS, with another schema's name in them.
type files struct{ schema pgschema.Name }

var inFiles = regexp.MustCompile(`\b` + pgschema.Default + `\b`)

// Open opens a file.
func (f files) Open(name string) (fs.File, error) {
	file, err := FS.Open(name)
	if err != nil || path.Ext(name) != ".sql" {
		return file, err
	}
	text, err := io.ReadAll(file)
	return rendered{file, strings.NewReader(inFiles.ReplaceAllString(string(text), f.schema.Quoted()))}, err
}

type rendered struct {
	fs.File
	text io.Reader
}

func (r rendered) Read(p []byte) (int, error) { return r.text.Read(p) }

func (s Schema) versionTable() string { return s.name.Quoted() + ".goose_db_version" }

// store is where goose keeps which migrations were applied.
func (s Schema) store() (database.Store, error) {
	store, err := database.NewStore(database.DialectPostgres, s.versionTable())
	return versions{store}, err
}

// versions looks for a table whose schema's name is quoted, which goose does not.
type versions struct{ database.Store }

// TableExists reports whether the table is there.
func (v versions) TableExists(ctx context.Context, db database.DBTxConn) (exists bool, err error) {
	err = db.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", v.Tablename()).Scan(&exists)
	return exists, err
}
