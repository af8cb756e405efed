package stream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// log is a topic that a test writes to and reads.
type log struct {
	t     testing.TB
	rdb   redis.UniversalClient
	topic stream.Topic
	n     int
}

func newLog(t testing.TB, partitions int) *log {
	t.Helper()
	return &log{t: t, rdb: testenv.Redis(t), topic: topicOf(t, partitions)}
}

// add publishes n numbered events, round the partitions, and returns their numbers.
func (l *log) add(n int) []int {
	l.t.Helper()
	p := publisher(l.t, l.rdb, stream.PublisherConfig{})
	var added []int
	for range n {
		_, err := p.PublishTo(l.t.Context(), l.topic, l.n%l.topic.Count(), []stream.Event{orderPlaced.Event("k", order{Cents: int64(l.n)})})
		require.NoError(l.t, err)
		added = append(added, l.n)
		l.n++
	}
	return added
}

func (l *log) reader(config stream.ReaderConfig) *stream.Reader {
	l.t.Helper()
	config.Topic = l.topic
	r, err := stream.NewReader(l.rdb, config)
	require.NoError(l.t, err)
	return r
}

// collect ranges over the reader until it ends, fails, or has given n entries.
func (l *log) collect(r *stream.Reader, n int) (got []int, err error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	for entry, err := range r.Entries(ctx) {
		if err != nil {
			return got, err
		}
		o, err := orderPlaced.Decode(entry.Event)
		require.NoError(l.t, err)
		got = append(got, int(o.Cents))
		if len(got) == n {
			return got, nil
		}
	}
	return got, nil
}

func TestReplayEndsWithWhatWasThere(t *testing.T) {
	t.Parallel()
	l := newLog(t, 1)
	want := l.add(700)
	r := l.reader(stream.ReaderConfig{Count: 64})
	ctx := t.Context()
	var got []int
	for entry, err := range r.Entries(ctx) {
		require.NoError(t, err)
		o, err := orderPlaced.Decode(entry.Event)
		require.NoError(t, err)
		got = append(got, int(o.Cents))
		if len(got) == 10 {
			l.add(5) // after it began: not part of this replay
		}
	}
	require.Equal(t, want, got)
	more, err := l.collect(r, 0)
	require.NoError(t, err)
	require.Len(t, more, 5, "ranging again goes on")
	more, err = l.collect(r, 0)
	require.NoError(t, err)
	require.Empty(t, more)
}

// Where entries are large a read takes fewer of them; merged they come in order all the same.
func TestReadsAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	l := newLog(t, 2)
	p := publisher(t, l.rdb, stream.PublisherConfig{})
	large, small := bytes.Repeat([]byte("x"), 200_000), []byte("x")
	publish := func(partition int, data []byte) {
		_, err := p.PublishTo(t.Context(), l.topic, partition, []stream.Event{stream.NewEvent("x", "k", "text/plain", data)})
		require.NoError(t, err)
	}
	for range 120 {
		publish(0, large)
		publish(1, small)
	}
	for range 600 {
		publish(0, small)
	}

	r := l.reader(stream.ReaderConfig{Partitions: []int{0}})
	var reads []int
	for left := 720; left > 0; {
		entries, err := r.Read(t.Context())
		require.NoError(t, err)
		reads = append(reads, len(entries))
		left -= len(entries)
	}
	require.Equal(t, []int{16, 20, 20, 20, 20, 20}, reads[:6], "4 MiB, once their size is known")
	require.Equal(t, 256, slices.Max(reads))

	var last stream.ID
	n := 0
	for entry, err := range l.reader(stream.ReaderConfig{ByTime: true}).Entries(t.Context()) {
		require.NoError(t, err)
		require.GreaterOrEqual(t, entry.ID.Compare(last), 0)
		last = entry.ID
		n++
	}
	require.Equal(t, 840, n)
}

func TestReplayFollowsWithoutGapOrRepeatAtTheSeam(t *testing.T) {
	t.Parallel()
	for _, byTime := range []bool{false, true} {
		l := newLog(t, 3)
		want := l.add(100)
		r := l.reader(stream.ReaderConfig{Follow: true, ByTime: byTime, Count: 16})
		added := make(chan []int)
		go func() {
			var late []int
			for range 20 {
				late = append(late, l.add(5)...)
			}
			added <- late
		}()
		got, err := l.collect(r, 200)
		require.NoError(t, err)
		want = append(want, <-added...)
		if byTime {
			// Within a millisecond the order between partitions is open.
			require.ElementsMatch(t, want, got)
			for i := range got {
				require.InDelta(t, i, got[i], 60)
			}
			continue
		}
		slices.Sort(got)
		require.Equal(t, want, got)
	}
}

func TestMergedReplayIsInTheOrderOfTime(t *testing.T) {
	t.Parallel()
	l := newLog(t, 4)
	ids := map[int]stream.ID{}
	for i := range 200 { // IDs of its own, so that time is not the clock's
		id := stream.ID{Ms: uint64(1_700_000_000_000 + i*7%200), Seq: uint64(i)}
		ids[i] = id
	}
	order200 := make([]int, 200)
	for i := range order200 {
		order200[i] = i
	}
	slices.SortFunc(order200, func(a, b int) int { return ids[a].Compare(ids[b]) })
	for _, i := range order200 {
		e := orderPlaced.Event("k", order{Cents: int64(i)})
		args := e.AppendFields([]any{"xadd", l.topic.StreamKey(i % 4), ids[i].String()})
		require.NoError(t, l.rdb.Do(t.Context(), args...).Err())
	}
	got, err := l.collect(l.reader(stream.ReaderConfig{ByTime: true, Count: 7}), 0)
	require.NoError(t, err)
	require.Equal(t, order200, got)
	got, err = l.collect(l.reader(stream.ReaderConfig{ByTime: true, Count: 7, Since: time.UnixMilli(1_700_000_000_100)}), 0)
	require.NoError(t, err)
	require.Equal(t, order200[100:], got)
	got, err = l.collect(l.reader(stream.ReaderConfig{Partitions: []int{2}}), 0)
	require.NoError(t, err)
	require.Len(t, got, 50)
}

func TestReaderStartsWhereItIsTold(t *testing.T) {
	t.Parallel()
	l := newLog(t, 1)
	all := l.add(10)
	key := l.topic.StreamKey(0)
	entries := readAll(t, l.rdb, l.topic, 10)
	r := l.reader(stream.ReaderConfig{From: map[string]stream.Mark{key: {ID: entries[5].ID}}})
	got, err := l.collect(r, 0)
	require.NoError(t, err)
	require.Equal(t, all[6:], got)
	require.Equal(t, entries[9].ID, r.Mark(key).ID)
	require.Equal(t, entries[9].Event.ID, r.Mark(key).Event)

	now := l.reader(stream.ReaderConfig{FromNow: true, Follow: true})
	first, err := now.Read(t.Context())
	require.NoError(t, err)
	require.Empty(t, first)
	later := l.add(3)
	got, err = l.collect(now, 3)
	require.NoError(t, err)
	require.Equal(t, later, got)

	now.Seek(key, stream.Mark{ID: entries[8].ID})
	got, err = l.collect(now, 4)
	require.NoError(t, err)
	require.Equal(t, append([]int{9}, later...), got)
}

// stored is a mark that went through storage, as a caller would keep it.
func stored(t testing.TB, m stream.Mark) stream.Mark {
	t.Helper()
	data, err := json.Marshal(m)
	require.NoError(t, err)
	var back stream.Mark
	require.NoError(t, json.Unmarshal(data, &back))
	require.Equal(t, m, back)
	return back
}

// Every way in which a stream can cease to continue a mark, found while the reader
// goes on and by one that resumes from a stored mark.
func TestDiscontinuityIsFoundAndNotSkipped(t *testing.T) {
	t.Parallel()
	key := func(l *log) string { return l.topic.StreamKey(0) }
	del := func(l *log) { require.NoError(l.t, l.rdb.Del(l.t.Context(), key(l)).Err()) }
	idAt := func(l *log, n int) string { return l.rdb.XRange(l.t.Context(), key(l), "-", "+").Val()[n].ID }
	for name, c := range map[string]struct {
		change func(l *log)
		want   error
	}{
		"nothing":                   {func(*log) {}, nil},
		"more":                      {func(l *log) { l.add(20) }, nil},
		"deleted":                   {del, stream.ErrRewound},
		"deleted and filled, less":  {func(l *log) { del(l); l.add(3) }, stream.ErrRewound},
		"deleted and filled, more":  {func(l *log) { del(l); l.add(30) }, stream.ErrRewound},
		"deleted and filled, same":  {func(l *log) { del(l); l.add(10) }, stream.ErrRewound},
		"trimmed up to the reader":  {func(l *log) { l.rdb.XTrimMinID(l.t.Context(), key(l), idAt(l, 10)) }, nil},
		"trimmed behind the reader": {func(l *log) { l.rdb.XTrimMinID(l.t.Context(), key(l), idAt(l, 5)) }, nil},
		"trimmed past the reader":   {func(l *log) { l.rdb.XTrimMinID(l.t.Context(), key(l), idAt(l, 12)) }, stream.ErrTrimmedUnread},
		"trimmed to nothing":        {func(l *log) { l.rdb.XTrimMaxLen(l.t.Context(), key(l), 0) }, stream.ErrTrimmedUnread},
		"trimmed, then more":        {func(l *log) { l.rdb.XTrimMaxLen(l.t.Context(), key(l), 0); l.add(20) }, stream.ErrTrimmedUnread},
		"deleted one that was read": {func(l *log) { l.rdb.XDel(l.t.Context(), key(l), idAt(l, 3)) }, nil},
		"deleted the last one read": {func(l *log) { l.rdb.XDel(l.t.Context(), key(l), idAt(l, 9)) }, nil},
		"deleted one that comes":    {func(l *log) { l.rdb.XDel(l.t.Context(), key(l), idAt(l, 12)) }, stream.ErrTrimmedUnread},
		"made anew with low IDs": {func(l *log) {
			del(l)
			l.rdb.XAdd(l.t.Context(), &redis.XAddArgs{Stream: key(l), ID: "5-5", Values: []string{"id", "1", "type", "t"}})
		}, stream.ErrRewound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLog(t, 1)
			l.add(15)
			r := l.reader(stream.ReaderConfig{Count: 10})
			first, err := r.Read(t.Context())
			require.NoError(t, err)
			require.Len(t, first, 10)
			mark := stored(t, r.Mark(key(l)))
			c.change(l)
			resumed := l.reader(stream.ReaderConfig{From: map[string]stream.Mark{key(l): mark}})
			for _, r := range []*stream.Reader{r, resumed} {
				got, err := l.collect(r, 1)
				if c.want == nil {
					require.NoError(t, err)
					require.Equal(t, []int{10}, got)
					continue
				}
				require.ErrorIs(t, err, c.want)
				require.Empty(t, got, "an entry was given after the gap")
				require.Equal(t, mark, r.Mark(key(l)), "an error moves nothing")
			}
		})
	}
}

func TestPromotedReplicaThatLackedTheTailIsFound(t *testing.T) {
	t.Parallel()
	for _, more := range []int{0, 3, 40} {
		primary := testenv.PrivateRedis(t, servers.RedisConfig{})
		replica := testenv.PrivateRedis(t, servers.RedisConfig{ReplicaOf: primary.Addr()})
		l := &log{t: t, rdb: testenv.RedisClient(t, primary.URL()), topic: topicOf(t, 1)}
		l.add(10)
		require.Eventually(t, func() bool { return l.rdb.Do(t.Context(), "wait", 1, 1000).Val() == int64(1) }, 30*time.Second, 10*time.Millisecond)
		promoted := testenv.RedisClient(t, replica.URL())
		require.NoError(t, promoted.Do(t.Context(), "replicaof", "no", "one").Err()) // from here it lags
		l.add(10)
		r := l.reader(stream.ReaderConfig{})
		got, err := l.collect(r, 0)
		require.NoError(t, err)
		require.Len(t, got, 20)
		mark := r.Mark(l.topic.StreamKey(0))
		require.NoError(t, primary.Kill())
		l.rdb = promoted
		l.add(more)
		_, err = l.collect(l.reader(stream.ReaderConfig{From: map[string]stream.Mark{l.topic.StreamKey(0): mark}}), 0)
		require.ErrorIs(t, err, stream.ErrRewound, "%d entries after the promotion", more)
	}
}

func TestFollowingGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{AppendOnly: true})
	l := &log{t: t, rdb: testenv.RedisClient(t, server.URL()), topic: topicOf(t, 2)}
	l.add(10)
	r := l.reader(stream.ReaderConfig{Follow: true})
	got, err := l.collect(r, 10)
	require.NoError(t, err)
	restarted := make(chan error, 1)
	go func() {
		err := server.Kill()
		restarted <- errors.Join(err, server.Start(context.WithoutCancel(t.Context())))
	}()
	require.NoError(t, <-restarted)
	l.add(10)
	more, err := l.collect(r, 10)
	require.NoError(t, err)
	require.Len(t, append(got, more...), 20)
}

// memory is an Archive in memory.
type memory map[string][]stream.Entry

func (m memory) Read(_ context.Context, key string, after stream.ID, limit int) ([]stream.Entry, error) {
	var found []stream.Entry
	for _, en := range m[key] {
		if en.ID.Compare(after) > 0 && len(found) < limit {
			found = append(found, en)
		}
	}
	return found, nil
}

// archive moves the oldest entries, as retention does.
func (l *log) archive(m memory, n int) {
	l.t.Helper()
	key := l.topic.StreamKey(0)
	r, err := stream.NewReader(l.rdb, stream.ReaderConfig{Topic: l.topic, Count: n})
	require.NoError(l.t, err)
	entries, err := r.Read(l.t.Context())
	require.NoError(l.t, err)
	m[key] = append(m[key], entries...)
	require.NoError(l.t, l.rdb.XTrimMinID(l.t.Context(), key, entries[len(entries)-1].ID.Next().String()).Err())
}

func TestArchiveAndStreamAreReadAsOneLog(t *testing.T) {
	t.Parallel()
	for _, byTime := range []bool{false, true} {
		l := newLog(t, 1)
		m := memory{}
		want := l.add(100)
		l.archive(m, 30)
		l.archive(m, 20)
		got, err := l.collect(l.reader(stream.ReaderConfig{Archive: m, Count: 8, ByTime: byTime}), 0)
		require.NoError(t, err)
		require.Equal(t, want, got)

		// While a reader is on its way, what it comes to next moves into the archive.
		r := l.reader(stream.ReaderConfig{Archive: m, Count: 8})
		got, err = l.collect(r, 60)
		require.NoError(t, err)
		l.archive(m, 40)
		more, err := l.collect(r, 0)
		require.NoError(t, err)
		require.Equal(t, want, append(got, more...))

		// All of it moves; and then somebody trims by hand.
		l.archive(m, 100)
		got, err = l.collect(l.reader(stream.ReaderConfig{Archive: m, Count: 8}), 0)
		require.NoError(t, err)
		require.Equal(t, want, got)
		resume := stored(t, r.Mark(l.topic.StreamKey(0)))
		l.add(10)
		require.NoError(t, l.rdb.XTrimMaxLen(t.Context(), l.topic.StreamKey(0), 3).Err())
		_, err = l.collect(l.reader(stream.ReaderConfig{Archive: m, From: map[string]stream.Mark{l.topic.StreamKey(0): resume}}), 0)
		require.ErrorIs(t, err, stream.ErrTrimmedUnread)
	}
}

func TestClusterIsFollowedAndMerged(t *testing.T) {
	t.Parallel()
	for _, byTime := range []bool{false, true} {
		l := &log{t: t, rdb: clusterClient(t), topic: topicOf(t, 6)}
		l.add(60)
		r := l.reader(stream.ReaderConfig{Follow: true, ByTime: byTime, Count: 4})
		got, err := l.collect(r, 60)
		require.NoError(t, err)
		l.add(12)
		more, err := l.collect(r, 12)
		require.NoError(t, err)
		got = append(got, more...)
		slices.Sort(got)
		for i := range got {
			require.Equal(t, i, got[i])
		}
	}
}

func TestReadersStopWithTheirContext(t *testing.T) {
	t.Parallel()
	l := newLog(t, 1)
	l.add(1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, err := range l.reader(stream.ReaderConfig{Follow: true}).Entries(ctx) {
		cancel()
		last = err
	}
	require.ErrorIs(t, last, context.Canceled)
	_, err := l.reader(stream.ReaderConfig{}).Read(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestReaderConfigsAreValidatedWhole(t *testing.T) {
	t.Parallel()
	_, err := stream.NewReader(nil, stream.ReaderConfig{
		Count: -1, Partitions: []int{1}, From: map[string]stream.Mark{"other": {}}, Since: time.Now(), FromNow: true,
	})
	require.ErrorIs(t, err, stream.ErrInvalid)
	for _, part := range []string{"client is nil", "name", "Count -1", "partition 1", "other", "exclude each other"} {
		require.ErrorContains(t, err, part, strconv.Quote(part))
	}
}
