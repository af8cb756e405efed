package dlq_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/stream"
)

func TestFullKeepsAndReportsUnlessItIsToDiscard(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 3*120)
	f.letter(t, 1, event("k", "order.placed"), dlq.ReasonPermanent, "the last one")
	report, err := f.queue.Trim(t.Context(), dlq.Retention{MaxLen: 10})
	require.NoError(t, err)
	require.Equal(t, dlq.Report{Letters: 361, Over: 331, Discarded: map[dlq.Reason]int{}}, report)
	require.Len(t, f.contents(t), 361)

	var archived []dlq.Ref
	var want []dlq.Ref
	for l, err := range f.queue.All(t.Context(), dlq.Filter{}) {
		require.NoError(t, err)
		want = append(want, refOf(l))
	}
	report, err = f.queue.Trim(t.Context(), dlq.Retention{
		MaxLen: 10, OnFull: dlq.FullDiscard,
		Archive: func(_ context.Context, letters []dlq.Letter) error {
			for _, l := range letters {
				archived = append(archived, refOf(l))
			}
			return nil
		},
	})
	require.NoError(t, err)
	require.Equal(t, dlq.Report{Letters: 30, Discarded: map[dlq.Reason]int{dlq.ReasonAttempts: 331}}, report)
	require.Equal(t, append(append(want[:110:110], want[120:231]...), want[241:351]...), archived, "the oldest of each partition")
	last := f.contents(t)
	require.Contains(t, fmt.Sprint(last), "the last one")
	n, err := f.queue.Discarded(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 331, n)
}

func TestNothingIsDiscardedThatTheArchiveDoesNotHave(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 9)
	broken := errors.New("disk full")
	_, err := f.queue.Trim(t.Context(), dlq.Retention{
		MaxLen: 1, OnFull: dlq.FullDiscard, Archive: func(context.Context, []dlq.Letter) error { return broken },
	})
	require.ErrorIs(t, err, broken)
	require.Len(t, f.contents(t), 9)
}

func TestLettersGoByAge(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	key := stream.KeyDead.Key(f.topic.StreamKey(0), "billing")
	for i := range 130 {
		require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: key, ID: fmt.Sprintf("%d-1", i+1), Values: []string{"sk-reason", "trimmed"}}).Err())
	}
	f.fill(t, 3)
	report, err := f.queue.Trim(t.Context(), dlq.Retention{MaxAge: 24 * time.Hour})
	require.NoError(t, err)
	require.Equal(t, dlq.Report{Letters: 3, Discarded: map[dlq.Reason]int{dlq.ReasonTrimmed: 130}}, report)
	report, err = f.queue.Trim(t.Context(), dlq.Retention{})
	require.NoError(t, err)
	require.Equal(t, dlq.Report{Letters: 3, Discarded: map[dlq.Reason]int{}}, report)
}

func TestConcurrentTrimsDiscardNoLetterTooMany(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 3*150)
	discarded := make([]int, 6)
	var runs sync.WaitGroup
	for i := range discarded {
		runs.Go(func() {
			report, err := f.queue.Trim(t.Context(), dlq.Retention{MaxLen: 50, OnFull: dlq.FullDiscard})
			if err != nil {
				t.Error(err)
			}
			discarded[i] = report.Discarded[dlq.ReasonAttempts]
		})
	}
	runs.Wait()
	total := 0
	for _, n := range discarded {
		total += n
	}
	require.Equal(t, 300, total)
	require.Len(t, f.contents(t), 150)
	n, err := f.queue.Discarded(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 300, n)
}

func TestNothingIsDiscardedThatCannotBeCounted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 9)
	require.NoError(t, f.rdb.Set(t.Context(), stream.KeyGroup.Key(f.topic.StreamKey(0), "billing"), "no hash", 0).Err())
	_, err := f.queue.Trim(t.Context(), dlq.Retention{MaxLen: 1, OnFull: dlq.FullDiscard})
	require.ErrorContains(t, err, "WRONGTYPE")
	require.Len(t, f.contents(t), 9)
	_, err = f.queue.Discarded(t.Context())
	require.ErrorContains(t, err, "WRONGTYPE")
}

func TestBadRetentionsNameEveryFault(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := f.queue.Trim(t.Context(), dlq.Retention{MaxLen: -1, MaxAge: -time.Second, OnFull: "drop"})
	for _, part := range []string{"MaxLen -1", "MaxAge -1s", `OnFull "drop"`} {
		require.ErrorContains(t, err, part)
	}
	for _, full := range []dlq.Full{dlq.FullDiscard, dlq.FullPause} {
		_, err = f.queue.Trim(t.Context(), dlq.Retention{OnFull: full})
		require.ErrorContains(t, err, "needs MaxLen")
	}
}
