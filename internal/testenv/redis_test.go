package testenv

import (
	"regexp"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func TestNamespaceIsUniqueValidAndShort(t *testing.T) {
	t.Parallel()
	valid := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,19}$`)
	seen := map[string]bool{}
	for range 20 {
		namespace := Namespace(t)
		require.Regexp(t, valid, namespace)
		require.NotContains(t, seen, namespace)
		seen[namespace] = true
	}
}

func TestKeysOfANamespaceGoWithItsTest(t *testing.T) {
	t.Parallel()
	rdb := Redis(t)
	var namespace string
	other := Namespace(t)
	t.Run("that test", func(t *testing.T) {
		namespace = Namespace(t)
		for _, key := range []string{namespace + ":orders.0", "{" + namespace + ":orders.0}:due", namespace + ":$topics", other + ":orders.0"} {
			require.NoError(t, rdb.Set(t.Context(), key, 1, 0).Err())
		}
		for i := range 3000 { // more than one SCAN finds
			require.NoError(t, rdb.SAdd(t.Context(), namespace+":many", i).Err())
		}
	})
	require.Empty(t, rdb.Keys(t.Context(), "*"+namespace+"*").Val())
	require.Equal(t, "1", rdb.Get(t.Context(), other+":orders.0").Val())
}

func TestRedisOptionsCanBeEdited(t *testing.T) {
	t.Parallel()
	rdb := Redis(t, func(o *redis.Options) { o.PoolSize = 3 })
	require.Equal(t, 3, rdb.Options().PoolSize)
	require.NoError(t, rdb.Ping(t.Context()).Err())
}
