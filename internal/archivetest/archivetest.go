// Package archivetest has the behaviour that every archive must show.
package archivetest

import (
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

const old = 1_700_000_000_000 // ms: long ago

// Exercise trims a real stream into the archive and reads both as one log.
func Exercise(t *testing.T, archive retention.Archive) {
	t.Helper()
	rdb := testenv.Redis(t)
	topic := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}
	key := topic.StreamKey(0)
	add := func(from, n int) {
		t.Helper()
		pipe := rdb.Pipeline()
		for i := range n {
			pipe.XAdd(t.Context(), &redis.XAddArgs{
				Stream: key, ID: strconv.Itoa(old) + "-" + strconv.Itoa(from+i),
				Values: []string{"id", strconv.Itoa(from + i), "type", "t", "x-binary", "\xff\x00", "odd", "1", "odd", "2", "data", "héllo\n"},
			})
		}
		_, err := pipe.Exec(t.Context())
		require.NoError(t, err)
	}
	all := func() (ids []int) {
		t.Helper()
		r, err := stream.NewReader(rdb, stream.ReaderConfig{Topic: topic, Archive: archive, Count: 100})
		require.NoError(t, err)
		for en, err := range r.Entries(t.Context()) {
			require.NoError(t, err)
			require.NoError(t, en.Err)
			n, err := strconv.Atoi(en.Event.ID)
			require.NoError(t, err)
			ids = append(ids, n)
			var fields []string
			for name, value := range en.Fields() {
				fields = append(fields, name, value)
			}
			require.Equal(t, []string{"id", en.Event.ID, "type", "t", "x-binary", "\xff\x00", "odd", "1", "odd", "2", "data", "héllo\n"}, fields,
				"an archived entry is not what it was")
		}
		return ids
	}
	add(1, 1200)
	require.NoError(t, rdb.XGroupCreate(t.Context(), key, "g", "0").Err())
	var want []int
	for i := range 1500 {
		want = append(want, i+1)
	}
	for _, at := range []int{300, 900, 1200} {
		require.NoError(t, rdb.XGroupSetID(t.Context(), key, "g", strconv.Itoa(old)+"-"+strconv.Itoa(at)).Err())
		report, err := retention.Trim(t.Context(), rdb, key, nil, retention.Policy{Archive: archive}, false)
		require.NoError(t, err)
		require.EqualValues(t, 1200-at, report.Left)
		require.Equal(t, want[:1200], all())
	}
	add(1201, 300)
	require.Equal(t, want, all())

	// A trimmer that died between archive and trim stores the same again, in other pieces.
	r, err := stream.NewReader(rdb, stream.ReaderConfig{Topic: topic, Count: 50})
	require.NoError(t, err)
	entries, err := r.Read(t.Context())
	require.NoError(t, err)
	require.NoError(t, archive.Append(t.Context(), key, entries))
	require.NoError(t, archive.Append(t.Context(), key, entries[:20]))
	require.NoError(t, archive.Append(t.Context(), key, nil))
	require.Equal(t, want, all())
	none, err := archive.Read(t.Context(), key+"x", stream.ID{}, 10)
	require.NoError(t, err)
	require.Empty(t, none)
	some, err := archive.Read(t.Context(), key, stream.ID{Ms: old, Seq: 1195}, 7)
	require.NoError(t, err)
	require.Len(t, some, 7)
	require.EqualValues(t, 1196, some[0].ID.Seq)
}
