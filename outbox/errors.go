package outbox

import "errors"

var (
	// ErrNotMigrated says that the tables are missing, or are of a version that this one does not know. What
	// helps: streamkeel migrate up.
	ErrNotMigrated = errors.New("tables are missing")
	// ErrUnsupportedPostgres says that the server is older than Postgres 14, or its settings cannot carry
	// the outbox.
	ErrUnsupportedPostgres = errors.New("unsupported Postgres")
	// ErrForeign says that the outbox's rows were written in another database cluster: it was restored
	// from a dump, or upgraded. What helps: streamkeel outbox restamp.
	ErrForeign = errors.New("outbox of another database cluster")
)
