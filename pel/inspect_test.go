package pel_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func (f *fixture) totals() pel.Totals {
	f.t.Helper()
	all, err := pel.Inspect(f.t.Context(), f.rdb, f.keys)
	require.NoError(f.t, err)
	require.Len(f.t, all, 1)
	return all[0]
}

// end settles a delivery of c1.
func (f *fixture) end(en stream.Entry, st pel.Settlement) {
	f.t.Helper()
	st.Entry = en
	statuses, err := pel.NewSettler(f.rdb, f.keys, "c1").Settle(f.t.Context(), false, st)
	require.NoError(f.t, err)
	require.Equal(f.t, []pel.Status{pel.Settled}, statuses)
}

func TestTotalsCountEverythingThatAGroupHasOpen(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.Equal(t, pel.Totals{LagKnown: true}, f.totals(), "a new group has nothing open")

	late, dead, again := f.deliver("c1"), f.deliver("c1"), f.deliver("c1")
	f.deliver("c1")
	f.deliver("c2")
	f.end(late, pel.Settlement{Outcome: pel.Retry, Delay: time.Hour, Carried: pel.CarriedBy(&late, false)})
	f.end(dead, pel.Settlement{Outcome: pel.DeadLetter, Carried: pel.CarriedBy(&dead, false), Reason: "attempts"})
	f.end(again, pel.Settlement{Outcome: pel.Release, Carried: pel.CarriedBy(&again, false)})
	f.read(f.keys.Retry, "c1")
	for range 3 {
		require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.keys.Stream, Values: []string{"id", "1"}}).Err())
	}
	_, err := pel.NewSettler(f.rdb, f.keys, "c1").Extend(t.Context(), f.keys.Stream, nil)
	require.NoError(t, err)

	got := f.totals()
	require.Positive(t, got.Oldest)
	require.Less(t, got.Oldest, time.Minute)
	got.Oldest = 0
	require.Equal(t, pel.Totals{Length: 8, Pending: 3, Lag: 3, LagKnown: true, Retry: 1, Due: 1, Letters: 1, Consumers: 1}, got)
}

func TestTotalsTellTheAgeOfTheOldestPendingEntryByTheServersClock(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	now, err := f.rdb.Time(t.Context()).Result()
	require.NoError(t, err)
	hourAgo := stream.ID{Ms: uint64(now.Add(-time.Hour).UnixMilli()), Seq: 1}.String()
	require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.keys.Stream, ID: hourAgo, Values: []string{"id", "1", "type", "t"}}).Err())
	f.read(f.keys.Stream, "c1")
	f.deliver("c1")
	require.InDelta(t, time.Hour, f.totals().Oldest, float64(time.Minute))
}

func TestTotalsTellHowLongARetryHasBeenDue(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	now, err := f.rdb.Time(t.Context()).Result()
	require.NoError(t, err)
	require.NoError(t, f.rdb.ZAdd(t.Context(), f.keys.Due, redis.Z{Score: float64(now.Add(-time.Minute).UnixMilli()), Member: "m"}).Err())
	require.InDelta(t, time.Minute, f.totals().Overdue, float64(30*time.Second))
}

func TestLagThatRedisCannotTellIsUnknownAndNotZero(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := f.deliver("c1")
	second := f.deliver("c1")
	for range 3 {
		require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.keys.Stream, Values: []string{"id", "1"}}).Err())
	}
	require.NoError(t, f.rdb.XDel(t.Context(), f.keys.Stream, second.ID.String()).Err())
	require.NoError(t, f.rdb.Do(t.Context(), "xgroup", "setid", f.keys.Stream, "billing", first.ID.String()).Err())
	got := f.totals()
	require.False(t, got.LagKnown)
	require.False(t, pel.Sum(got, pel.Totals{Lag: 5, LagKnown: true}).LagKnown)
	require.True(t, pel.Sum(pel.Totals{Lag: 2, LagKnown: true}, pel.Totals{Lag: 5, LagKnown: true}).LagKnown)
}

func TestGroupThatItsStreamLacksIsMissingAndNoError(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.rdb.Do(t.Context(), "xgroup", "destroy", f.keys.Stream, "billing").Err())
	require.Equal(t, pel.Totals{Missing: 1}, f.totals())
	require.NoError(t, f.rdb.Del(t.Context(), f.keys.Stream, f.keys.Retry).Err())
	require.Equal(t, pel.Totals{Missing: 1}, f.totals())

	members, err := pel.Members(t.Context(), f.rdb, f.keys)
	require.NoError(t, err)
	require.Empty(t, members)
	page, err := pel.Entries(t.Context(), f.rdb, f.keys, pel.EntryFilter{}, "", 0)
	require.NoError(t, err)
	require.Equal(t, pel.EntryPage{}, page)
}

func TestStreamOfAnotherTypeDoesNotHideTheOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.deliver("c1")
	other := pel.KeysOf(testenv.Namespace(t)+":wrong.0", "billing")
	require.NoError(t, f.rdb.Set(t.Context(), other.Stream, "no stream", 0).Err())
	all, err := pel.Inspect(t.Context(), f.rdb, other, f.keys)
	require.ErrorContains(t, err, other.Stream)
	require.Len(t, all, 2)
	require.True(t, redisx.IsWrongType(all[0].Err))
	require.EqualValues(t, 1, all[1].Pending)
	sum := pel.Sum(all...)
	require.EqualValues(t, 1, sum.Pending)
	require.ErrorIs(t, sum.Err, all[0].Err)
	require.False(t, sum.LagKnown)

	_, err = pel.Members(t.Context(), f.rdb, other)
	require.ErrorContains(t, err, other.Stream)
	_, err = pel.Entries(t.Context(), f.rdb, other, pel.EntryFilter{}, "", 0)
	require.ErrorContains(t, err, other.Stream)
}

func TestUnreachableServerEndsAnInspectionWithOneError(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	require.NoError(t, server.Kill())
	all, err := pel.Inspect(t.Context(), rdb, pel.KeysOf("sk:a.0", "g"), pel.KeysOf("sk:a.1", "g"))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "\n")
	require.Empty(t, all)
}

func TestInspectionSpansTheSlotsOfACluster(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: testenv.Cluster(t).Addrs()})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	var keys []pel.Keys
	for p := range 2*50 + 3 {
		k := pel.KeysOf(stream.Topic{Name: "orders", Partitions: 128}.StreamKey(p), "billing")
		_, err := pel.Ensure(t.Context(), rdb, k, "0")
		require.NoError(t, err)
		require.NoError(t, rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: k.Stream, Values: []string{"id", "1"}}).Err())
		keys = append(keys, k)
	}
	all, err := pel.Inspect(t.Context(), rdb, keys...)
	require.NoError(t, err)
	require.Len(t, all, len(keys))
	sum := pel.Sum(all...)
	require.EqualValues(t, len(keys), sum.Lag)
	require.True(t, sum.LagKnown)
	require.Zero(t, sum.Missing)
}

func TestMembersTellWhatEachHasInHandAndHowLongItIsSilent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	en := f.deliver("busy")
	f.deliver("busy")
	f.giveBack("busy", en)
	f.read(f.keys.Retry, "busy")
	_, err := pel.NewSettler(f.rdb, f.keys, "beats-only").Extend(t.Context(), f.keys.Stream, nil)
	require.NoError(t, err)
	now, err := f.rdb.Time(t.Context()).Result()
	require.NoError(t, err)
	require.NoError(t, f.rdb.ZAdd(t.Context(), f.keys.Members, redis.Z{Score: float64(now.Add(-time.Hour).UnixMilli()), Member: "silent"}).Err())

	members, err := pel.Members(t.Context(), f.rdb, f.keys)
	require.NoError(t, err)
	require.Len(t, members, 3)
	require.Equal(t, "beats-only", members[0].Name)
	require.Zero(t, members[0].Pending)
	require.Less(t, members[0].Silent, time.Minute)
	require.Equal(t, "busy", members[1].Name)
	require.EqualValues(t, 2, members[1].Pending)
	require.Less(t, members[1].Silent, time.Minute)
	require.Equal(t, "silent", members[2].Name)
	require.InDelta(t, time.Hour, members[2].Silent, float64(time.Minute))
}

// giveBack releases an entry of a consumer that had failed before.
func (f *fixture) giveBack(consumer string, en stream.Entry) {
	f.t.Helper()
	_, err := pel.NewSettler(f.rdb, f.keys, consumer).Settle(f.t.Context(), false,
		pel.Settlement{Entry: en, Outcome: pel.Release, Carried: pel.Carried{Origin: "o/1-1", Attempts: 2, Deliveries: 7}})
	require.NoError(f.t, err)
}

func TestEntriesArePagedFilteredAndCarryTheirCounts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	released := f.deliver("c1")
	old := f.deliver("c1")
	f.deliver("c2")
	f.giveBack("c1", released)
	retried := f.read(f.keys.Retry, "c3")
	f.age("c1", old.ID.String())
	list := func(filter pel.EntryFilter, limit int) (all []pel.PendingEntry, pages int) {
		for next := ""; pages == 0 || next != ""; pages++ {
			page, err := pel.Entries(t.Context(), f.rdb, f.keys, filter, next, limit)
			require.NoError(t, err)
			require.LessOrEqual(t, len(page.Entries), max(limit, 100))
			all, next = append(all, page.Entries...), page.Next
		}
		return all, pages
	}
	all, pages := list(pel.EntryFilter{}, 0)
	require.Equal(t, 1, pages)
	require.Len(t, all, 3)
	require.Equal(t, old.ID, all[0].ID)
	require.Equal(t, 1, all[0].Carried.Deliveries)
	require.Equal(t, f.keys.Retry, all[2].Stream)
	require.Equal(t, retried.ID, all[2].ID)
	require.Equal(t, 8, all[2].Carried.Deliveries, "seven that it carries, and one here")
	require.Equal(t, 2, all[2].Carried.Attempts)

	single, pages := list(pel.EntryFilter{}, 1)
	require.Equal(t, 3, pages)
	for i := range single {
		require.Equal(t, all[i].ID, single[i].ID)
	}
	for name, c := range map[string]struct {
		filter pel.EntryFilter
		want   int
	}{
		"consumer":   {pel.EntryFilter{Consumer: "c1"}, 1},
		"idle":       {pel.EntryFilter{MinIdle: time.Minute}, 1},
		"deliveries": {pel.EntryFilter{MinDeliveries: 2}, 1},
		"nothing":    {pel.EntryFilter{Consumer: "c1", MinDeliveries: 9}, 0},
	} {
		got, _ := list(c.filter, 0)
		require.Len(t, got, c.want, name)
	}
	for _, next := range []string{"x", "main", "main/x", "other/1-1", "/1-1"} {
		_, err := pel.Entries(t.Context(), f.rdb, f.keys, pel.EntryFilter{}, next, 0)
		require.ErrorContains(t, err, "Next", next)
	}
	_, err := pel.Entries(t.Context(), f.rdb, f.keys, pel.EntryFilter{}, "", 1001)
	require.ErrorContains(t, err, "1001")
}

func TestEntriesGoThroughALongListInBoundedCalls(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 1300
	pipe := f.rdb.Pipeline()
	for range n {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: f.keys.Stream, Values: []string{"id", "1", "type", "t"}})
	}
	pipe.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "billing", Consumer: "c", Streams: []string{f.keys.Stream, ">"}, Count: n, Block: -1})
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	seen := map[stream.ID]bool{}
	for next := "-"; next != ""; {
		if next == "-" {
			next = ""
		}
		page, err := pel.Entries(t.Context(), f.rdb, f.keys, pel.EntryFilter{}, next, 700)
		require.NoError(t, err)
		for _, en := range page.Entries {
			require.False(t, seen[en.ID], "an entry comes once")
			seen[en.ID] = true
		}
		next = page.Next
	}
	require.Len(t, seen, n)
}

func TestLagIsSetRightAfterARestartOnceTheGroupHasReadAll(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{AppendOnly: true, Quiet: true})
	f := &fixture{t: t, rdb: testenv.RedisClient(t, server.URL()), keys: pel.KeysOf("sk:orders.0", "billing")}
	require.NoError(t, f.rdb.ConfigSet(t.Context(), "appendfsync", "always").Err()) // or the kill may lose what was read
	_, err := pel.Ensure(t.Context(), f.rdb, f.keys, "0")
	require.NoError(t, err)
	f.deliver("c1")
	require.NoError(t, f.rdb.BgRewriteAOF(t.Context()).Err()) // it writes how much was read, and what follows does not
	require.Eventually(t, func() bool {
		info, err := f.rdb.InfoMap(t.Context(), "persistence").Result()
		return err == nil && info["Persistence"]["aof_rewrite_in_progress"] == "0" && info["Persistence"]["aof_rewrite_scheduled"] == "0"
	}, 30*time.Second, 10*time.Millisecond)
	for range 2 {
		f.deliver("c1")
	}
	require.NoError(t, server.Kill())
	require.NoError(t, server.Start(t.Context()))
	require.Eventually(t, func() bool { return f.rdb.Ping(t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)

	f.add()
	require.NoError(t, pel.Checkpoint(t.Context(), f.rdb, f.keys))
	if got := f.totals(); got.LagKnown {
		require.Positive(t, got.Lag, "it is behind, and stays so")
	}
	f.read(f.keys.Stream, "c1")
	require.NoError(t, pel.Checkpoint(t.Context(), f.rdb, f.keys))
	got := f.totals()
	require.True(t, got.LagKnown)
	require.Zero(t, got.Lag)
	require.EqualValues(t, 4, got.Pending)
}
