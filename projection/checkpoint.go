package projection

import (
	"context"
	"crypto/sha1" // the digest that Redis makes in scripts
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/stream"
)

// Checkpoint is how far a projection is in one stream.
type Checkpoint struct {
	Stream string
	// ID is that of the last entry that was passed, zero for none, and Event its event's id.
	ID    stream.ID
	Event string
	// Sequence is the highest outbox position that was applied.
	Sequence stream.Position
	// EntriesRead is how many entries the stream had ever had when it had the one at ID, or
	// -1 where that is unknown: what the stream was ever given, less this, is the lag.
	EntriesRead int64
	// MovedAt is when the checkpoint last moved, by the clock of Postgres.
	MovedAt time.Time

	version int64
	// deleted: entries that were deleted by hand up to this ID are accounted for.
	deleted stream.ID
	// guard is ID as it was before the stream was rewound: up to there, an entry without a
	// sequence was applied.
	guard stream.ID
}

// pass moves the checkpoint behind an entry.
func (c *Checkpoint) pass(en *stream.Entry) {
	c.ID, c.Event = en.ID, nameOf(rawID(en))
	if en.Event.Sequence.Compare(c.Sequence) > 0 {
		c.Sequence = en.Event.Sequence
	}
	if c.EntriesRead >= 0 {
		c.EntriesRead++
	}
}

// has reports whether the entry's event was applied before: by its sequence, or where it
// has none by its ID.
func (c *Checkpoint) has(en *stream.Entry) bool {
	if en.Event.Sequence.IsZero() {
		return en.ID.Compare(c.guard) <= 0
	}
	return en.Event.Sequence.Compare(c.Sequence) <= 0
}

// rawID is the entry's first field "id", as the inspect script reads it.
func rawID(en *stream.Entry) string {
	for name, value := range en.Fields() {
		if name == "id" {
			return value
		}
	}
	return ""
}

// nameOf is an event's id as the checkpoint keeps it. A foreign entry may have an id that
// Postgres would not take; then it is a digest, which the scripts make as well.
func nameOf(id string) string {
	const limit = 200
	if len(id) <= limit && utf8.ValidString(id) && !strings.ContainsRune(id, 0) {
		return id
	}
	sum := sha1.Sum([]byte(id))
	return "sha1:" + hex.EncodeToString(sum[:])
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const checkpointsQuery = `
SELECT stream, version, last_id, last_event, sequence_batch, sequence_row, entries_read, max_deleted_id, guard_id, moved_at
FROM {schema}.projection_checkpoint
WHERE projection = $1
ORDER BY stream`

// Checkpoints returns how far a projection is, by stream. One that has never run has none.
func Checkpoints(ctx context.Context, db querier, projection string) ([]Checkpoint, error) {
	return checkpoints(ctx, db, pgschema.Name{}, projection)
}

// CheckpointsIn is Checkpoints for another schema than "streamkeel", that of Config.Schema.
func CheckpointsIn(ctx context.Context, db querier, schema, projection string) ([]Checkpoint, error) {
	name, err := pgschema.Parse(schema)
	if err != nil {
		return nil, fmt.Errorf("projection: %w", err)
	}
	return checkpoints(ctx, db, name, projection)
}

func checkpoints(ctx context.Context, db querier, schema pgschema.Name, projection string) ([]Checkpoint, error) {
	rows, err := db.Query(ctx, schema.SQL(checkpointsQuery), projection)
	if err == nil {
		var all []Checkpoint
		if all, err = pgx.CollectRows(rows, scanCheckpoint); err == nil {
			return all, nil
		}
	}
	if pgerr.IsNoTable(err) {
		return nil, fmt.Errorf("projection: %s: the tables are missing, apply the migrations: %w", projection, err)
	}
	return nil, fmt.Errorf("projection: %s: read checkpoints: %w", projection, err)
}

func scanCheckpoint(row pgx.CollectableRow) (Checkpoint, error) {
	var c Checkpoint
	var id, deleted, guard string
	err := row.Scan(&c.Stream, &c.version, &id, &c.Event, &c.Sequence.Batch, &c.Sequence.Row, &c.EntriesRead, &deleted, &guard, &c.MovedAt)
	if err != nil {
		return Checkpoint{}, err
	}
	for _, field := range []struct {
		to   *stream.ID
		text string
	}{{&c.ID, id}, {&c.deleted, deleted}, {&c.guard, guard}} {
		if *field.to, err = stream.ParseID(field.text); err != nil {
			return Checkpoint{}, fmt.Errorf("stream %s: %w", c.Stream, err)
		}
	}
	return c, nil
}

const beginCheckpoint = `
INSERT INTO {schema}.projection_checkpoint
	(projection, stream, version, last_id, last_event, sequence_batch, sequence_row, entries_read, max_deleted_id, guard_id)
VALUES ($1, $2, 1, '0-0', '', 0, 0, $3, $4, '0-0')
ON CONFLICT (projection, stream) DO NOTHING`

// The rows are locked in one order, so that two runners wait for each other rather than
// deadlock; the one that waited finds another version, and moves nothing.
const moveCheckpoints = `
WITH mine AS (
	SELECT c.stream
	FROM {schema}.projection_checkpoint c
	JOIN unnest($2::text[], $3::bigint[], $4::text[]) AS was (stream, version, last_id)
		ON c.stream = was.stream AND c.version = was.version AND c.last_id = was.last_id
	WHERE c.projection = $1
	ORDER BY c.stream
	FOR UPDATE OF c
)
UPDATE {schema}.projection_checkpoint c
SET version = c.version + 1, moved_at = now(), last_id = next.last_id, last_event = next.last_event,
	sequence_batch = next.sequence_batch, sequence_row = next.sequence_row,
	entries_read = next.entries_read, max_deleted_id = next.max_deleted_id, guard_id = next.guard_id
FROM mine
JOIN unnest($2::text[], $3::bigint[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[], $10::text[], $11::text[])
	AS next (stream, version, last_id, last_event, sequence_batch, sequence_row, entries_read, max_deleted_id, guard_id)
	USING (stream)
WHERE c.projection = $1 AND c.stream = next.stream AND c.version = next.version`

// move is a checkpoint's step.
type move struct{ from, to Checkpoint }

// moveArgs returns the arguments of moveCheckpoints.
func moveArgs(projection string, moves []move) []any {
	n := len(moves)
	streams, versions, was := make([]string, n), make([]int64, n), make([]string, n)
	ids, events, batches, rows := make([]string, n), make([]string, n), make([]int64, n), make([]int64, n)
	entries, deleted, guards := make([]int64, n), make([]string, n), make([]string, n)
	for i, m := range moves {
		streams[i], versions[i], was[i] = m.from.Stream, m.from.version, m.from.ID.String()
		ids[i], events[i], batches[i], rows[i] = m.to.ID.String(), m.to.Event, m.to.Sequence.Batch, m.to.Sequence.Row
		entries[i], deleted[i], guards[i] = m.to.EntriesRead, m.to.deleted.String(), m.to.guard.String()
	}
	return []any{projection, streams, versions, was, ids, events, batches, rows, entries, deleted, guards}
}
