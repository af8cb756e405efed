package filearchive_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/archive/filearchive"
	"github.com/streamkeel/streamkeel/internal/archivetest"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestFilesAndStreamAreOneLog(t *testing.T) {
	t.Parallel()
	a, err := filearchive.New(filepath.Join(t.TempDir(), "archive"))
	require.NoError(t, err)
	archivetest.Exercise(t, a)
}

func TestStreamNamesStayWithinTheFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := filearchive.New(filepath.Join(dir, "archive"))
	require.NoError(t, err)
	en, err := stream.NewEntry("s", stream.ID{Ms: 1}, []string{"a", "b"})
	require.NoError(t, err)
	for _, key := range []string{"../escape", "..", ".", "a/b", "{tag}x", "\n"} {
		require.NoError(t, a.Append(t.Context(), key, []stream.Entry{en}))
		entries, err := a.Read(t.Context(), key, stream.ID{}, 10)
		require.NoError(t, err)
		require.Len(t, entries, 1, key)
	}
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 1)
}

func TestDamagedFilesAreErrorsAndUnfinishedOnesAreNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := filearchive.New(dir)
	require.NoError(t, err)
	en, err := stream.NewEntry("s", stream.ID{Ms: 1}, []string{"a", "b"})
	require.NoError(t, err)
	require.NoError(t, a.Append(t.Context(), "s", []stream.Entry{en}))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "s", "123.tmp"), []byte("x"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "s", "notes.txt"), []byte("x"), 0o600))
	entries, err := a.Read(t.Context(), "s", stream.ID{}, 10)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	path := filepath.Join(dir, "s", "1-0_1-0.jsonl.gz")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, damaged := range [][]byte{data[:len(data)-6], []byte("no gzip"), nil} {
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		_, err = a.Read(t.Context(), "s", stream.ID{}, 10)
		require.Error(t, err)
	}
	_, err = filearchive.New(path)
	require.Error(t, err)
	require.NoError(t, os.Chmod(dir, 0o700))
}
