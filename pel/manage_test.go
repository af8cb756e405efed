package pel_test

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func TestPauseIsPerGroupAndStream(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	other := pel.KeysOf(f.keys.Stream, "other")
	require.NoError(t, pel.Pause(t.Context(), f.rdb, f.keys))
	paused, err := pel.Paused(t.Context(), f.rdb, f.keys, other)
	require.NoError(t, err)
	require.Equal(t, []bool{true, false}, paused)
	require.NoError(t, pel.Resume(t.Context(), f.rdb, f.keys))
	paused, err = pel.Paused(t.Context(), f.rdb, f.keys)
	require.NoError(t, err)
	require.Equal(t, []bool{false}, paused)
	require.NoError(t, pel.Pause(t.Context(), f.rdb))

	pauseFull := func(full, changes, pauses bool) {
		t.Helper()
		changed, err := pel.PauseFull(t.Context(), f.rdb, full, f.keys)
		require.NoError(t, err)
		require.Equal(t, changes, changed)
		paused, err := pel.Paused(t.Context(), f.rdb, f.keys)
		require.NoError(t, err)
		require.Equal(t, []bool{pauses}, paused)
	}
	pauseFull(true, true, true)
	pauseFull(true, false, true)
	pauseFull(false, true, false)
	require.NoError(t, pel.Pause(t.Context(), f.rdb, f.keys))
	pauseFull(true, false, true)
	pauseFull(false, false, true) // a person's stays
	require.NoError(t, pel.Resume(t.Context(), f.rdb, f.keys))
	require.NoError(t, f.rdb.Set(t.Context(), other.Hash, "no hash", 0).Err())
	_, err = pel.Paused(t.Context(), f.rdb, f.keys, other)
	require.ErrorContains(t, err, "WRONGTYPE", "it is not hidden behind a field that is not there")
}

func TestSeekMovesPositionCheckpointAndLease(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	ids := []stream.ID{f.say("a"), f.say("b"), f.say("c")}
	l := f.lessor("a", time.Minute)
	g, err := l.Acquire(ctx, 0)
	require.NoError(t, err)
	got, _ := f.take("a", g.Generation)
	require.Equal(t, ids, got)

	require.NoError(t, pel.Seek(ctx, f.rdb, f.keys, ids[0].String()))
	_, lost := f.take("a", g.Generation)
	require.True(t, lost, "the owner notices")
	next, err := l.Acquire(ctx, 0)
	require.NoError(t, err)
	require.Greater(t, next.Generation, g.Generation)
	require.Equal(t, ids[0], next.Main)
	got, _ = f.take("a", next.Generation)
	require.Equal(t, ids[1:], got)

	for to, want := range map[string]struct {
		id  string
		lag int64
	}{"$": {ids[2].String(), 0}, "0": {"0-0", 3}} {
		require.NoError(t, pel.Seek(ctx, f.rdb, f.keys, to))
		require.Equal(t, want.id, f.group().LastDeliveredID)
		require.Equal(t, want.lag, f.group().Lag)
		require.Equal(t, want.id, f.rdb.HGet(ctx, f.keys.Hash, "checkpoint").Val())
	}
	require.ErrorIs(t, pel.Seek(ctx, f.rdb, f.keys, "yesterday"), stream.ErrInvalid)
	require.Error(t, pel.Seek(ctx, f.rdb, pel.KeysOf(f.keys.Stream, "nobody"), "0"))
}

func TestDeleteSparesAGroupWhoseConsumerHasOnlyJustBegun(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	namespace, _, _ := strings.Cut(f.keys.Stream, ":")
	topic := stream.Topic{Name: "orders", Namespace: namespace}
	f.deliver("new")
	require.Zero(t, f.rdb.Exists(t.Context(), f.keys.Members).Val(), "no heartbeat yet")
	err := pel.Delete(t.Context(), f.rdb, topic, "billing", pel.DeleteConfig{})
	require.ErrorIs(t, err, pel.ErrGroupInUse)
	require.EqualValues(t, 1, f.pending(f.keys.Stream))
	require.NoError(t, pel.Delete(t.Context(), f.rdb, topic, "billing", pel.DeleteConfig{Force: true}))
}

func TestDeleteRemovesAGroupThatNobodyServes(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	ctx := t.Context()
	topic := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t), Partitions: 2}
	require.NoError(t, stream.Declare(ctx, rdb, topic))
	group := stream.Group{Name: "billing", Kind: stream.GroupWork, MinIdleMs: 1000}
	require.NoError(t, stream.DeclareGroup(ctx, rdb, topic, group))
	var all []pel.Keys
	for _, key := range topic.StreamKeys() {
		k := pel.KeysOf(key, "billing")
		all = append(all, k)
		_, err := pel.Ensure(ctx, rdb, k, "0")
		require.NoError(t, err)
		require.NoError(t, pel.Checkpoint(ctx, rdb, k))
		require.NoError(t, rdb.ZAdd(ctx, k.Due, redis.Z{Score: 1, Member: "x"}).Err())
		require.NoError(t, rdb.HSet(ctx, k.Attempts, "1-1", "x").Err())
		require.NoError(t, rdb.Do(ctx, "xadd", k.Dead, "*", "a", "b").Err())
	}
	settler := pel.NewSettler(rdb, all[1], "alive")
	require.Eventually(t, func() bool { // a heartbeat may be older than MinIdle on a busy machine
		_, err := settler.Extend(ctx, all[1].Stream, nil)
		require.NoError(t, err)
		return pel.Delete(ctx, rdb, topic, "billing", pel.DeleteConfig{}) != nil
	}, 30*time.Second, time.Millisecond)
	require.EqualValues(t, 1, rdb.Exists(ctx, all[1].Hash).Val())
	groups, err := stream.Groups(ctx, rdb, topic)
	require.NoError(t, err)
	require.Len(t, groups, 1, "it holds retention until it is gone everywhere")

	require.Eventually(t, func() bool { return pel.Delete(ctx, rdb, topic, "billing", pel.DeleteConfig{}) == nil }, 30*time.Second, 10*time.Millisecond)
	for _, k := range all {
		require.Zero(t, rdb.Exists(ctx, k.Hash, k.Retry, k.Due, k.Attempts, k.Members).Val())
		require.EqualValues(t, 1, rdb.Exists(ctx, k.Dead).Val(), "letters stay")
		found, err := rdb.XInfoGroups(ctx, k.Stream).Result()
		require.NoError(t, err)
		require.Empty(t, found)
	}
	groups, err = stream.Groups(ctx, rdb, topic)
	require.NoError(t, err)
	require.Empty(t, groups)

	_, err = settler.Extend(ctx, all[1].Stream, nil)
	require.NoError(t, err)
	require.NoError(t, pel.Delete(ctx, rdb, topic, "billing", pel.DeleteConfig{Force: true, Letters: true}))
	require.Zero(t, rdb.Exists(ctx, all[0].Dead, all[1].Dead, all[1].Members).Val())
	require.Error(t, pel.Delete(ctx, rdb, topic, "no group", pel.DeleteConfig{}))
	require.Error(t, pel.Delete(ctx, rdb, stream.Topic{}, "billing", pel.DeleteConfig{}))
}
