package pgarchive_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/archive/pgarchive"
	"github.com/streamkeel/streamkeel/internal/archivetest"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestTableAndStreamAreOneLog(t *testing.T) {
	t.Parallel()
	archivetest.Exercise(t, pgarchive.New(testenv.Postgres(t)))
}

func TestAppendIsAllOrNothing(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	a := pgarchive.New(pool)
	good, err := stream.NewEntry("s", stream.ID{Ms: 1}, []string{"a", "b"})
	require.NoError(t, err)
	bad, err := stream.NewEntry("s", stream.ID{Ms: 1 << 63}, []string{"a", "b"})
	require.NoError(t, err)
	require.ErrorContains(t, a.Append(t.Context(), "s", []stream.Entry{good, bad}), "beyond 2^63")
	entries, err := a.Read(t.Context(), "s", stream.ID{}, 10)
	require.NoError(t, err)
	require.Empty(t, entries)
	_, err = pool.Exec(t.Context(), "DROP TABLE streamkeel.archive")
	require.NoError(t, err)
	require.ErrorContains(t, a.Append(t.Context(), "s", []stream.Entry{good}), "pgarchive: append to s")
	_, err = a.Read(t.Context(), "s", stream.ID{}, 10)
	require.ErrorContains(t, err, "pgarchive: read s")
}

func TestTableOfAnotherSchemaIsUsed(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	_, err := pool.Exec(t.Context(), "ALTER SCHEMA streamkeel RENAME TO billing")
	require.NoError(t, err)
	a, err := pgarchive.NewIn("billing", pool)
	require.NoError(t, err)
	archivetest.Exercise(t, a)
	_, err = pgarchive.NewIn("a.b", pool)
	require.ErrorContains(t, err, "is not [a-z_]")
}
