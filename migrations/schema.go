package migrations

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"testing/fstest"

	"github.com/pressly/goose/v3/database"

	"github.com/streamkeel/streamkeel/internal/pgschema"
)

// Schema is a schema of one's own for Streamkeel's tables, beside others in the same database. The zero value is
// "streamkeel", that of the package's functions.
type Schema pgschema.Name

// In returns the schema of that name, which must be [a-z_][a-z0-9_]{0,62} and none of Postgres's own. An empty one is
// "streamkeel".
func In(schema string) (Schema, error) {
	name, err := pgschema.Parse(schema)
	if err != nil {
		return Schema{}, fmt.Errorf("migrations: %w", err)
	}
	return Schema(name), nil
}

// inFiles finds the schema's name in statements, and passes comments over.
var inFiles = regexp.MustCompile(`--.*|\b` + pgschema.Default + `\b`)

// FS returns the migrations as they are for this schema, for another migrator.
func (s Schema) FS() fs.FS {
	names, _ := fs.Glob(FS, "*.sql") // only a wrong pattern is an error
	files := fstest.MapFS{}
	for _, name := range names {
		text, _ := FS.ReadFile(name) // it is in the program
		files[name] = &fstest.MapFile{Mode: 0o444, Data: inFiles.ReplaceAllFunc(text, func(found []byte) []byte {
			if bytes.HasPrefix(found, []byte("--")) {
				return found
			}
			return []byte(s.quoted())
		})}
	}
	return files
}

func (s Schema) quoted() string { return pgschema.Name(s).Quoted() }

func (s Schema) versionTable() string { return s.quoted() + ".goose_db_version" }

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
