package servers

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRedisIsFoundInItsFolderThenInPath(t *testing.T) {
	named, path := t.TempDir(), t.TempDir()
	t.Setenv("PATH", path)
	t.Setenv("REDIS_BIN_DIR", "")
	_, err := FindRedis()
	require.ErrorIs(t, err, ErrNotInstalled)
	require.ErrorContains(t, err, "apt-get install redis-server")

	addPrograms(t, path, "valkey-server")
	requireFound(t, filepath.Join(path, "valkey-server"), FindRedis)
	addPrograms(t, path, "redis-server")
	requireFound(t, filepath.Join(path, "redis-server"), FindRedis)

	t.Setenv("REDIS_BIN_DIR", named)
	_, err = FindRedis()
	require.ErrorIs(t, err, ErrNotInstalled, "a folder that is named is not passed over")
	require.ErrorContains(t, err, named)
	addPrograms(t, named, "valkey-server")
	requireFound(t, filepath.Join(named, "valkey-server"), FindRedis)
}

func TestPostgresIsFoundInItsFolderThenInPathThenTheNewest(t *testing.T) {
	named, path, packages := t.TempDir(), t.TempDir(), t.TempDir()
	before := postgresFolders
	t.Cleanup(func() { postgresFolders = before })
	postgresFolders = []string{filepath.Join(packages, "none", "*"), filepath.Join(packages, "*", "bin")}
	t.Setenv("PATH", path)
	t.Setenv("POSTGRES_BIN_DIR", "")
	_, err := FindPostgres()
	require.ErrorIs(t, err, ErrNotInstalled)
	require.ErrorContains(t, err, "apt-get install postgresql")

	for _, version := range []string{"9.6", "15", "16"} {
		addPrograms(t, filepath.Join(packages, version, "bin"), "postgres", "initdb")
	}
	addPrograms(t, filepath.Join(packages, "17", "bin"), "initdb") // the client's package alone
	requireFound(t, filepath.Join(packages, "16", "bin"), FindPostgres)

	addPrograms(t, path, "postgres")
	requireFound(t, filepath.Join(packages, "16", "bin"), FindPostgres)
	addPrograms(t, path, "initdb")
	requireFound(t, path, FindPostgres)

	t.Setenv("POSTGRES_BIN_DIR", named)
	_, err = FindPostgres()
	require.ErrorIs(t, err, ErrNotInstalled, "a folder that is named is not passed over")
	require.ErrorContains(t, err, named)
	addPrograms(t, named, "postgres", "initdb")
	requireFound(t, named, FindPostgres)
}

func addPrograms(t *testing.T, dir string, names ...string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for _, name := range names {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o755))
	}
}

func requireFound(t *testing.T, want string, find func() (string, error)) {
	t.Helper()
	got, err := find()
	require.NoError(t, err)
	require.Equal(t, want, got)
}
