// Package pgarchive keeps entries that retention trims in Postgres, in the
// table archive of Streamkeel's schema.
package pgarchive

import (
	"context"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/stream"
)

// DB is what the archive needs of Postgres: a *pgxpool.Pool, a *pgx.Conn or a pgx.Tx.
type DB interface {
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Archive is a retention.Archive and a stream.Archive. It is as safe for use by many
// goroutines as its DB. Delete old rows by ms, the Unix milliseconds of the entry's ID.
type Archive struct {
	db     DB
	schema pgschema.Name
}

// New returns the archive in the database, which has Streamkeel's migrations.
func New(db DB) *Archive { return &Archive{db: db} }

// NewIn is New for the table in another schema than "streamkeel", which migrations.In(schema).Up makes. The name must be
// [a-z_][a-z0-9_]{0,62} and none of Postgres's own.
func NewIn(schema string, db DB) (*Archive, error) {
	name, err := pgschema.Parse(schema)
	if err != nil {
		return nil, fmt.Errorf("pgarchive: %w", err)
	}
	return &Archive{db, name}, nil
}

const insertEntry = `INSERT INTO {schema}.archive (stream, ms, seq, fields) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`

// Append stores entries; those that are there already change nothing.
func (a *Archive) Append(ctx context.Context, streamKey string, entries []stream.Entry) error {
	batch, insert := &pgx.Batch{}, a.schema.SQL(insertEntry)
	for i := range entries {
		en := &entries[i]
		if en.ID.Ms > math.MaxInt64 || en.ID.Seq > math.MaxInt64 {
			return fmt.Errorf("pgarchive: entry %s of %s: an ID beyond 2^63 cannot be stored", en.ID, streamKey)
		}
		var fields [][]byte
		for name, value := range en.Fields() {
			fields = append(fields, []byte(name), []byte(value))
		}
		batch.Queue(insert, streamKey, int64(en.ID.Ms), int64(en.ID.Seq), fields)
	}
	if err := a.db.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("pgarchive: append to %s: %w", streamKey, err)
	}
	return nil
}

const readEntries = `
SELECT ms, seq, fields FROM {schema}.archive
WHERE stream = $1 AND (ms, seq) > ($2, $3) ORDER BY ms, seq LIMIT $4`

// Read returns the entries of a stream behind an ID, at most limit.
func (a *Archive) Read(ctx context.Context, streamKey string, after stream.ID, limit int) ([]stream.Entry, error) {
	if after.Ms > math.MaxInt64 {
		return nil, nil
	}
	rows, err := a.db.Query(ctx, a.schema.SQL(readEntries),
		streamKey, int64(after.Ms), int64(min(after.Seq, math.MaxInt64)), limit)
	if err != nil {
		return nil, fmt.Errorf("pgarchive: read %s: %w", streamKey, err)
	}
	entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (stream.Entry, error) {
		var ms, seq int64
		var fields []string
		var raw [][]byte
		if err := row.Scan(&ms, &seq, &raw); err != nil {
			return stream.Entry{}, err
		}
		for _, f := range raw {
			fields = append(fields, string(f))
		}
		return stream.NewEntry(streamKey, stream.ID{Ms: uint64(ms), Seq: uint64(seq)}, fields)
	})
	if err != nil {
		return nil, fmt.Errorf("pgarchive: read %s: %w", streamKey, err)
	}
	return entries, nil
}
