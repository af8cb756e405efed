package pel_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

const minIdle = pel.MinMinIdle

func (f *fixture) sweep(max int) []pel.Reclaimed {
	f.t.Helper()
	r, err := pel.NewReclaimer(f.rdb, pel.Limits{MinIdle: minIdle, MaxDeliveries: max}, f.reached(minIdle))
	require.NoError(f.t, err)
	var taken []pel.Reclaimed
	require.NoError(f.t, r.Sweep(f.t.Context(), f.keys, func(one pel.Reclaimed) { taken = append(taken, one) }))
	return taken
}

// age makes entries look idle, as XCLAIM can.
func (f *fixture) age(consumer string, ids ...string) {
	f.t.Helper()
	args := []any{"xclaim", f.keys.Stream, "billing", consumer, 0}
	for _, id := range ids {
		args = append(args, id)
	}
	require.NoError(f.t, f.rdb.Do(f.t.Context(), append(args, "idle", 3_600_000, "justid")...).Err())
}

func TestSweepTakesWhatIsIdleAndNothingElse(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	reach := f.reached(minIdle)
	idle, fresh, trimmed, often := f.deliver("dead"), f.deliver("live"), f.deliver("dead"), f.deliver("dead")
	f.age("dead", idle.ID.String(), trimmed.ID.String(), often.ID.String())
	require.NoError(t, f.rdb.Do(t.Context(), "xclaim", f.keys.Stream, "billing", "dead", 0, often.ID.String(), "idle", 3_600_000, "retrycount", 5, "justid").Err())
	require.NoError(t, f.rdb.XDel(t.Context(), f.keys.Stream, trimmed.ID.String()).Err())

	r, err := pel.NewReclaimer(f.rdb, pel.Limits{MinIdle: minIdle, MaxDeliveries: 5}, reach)
	require.NoError(t, err)
	fates := map[string]pel.Reclaimed{}
	require.NoError(t, r.Sweep(t.Context(), f.keys, func(one pel.Reclaimed) { fates[one.ID.String()] = one }))
	require.Len(t, fates, 3)
	require.Equal(t, pel.FateMoved, fates[idle.ID.String()].Fate)
	require.Equal(t, pel.FateTrimmed, fates[trimmed.ID.String()].Fate)
	require.Equal(t, pel.FateDeliveries, fates[often.ID.String()].Fate)
	require.Equal(t, "dead", fates[idle.ID.String()].Consumer)
	require.EqualValues(t, 1, f.pending(f.keys.Stream))
	require.EqualValues(t, 1, f.length(f.keys.Retry))
	require.EqualValues(t, 2, f.length(f.keys.Dead))
	require.NotContains(t, fates, fresh.ID.String())

	again := f.read(f.keys.Retry, "c")
	require.Equal(t, idle.Event, again.Event)
	require.Equal(t, 1, pel.CarriedBy(&again, true).Deliveries, "one hand-over, to the dead consumer")
	require.Zero(t, pel.CarriedBy(&again, true).Attempts)
}

func TestSweepGoesThroughALongListInBoundedCalls(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 1700
	pipe := f.rdb.Pipeline()
	for range n {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: f.keys.Stream, Values: []string{"id", "1", "type", "t", "data", "x"}})
	}
	pipe.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "billing", Consumer: "dead", Streams: []string{f.keys.Stream, ">"}, Count: n, Block: -1})
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	live := f.deliver("live")
	const minIdle = 4 * minIdle // for which one heartbeat is to last: the sweep takes some calls
	reach := f.reached(minIdle)
	held, err := pel.NewSettler(f.rdb, f.keys, "live").Extend(t.Context(), f.keys.Stream, idsOf(live))
	require.NoError(t, err)
	require.Equal(t, []pel.Held{pel.HeldExtended}, held)
	r, err := pel.NewReclaimer(f.rdb, pel.Limits{MinIdle: minIdle}, reach)
	require.NoError(t, err)
	taken := 0
	require.NoError(t, r.Sweep(t.Context(), f.keys, func(pel.Reclaimed) { taken++ }))
	require.Equal(t, n, taken)
	require.EqualValues(t, 1, f.pending(f.keys.Stream))
	require.EqualValues(t, n, f.length(f.keys.Retry))
}

func TestEntriesOfTheLivingDoNotHideThoseOfTheDeadBehindThem(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 1200 // more than a call looks at
	pipe := f.rdb.Pipeline()
	for range n {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: f.keys.Stream, Values: []string{"id", "1", "type", "t", "data", "x"}})
	}
	read := pipe.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "billing", Consumer: "live", Streams: []string{f.keys.Stream, ">"}, Count: n, Block: -1})
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	var held []stream.ID
	for _, m := range read.Val()[0].Messages {
		id, err := stream.ParseID(m.ID)
		require.NoError(t, err)
		held = append(held, id)
	}
	dead := f.deliver("dead")
	f.age("dead", dead.ID.String())
	const minIdle = 4 * minIdle // telling that all of them live takes some calls
	r, err := pel.NewReclaimer(f.rdb, pel.Limits{MinIdle: minIdle}, f.reached(minIdle))
	require.NoError(t, err)
	_, err = pel.NewSettler(f.rdb, f.keys, "live").Extend(t.Context(), f.keys.Stream, held)
	require.NoError(t, err)
	var taken []pel.Reclaimed
	require.NoError(t, r.Sweep(t.Context(), f.keys, func(one pel.Reclaimed) { taken = append(taken, one) }))
	require.Len(t, taken, 1)
	require.Equal(t, dead.ID, taken[0].ID)
}

func TestRetryStreamIsSweptTooAndCountsGoOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.deliver("dead-1")
	for deliveries := 1; deliveries < 4; deliveries++ {
		require.Eventually(t, func() bool {
			taken := f.sweep(4)
			return len(taken) == 1 && taken[0].Fate == pel.FateMoved && taken[0].Deliveries == deliveries
		}, 30*time.Second, 10*time.Millisecond)
		require.EqualValues(t, 1, f.length(f.keys.Retry), "the retry stream keeps no copy")
		f.read(f.keys.Retry, "dead-2")
	}
	require.Eventually(t, func() bool {
		taken := f.sweep(4)
		return len(taken) == 1 && taken[0].Fate == pel.FateDeliveries && taken[0].Deliveries == 4
	}, 30*time.Second, 10*time.Millisecond)
	require.Zero(t, f.length(f.keys.Retry))
	require.EqualValues(t, 1, f.length(f.keys.Dead))
}

func TestNoSweepBeforeTheServerWasInReachForMinIdle(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{AppendOnly: true})
	f := &fixture{t: t, rdb: testenv.RedisClient(t, server.URL()), keys: pel.KeysOf("sk:orders.0", "billing")}
	_, err := pel.Ensure(t.Context(), f.rdb, f.keys, "0")
	require.NoError(t, err)
	f.age("dead", f.deliver("dead").ID.String())

	reach := pel.NewReach(f.rdb, time.Minute)
	r, err := pel.NewReclaimer(f.rdb, pel.Limits{MinIdle: minIdle}, reach)
	require.NoError(t, err)
	sweep := func() int {
		taken := 0
		require.NoError(t, r.Sweep(t.Context(), f.keys, func(pel.Reclaimed) { taken++ }))
		return taken
	}
	require.Zero(t, sweep(), "never looked")
	require.NoError(t, reach.Look(t.Context(), f.keys.Stream))
	require.Zero(t, sweep(), "looked just now")
	require.Eventually(t, func() bool { return reach.Since(f.keys.Stream) >= minIdle }, 30*time.Second, 10*time.Millisecond)

	require.NoError(t, server.Kill())
	require.Error(t, reach.Look(t.Context(), f.keys.Stream))
	require.Zero(t, reach.Since(f.keys.Stream), "an outage starts the time over")
	require.NoError(t, server.Start(t.Context()))
	require.NoError(t, reach.Look(t.Context(), f.keys.Stream))
	require.Zero(t, sweep(), "back just now")

	// A restart between two looks, which both succeed, shows in the run ID.
	require.Eventually(t, func() bool { return reach.Since(f.keys.Stream) >= minIdle }, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, server.Kill())
	require.NoError(t, server.Start(t.Context()))
	require.NoError(t, reach.Look(t.Context(), f.keys.Stream))
	require.Less(t, reach.Since(f.keys.Stream), minIdle)

	// It answers, and refused a write.
	require.Eventually(t, func() bool { return reach.Since(f.keys.Stream) >= minIdle }, 30*time.Second, 10*time.Millisecond)
	reach.Lost(f.keys.Stream)
	require.NoError(t, reach.Look(t.Context(), f.keys.Stream))
	require.Zero(t, sweep(), "heartbeats were refused too")
	require.Eventually(t, func() bool { return sweep() == 1 }, 30*time.Second, 10*time.Millisecond)
}

func TestALateLookIsAGap(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	reach := pel.NewReach(f.rdb, 10*time.Millisecond)
	require.NoError(t, reach.Look(t.Context(), f.keys.Stream))
	require.Eventually(t, func() bool { return reach.Since(f.keys.Stream) == 0 }, 30*time.Second, time.Millisecond, "nobody looks any more")
}

func TestNamesWithPendingEntriesAreKept(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	held := f.deliver("holds")
	for _, name := range []string{"idle", "recent"} {
		require.NoError(t, f.rdb.XGroupCreateConsumer(t.Context(), f.keys.Stream, "billing", name).Err())
	}
	var names []string
	require.Eventually(t, func() bool {
		_, err := pel.NewSettler(f.rdb, f.keys, "recent").Extend(t.Context(), f.keys.Stream, nil)
		require.NoError(t, err)
		names, err = pel.SweepNames(t.Context(), f.rdb, f.keys, 100*time.Millisecond)
		require.NoError(t, err)
		return len(names) > 0
	}, 30*time.Second, 5*time.Millisecond)
	require.Equal(t, []string{"idle"}, names)
	require.NoError(t, pel.Leave(t.Context(), f.rdb, f.keys, "holds"))
	require.EqualValues(t, 1, f.pending(f.keys.Stream), "leaving must not discard what is pending")
	require.NoError(t, f.rdb.XAck(t.Context(), f.keys.Stream, "billing", held.ID.String()).Err())
	require.NoError(t, pel.Leave(t.Context(), f.rdb, f.keys, "holds"))
	consumers, err := f.rdb.XInfoConsumers(t.Context(), f.keys.Stream, "billing").Result()
	require.NoError(t, err)
	require.Len(t, consumers, 1)
}

func TestLimitsAreValidated(t *testing.T) {
	t.Parallel()
	_, err := pel.NewReclaimer(nil, pel.Limits{MinIdle: time.Millisecond, MaxDeliveries: -1}, nil)
	require.ErrorContains(t, err, "MinIdle 1ms")
	require.ErrorContains(t, err, "MaxDeliveries -1")
}

// What was moved leaves the list in the same call, though a later entry cannot be moved.
func TestSweepThatFailsInTheMiddleMovesNothingTwice(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	reach := f.reached(minIdle)
	first, second, often, last := f.deliver("dead"), f.deliver("dead"), f.deliver("dead"), f.deliver("dead")
	f.age("dead", first.ID.String(), second.ID.String(), often.ID.String(), last.ID.String())
	require.NoError(t, f.rdb.Do(t.Context(), "xclaim", f.keys.Stream, "billing", "dead", 0, often.ID.String(), "idle", 3_600_000, "retrycount", 5, "justid").Err())
	require.NoError(t, f.rdb.Set(t.Context(), f.keys.Dead, "no stream", 0).Err())

	r, err := pel.NewReclaimer(f.rdb, pel.Limits{MinIdle: minIdle, MaxDeliveries: 5}, reach)
	require.NoError(t, err)
	for range 2 {
		require.ErrorContains(t, r.Sweep(t.Context(), f.keys, func(pel.Reclaimed) {}), "WRONGTYPE")
		require.EqualValues(t, 2, f.length(f.keys.Retry), "each once")
		require.EqualValues(t, 2, f.pending(f.keys.Stream), "what cannot be moved, and what is behind it")
	}
	require.NoError(t, f.rdb.Del(t.Context(), f.keys.Dead).Err())
	require.NoError(t, r.Sweep(t.Context(), f.keys, func(pel.Reclaimed) {}))
	require.EqualValues(t, 3, f.length(f.keys.Retry))
	require.EqualValues(t, 1, f.length(f.keys.Dead))
	require.Zero(t, f.pending(f.keys.Stream))
}

// slow times out calls that may move more entries than it can.
type slow struct{ can, calls int }

func (s *slow) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s *slow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s *slow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		args := cmd.Args()
		if cmd.Name() == "evalsha" || cmd.Name() == "eval" {
			s.calls++
			const mostToMove = 3 + 5 + 5
			if most, ok := args[mostToMove].(int); ok && most > s.can {
				cmd.SetErr(os.ErrDeadlineExceeded)
				return os.ErrDeadlineExceeded
			}
		}
		return next(ctx, cmd)
	}
}

func TestSweepMovesFewerAtOnceWhereCallsTimeOut(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	reach := f.reached(minIdle)
	idle := f.deliver("dead")
	f.age("dead", idle.ID.String())
	for _, c := range []struct {
		can   int
		moves bool
	}{{5, false}, {30, true}} {
		rdb := testenv.RedisClient(t, testenv.RedisURL(t))
		server := &slow{can: c.can}
		rdb.AddHook(server)
		r, err := pel.NewReclaimer(rdb, pel.Limits{MinIdle: minIdle}, reach)
		require.NoError(t, err)
		err = r.Sweep(t.Context(), f.keys, func(pel.Reclaimed) {})
		if c.moves {
			require.NoError(t, err)
			require.Zero(t, f.pending(f.keys.Stream))
			continue
		}
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Less(t, server.calls, 10, "it gives up")
		require.EqualValues(t, 1, f.pending(f.keys.Stream))
	}
}
