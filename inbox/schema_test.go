package inbox_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestInboxesInTwoSchemasOfADatabaseDoNotSeeEachOther(t *testing.T) {
	w := newWorld(t)
	testenv.MigrateIn(t, testenv.PostgresURL(t), "billing")
	other, err := inbox.In("billing")
	require.NoError(t, err)
	e := stream.Event{ID: "e1", Source: "orders"}
	for _, once := range []func() (bool, error){
		func() (bool, error) { return inbox.Once(t.Context(), w.pool, group, e) },
		func() (bool, error) { return other.Once(t.Context(), w.pool, group, e) },
	} {
		for _, want := range []bool{true, false} {
			first, err := once()
			require.NoError(t, err)
			require.Equal(t, want, first)
		}
	}
	_, err = w.pool.Exec(t.Context(), `UPDATE billing.inbox SET handled_at = handled_at - interval '1 year'`)
	require.NoError(t, err)
	for schema, deleted := range map[string]int64{"": 0, "billing": 1} {
		c, err := inbox.NewCleaner(w.pool, inbox.CleanerConfig{Schema: schema})
		require.NoError(t, err)
		n, err := c.Clean(t.Context())
		require.NoError(t, err)
		require.Equal(t, deleted, n, schema)
	}
}

func TestNamesThatAreNoSchemasAreRefused(t *testing.T) {
	w := newWorld(t)
	_, err := inbox.In("a.b")
	require.ErrorContains(t, err, `inbox: schema "a.b" is not [a-z_]`)
	_, err = inbox.NewCleaner(w.pool, inbox.CleanerConfig{Schema: "a.b"})
	require.ErrorContains(t, err, `Schema: schema "a.b" is not [a-z_]`)
}
