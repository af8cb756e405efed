package testenv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// RedisURL returns the address of the shared Redis server, as redis.ParseURL takes it.
func RedisURL(t testing.TB) string {
	t.Helper()
	return sharedRedis.url(t)
}

// Redis returns a client of the shared Redis server, closed when the test ends. Its options may be
// edited first. Other tests use the server at the same time: keep to keys with Namespace, change no setting,
// flush nothing.
func Redis(t testing.TB, edit ...func(*redis.Options)) *redis.Client {
	t.Helper()
	return RedisClient(t, RedisURL(t), edit...)
}

// RedisClient is Redis for any server, such as one of PrivateRedis.
func RedisClient(t testing.TB, url string, edit ...func(*redis.Options)) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err, "testenv: address of Redis")
	for _, e := range edit {
		e(opts)
	}
	rdb := redis.NewClient(opts)
	t.Cleanup(func() { _ = rdb.Close() }) // fails only if the test closed it
	return rdb
}

// Namespace returns a namespace that no other test has, short, and valid as one of Streamkeel's names. When
// the test ends, the shared Redis server's keys with this namespace anywhere in their name are deleted.
func Namespace(t testing.TB) string {
	t.Helper()
	namespace := "t" + randomName()
	t.Logf("namespace %s", namespace)
	t.Cleanup(func() {
		if sharedRedis.running() {
			deleteKeys(t, "*"+namespace+"*")
		}
	})
	return namespace
}

func deleteKeys(t testing.TB, pattern string) {
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	opts, err := redis.ParseURL(sharedRedis.url(t))
	require.NoError(t, err)
	rdb := redis.NewClient(opts)
	defer rdb.Close()
	var cursor uint64
	for {
		keys, next, err := rdb.Scan(ctx, cursor, pattern, 1000).Result()
		require.NoError(t, err, "testenv: find keys to delete")
		if len(keys) > 0 {
			require.NoError(t, rdb.Unlink(ctx, keys...).Err(), "testenv: delete keys")
		}
		if cursor = next; cursor == 0 {
			return
		}
	}
}

// randomName returns 12 letters and digits, enough for names never to meet.
func randomName() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
