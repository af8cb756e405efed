package migrations_test

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/migrations"
)

func TestFilesForAnotherSchemaNameItInEachStatementAndInNoComment(t *testing.T) {
	t.Parallel()
	billing, err := migrations.In("billing")
	require.NoError(t, err)
	files := billing.FS()
	names, err := fs.Glob(migrations.FS, "*.sql")
	require.NoError(t, err)
	require.Len(t, names, int(migrations.Latest()))
	require.NoError(t, fstest.TestFS(files, names...))
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		require.NoError(t, err)
		original, err := migrations.FS.ReadFile(name)
		require.NoError(t, err)
		require.Equal(t, string(original), strings.ReplaceAll(string(text), `"billing"`, "streamkeel"))
		for line := range strings.Lines(string(text)) {
			statement, comment, _ := strings.Cut(line, "--")
			require.NotContains(t, statement, "streamkeel", name)
			require.NotContains(t, comment, "billing", name)
		}
	}
}

func TestNamesThatAreNoSchemasAreRefused(t *testing.T) {
	t.Parallel()
	_, err := migrations.In("a.b")
	require.ErrorContains(t, err, `migrations: schema "a.b" is not [a-z_]`)
}
