package pel_test

import (
	"flag"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// The models run 40 histories of some 50 steps, 200 in their long form.
func TestMain(m *testing.M) {
	checks := "40"
	if testenv.IsLong() {
		checks = "200"
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.steps": "50"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	testenv.Main(m)
}

// fixture is one partition with one group.
type fixture struct {
	t    testing.TB
	rdb  *redis.Client
	keys pel.Keys
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	rdb := testenv.Redis(t)
	f := &fixture{t: t, rdb: rdb, keys: pel.KeysOf(testenv.Namespace(t)+":orders.0", "billing")}
	made, err := pel.Ensure(t.Context(), rdb, f.keys, "0")
	require.NoError(t, err)
	require.True(t, made)
	return f
}

// deliver adds an event and reads it as the consumer.
func (f *fixture) deliver(consumer string) stream.Entry {
	f.t.Helper()
	f.add()
	return f.read(f.keys.Stream, consumer)
}

func (f *fixture) add() {
	f.t.Helper()
	e := stream.NewEvent("order.placed", "k", stream.ContentTypeJSON, []byte(`{}`))
	args := e.AppendFields([]any{"xadd", f.keys.Stream, "*"})
	require.NoError(f.t, f.rdb.Do(f.t.Context(), args...).Err())
}

func (f *fixture) read(key, consumer string) stream.Entry {
	f.t.Helper()
	reply, err := redisx.Raw(f.t.Context(), f.rdb, "xreadgroup", "group", "billing", consumer, "count", 1, "streams", key, ">")
	require.NoError(f.t, err)
	var entry stream.Entry
	require.NoError(f.t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error { entry = en; return nil }))
	require.NotZero(f.t, entry.ID)
	return entry
}

func (f *fixture) pending(key string) int64 {
	f.t.Helper()
	p, err := f.rdb.XPending(f.t.Context(), key, "billing").Result()
	require.NoError(f.t, err)
	return p.Count
}

func (f *fixture) length(key string) int64 {
	f.t.Helper()
	n, err := f.rdb.XLen(f.t.Context(), key).Result()
	require.NoError(f.t, err)
	return n
}

func (f *fixture) reached(d time.Duration) *pel.Reach {
	f.t.Helper()
	return reached(f.t, f.rdb, f.keys.Stream, d)
}

// reached is a Reach that has seen the server for long enough.
func reached(t testing.TB, rdb redis.UniversalClient, key string, d time.Duration) *pel.Reach {
	t.Helper()
	reach := pel.NewReach(rdb, time.Hour)
	require.NoError(t, reach.Look(t.Context(), key))
	require.Eventually(t, func() bool { return reach.Since(key) >= d }, 30*time.Second, 5*time.Millisecond)
	return reach
}

func idsOf(entries ...stream.Entry) []stream.ID {
	var ids []stream.ID
	for _, en := range entries {
		ids = append(ids, en.ID)
	}
	return ids
}
