package projection_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/projection"
)

func TestCheckpointsOfAnotherSchemaAreKeptThere(t *testing.T) {
	w := newWorld(t, 2)
	_, err := w.pool.Exec(t.Context(), `ALTER SCHEMA streamkeel RENAME TO billing`)
	require.NoError(t, err)
	w.addDirect(0, "a", "b")
	inBilling := func(c *projection.Config) { c.Schema = "billing" }
	r := w.runner(inBilling)
	_, err = drain(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, r.Rebuild(t.Context(), func(ctx context.Context, tx pgx.Tx) error { return nil }))
	_, err = drain(t.Context(), w.runner(inBilling))
	require.NoError(t, err)
	all, err := projection.CheckpointsIn(t.Context(), w.pool, "billing", projectionName)
	require.NoError(t, err)
	require.Len(t, all, 2)
	_, err = projection.CheckpointsIn(t.Context(), w.pool, "a.b", projectionName)
	require.ErrorContains(t, err, "is not [a-z_]")
}
