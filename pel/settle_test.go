package pel_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func settlement(en stream.Entry, o pel.Outcome) pel.Settlement {
	c := pel.CarriedBy(&en, false)
	c.Attempts, c.Deliveries, c.First = 1, 1, time.Now()
	return pel.Settlement{Entry: en, Outcome: o, Carried: c, Reason: dlq.ReasonManual, Error: "why"}
}

func (f *fixture) settle(consumer string, st pel.Settlement, repeated bool) (pel.Status, error) {
	f.t.Helper()
	statuses, err := pel.NewSettler(f.rdb, f.keys, consumer).Settle(f.t.Context(), repeated, st)
	if len(statuses) == 0 {
		return pel.Lost, err
	}
	return statuses[0], err
}

func TestEachOutcomeMovesTheEntryAndEmptiesThePendingList(t *testing.T) {
	t.Parallel()
	for _, outcome := range []pel.Outcome{pel.Retry, pel.DeadLetter, pel.Release} {
		f := newFixture(t)
		st := settlement(f.deliver("c"), outcome)
		st.Delay = time.Hour
		status, err := f.settle("c", st, false)
		require.NoError(t, err)
		require.Equal(t, pel.Settled, status)
		require.Zero(t, f.pending(f.keys.Stream))
		moved := f.rdb.ZCard(t.Context(), f.keys.Due).Val() + f.length(f.keys.Retry) + f.length(f.keys.Dead)
		require.EqualValues(t, 1, moved)

		// The reply was lost, and the caller repeats: nothing happens twice.
		status, err = f.settle("c", st, true)
		require.NoError(t, err)
		require.Equal(t, pel.SettledBefore, status)
		require.Equal(t, moved, f.rdb.ZCard(t.Context(), f.keys.Due).Val()+f.length(f.keys.Retry)+f.length(f.keys.Dead))
	}
}

func TestEntryOfAnotherConsumerIsLostAndLeftAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	st := settlement(f.deliver("other"), pel.DeadLetter)
	status, err := f.settle("c", st, false)
	require.NoError(t, err)
	require.Equal(t, pel.Lost, status)
	require.EqualValues(t, 1, f.pending(f.keys.Stream))
	require.Zero(t, f.length(f.keys.Dead))
}

// A sweep by XAUTOCLAIM purges trimmed entries: the caller then has the last copy.
func TestTrimmedEntryStillReachesRetryOrLetters(t *testing.T) {
	t.Parallel()
	for _, purged := range []bool{false, true} {
		for _, outcome := range []pel.Outcome{pel.Retry, pel.DeadLetter, pel.Release} {
			f := newFixture(t)
			st := settlement(f.deliver("c"), outcome)
			require.NoError(t, f.rdb.XTrimMaxLen(t.Context(), f.keys.Stream, 0).Err())
			if purged {
				require.NoError(t, f.rdb.XAutoClaimJustID(t.Context(), &redis.XAutoClaimArgs{
					Stream: f.keys.Stream, Group: "billing", Consumer: "x", MinIdle: time.Hour, Start: "0",
				}).Err())
				require.Zero(t, f.pending(f.keys.Stream), "XAUTOCLAIM purges before it looks at the idle time")
			}
			for repeated, want := range []pel.Status{pel.Settled, pel.SettledBefore} {
				status, err := f.settle("c", st, repeated == 1)
				require.NoError(t, err)
				require.Equal(t, want, status)
				require.EqualValues(t, 1, f.rdb.ZCard(t.Context(), f.keys.Due).Val()+f.length(f.keys.Retry)+f.length(f.keys.Dead))
			}
		}
	}
}

func TestNothingLeavesThePendingListWhenItsPlaceIsTaken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	good, bad := settlement(f.deliver("c"), pel.Retry), settlement(f.deliver("c"), pel.DeadLetter)
	require.NoError(t, f.rdb.Set(t.Context(), f.keys.Dead, "not a stream", 0).Err())
	statuses, err := pel.NewSettler(f.rdb, f.keys, "c").Settle(t.Context(), false, bad, good)
	require.True(t, redisx.IsWrongType(err), "%v", err)
	require.Equal(t, pel.Settled, statuses[1], "the other delivery is settled all the same")
	require.EqualValues(t, 1, f.pending(f.keys.Stream))
}

func TestSettlingWorksWhenMemoryIsFull(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{})
	f := &fixture{t: t, rdb: testenv.RedisClient(t, server.URL()), keys: pel.KeysOf("sk:orders.0", "billing")}
	_, err := pel.Ensure(t.Context(), f.rdb, f.keys, "0")
	require.NoError(t, err)
	st := []pel.Settlement{settlement(f.deliver("c"), pel.Retry), settlement(f.deliver("c"), pel.DeadLetter), settlement(f.deliver("c"), pel.Release)}
	require.NoError(t, f.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.True(t, redisx.IsOOM(f.rdb.Set(t.Context(), "x", "y", 0).Err()))
	_, err = pel.NewSettler(f.rdb, f.keys, "c").Settle(t.Context(), false, st...)
	require.NoError(t, err)
	_, _, err = pel.MoveDue(t.Context(), f.rdb, f.keys)
	require.NoError(t, err)
	n, err := pel.NewSettler(f.rdb, f.keys, "c").AckRetries(t.Context(), []stream.ID{f.read(f.keys.Retry, "c").ID})
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestRetriesMoveWhenDueWithTheirCounts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	en := f.deliver("c")
	st := settlement(en, pel.Retry)
	st.Delay = 300 * time.Millisecond
	_, err := f.settle("c", st, false)
	require.NoError(t, err)
	moved, next, err := pel.MoveDue(t.Context(), f.rdb, f.keys)
	require.NoError(t, err)
	require.Zero(t, moved, "a retry came before its time")
	require.Positive(t, next)
	require.Eventually(t, func() bool {
		moved, _, err := pel.MoveDue(t.Context(), f.rdb, f.keys)
		return err == nil && moved == 1
	}, 30*time.Second, 10*time.Millisecond)
	_, next, err = pel.MoveDue(t.Context(), f.rdb, f.keys)
	require.NoError(t, err)
	require.Negative(t, next, "none is waiting")

	again := f.read(f.keys.Retry, "c")
	require.NoError(t, again.Err)
	require.Equal(t, en.Event, again.Event)
	c := pel.CarriedBy(&again, true)
	require.Equal(t, dlq.Origin(f.keys.Stream, en.ID), c.Origin)
	require.Equal(t, 1, c.Attempts)
	require.Equal(t, 1, c.Deliveries)
	require.Equal(t, "why", again.Book["error"])

	n, err := pel.NewSettler(f.rdb, f.keys, "c").AckRetries(t.Context(), []stream.ID{again.ID})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Zero(t, f.length(f.keys.Retry), "what is acked in a retry stream is deleted with it")
}

func TestWhatIsNoRetryInTheDueSetBlocksNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.rdb.ZAdd(t.Context(), f.keys.Due, redis.Z{Score: 1, Member: "garbage"}, redis.Z{Score: 2, Member: "\xdd\xff\xff\xff\xff"}).Err())
	_, err := f.settle("c", settlement(f.deliver("c"), pel.Retry), false)
	require.NoError(t, err)
	moved, _, err := pel.MoveDue(t.Context(), f.rdb, f.keys)
	require.NoError(t, err)
	require.Equal(t, 3, moved)
	require.EqualValues(t, 1, f.length(f.keys.Retry))
	require.EqualValues(t, 2, f.length(f.keys.Dead))
}

func TestHeartbeatExtendsOnlyWhatIsStillOwn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	mine, other, trimmed := f.deliver("c"), f.deliver("x"), f.deliver("c")
	acked := f.deliver("c")
	require.NoError(t, f.rdb.XAck(t.Context(), f.keys.Stream, "billing", acked.ID.String()).Err())
	require.NoError(t, f.rdb.XDel(t.Context(), f.keys.Stream, trimmed.ID.String()).Err())
	held, err := pel.NewSettler(f.rdb, f.keys, "c").Extend(t.Context(), f.keys.Stream, []stream.ID{mine.ID, other.ID, trimmed.ID, acked.ID})
	require.NoError(t, err)
	require.Equal(t, []pel.Held{pel.HeldExtended, pel.HeldLost, pel.HeldGone, pel.HeldLost}, held)
	require.EqualValues(t, 3, f.pending(f.keys.Stream), "a heartbeat purges nothing")
	ext, err := f.rdb.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: f.keys.Stream, Group: "billing", Start: "-", End: "+", Count: 9}).Result()
	require.NoError(t, err)
	for _, p := range ext {
		require.EqualValues(t, 1, p.RetryCount, "a heartbeat is no delivery")
	}
	require.NoError(t, f.rdb.XTrimMaxLen(t.Context(), f.keys.Stream, 0).Err())
	held, err = pel.NewSettler(f.rdb, f.keys, "c").Extend(t.Context(), f.keys.Stream, []stream.ID{mine.ID})
	require.NoError(t, err)
	require.Equal(t, []pel.Held{pel.HeldGone}, held)
	require.EqualValues(t, 1, f.rdb.ZCard(t.Context(), f.keys.Members).Val())
}

func TestHostileBookkeepingIsIgnored(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, attempts := range []string{"-1", "9223372036854775808", "x"} {
		en := stream.Entry{Stream: f.keys.Retry, Book: map[string]string{"attempts": attempts, "deliveries": attempts, "first": attempts}}
		c := pel.CarriedBy(&en, true)
		require.Zero(t, c.Attempts)
		require.Zero(t, c.Deliveries)
		require.True(t, c.First.IsZero())
		require.Zero(t, pel.CarriedBy(&en, false).Attempts)
	}
}

func TestLongErrorTextsAreCut(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	st := settlement(f.deliver("c"), pel.DeadLetter)
	st.Error = strings.Repeat("é", 5000)
	_, err := f.settle("c", st, false)
	require.NoError(t, err)
	letter, err := f.rdb.XRange(t.Context(), f.keys.Dead, "-", "+").Result()
	require.NoError(t, err)
	require.LessOrEqual(t, len(letter[0].Values["sk-error"].(string)), 2048)
}

func TestEnsureComesBackFromTheCheckpoint(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first, second, third := f.deliver("c"), f.deliver("c"), f.deliver("c")
	require.NoError(t, f.rdb.XAck(t.Context(), f.keys.Stream, "billing", first.ID.String(), third.ID.String()).Err())
	require.NoError(t, pel.Checkpoint(t.Context(), f.rdb, f.keys))
	require.NoError(t, f.rdb.XGroupDestroy(t.Context(), f.keys.Stream, "billing").Err())
	made, err := pel.Ensure(t.Context(), f.rdb, f.keys, "$")
	require.NoError(t, err)
	require.True(t, made)
	require.Equal(t, second.ID, f.read(f.keys.Stream, "c").ID, "what was pending is delivered again, what was finished before it is not")
	made, err = pel.Ensure(t.Context(), f.rdb, f.keys, "$")
	require.NoError(t, err)
	require.False(t, made)

	// A stream that was made anew lies below the checkpoint.
	require.NoError(t, f.rdb.Del(t.Context(), f.keys.Stream).Err())
	require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.keys.Stream, ID: "5-0", Values: []string{"id", "1", "type", "t"}}).Err())
	_, err = pel.Ensure(t.Context(), f.rdb, f.keys, "$")
	require.NoError(t, err)
	require.EqualValues(t, 5, f.read(f.keys.Stream, "c").ID.Ms)
	require.NoError(t, pel.Checkpoint(context.WithoutCancel(t.Context()), f.rdb, pel.KeysOf("none", "billing")), "no stream, no checkpoint")
}
