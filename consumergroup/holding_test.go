package consumergroup

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func TestNothingStartsWhileTheLeaseIsNotSure(t *testing.T) {
	t.Parallel()
	h := newHolding(&partition{}, pel.Grant{Generation: 7}, time.Minute, time.Now().Add(-time.Minute))
	l := &lane{}
	var ds []*delivery
	for i, key := range []string{"a", "a", "b"} {
		ds = append(ds, &delivery{lane: l, entry: stream.Entry{ID: stream.ID{Ms: uint64(i + 1)}, Event: stream.Event{Key: key}}})
	}
	require.Equal(t, []*delivery{ds[0], ds[2]}, h.add(ds), "one of each key")
	require.False(t, h.begin(ds[0]), "another consumer may have leased the partition")
	require.False(t, h.wake(ds[2]), "it is on its way to a worker")
	require.Empty(t, h.idleOnes())
	h.renew(7, time.Now())
	require.Equal(t, []*delivery{ds[0]}, h.idleOnes(), "what could not start does when the lease is renewed")
	require.True(t, h.wake(ds[0]))
	require.False(t, h.wake(ds[0]), "once")
	require.True(t, h.begin(ds[0]))

	h.stopStarting()
	require.False(t, h.begin(ds[2]))
	ds[0].set(settled)
	require.Nil(t, h.end(ds[0], false), "a partition that is being given up starts nothing more")
	require.Zero(t, h.handlers())
	require.Len(t, h.empty(), 2)
	require.Empty(t, h.empty())
	require.False(t, h.wake(ds[1]))
}

func TestFairShare(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		counts     map[string]int
		partitions int
		want       map[string]int
	}{
		"alone":                          {map[string]int{"a": 0}, 8, map[string]int{"a": 8}},
		"a new one":                      {map[string]int{"a": 8, "b": 0}, 8, map[string]int{"a": 4, "b": 4}},
		"what is left over moves little": {map[string]int{"a": 2, "b": 3, "c": 0}, 8, map[string]int{"a": 3, "b": 3, "c": 2}},
		"more consumers than partitions": {map[string]int{"a": 0, "b": 1, "c": 1}, 2, map[string]int{"a": 0, "b": 1, "c": 1}},
		"two too many":                   {map[string]int{"a": 2, "b": 2, "c": 2, "d": 0}, 6, map[string]int{"a": 2, "b": 2, "c": 1, "d": 1}},
	} {
		total := 0
		for self, want := range c.want {
			got := fairShare(self, c.counts, c.partitions)
			require.Equal(t, want, got, "%s: %s", name, self)
			total += got
		}
		require.Equal(t, c.partitions, total, name)
	}
}

// Whoever asks late hears the first reason, also where the consumer was told to stop meanwhile.
func TestContextThatNobodyAskedKeepsTheFirstReason(t *testing.T) {
	t.Parallel()
	for want, end := range map[error]func(*handlerContext){
		ErrLost:           func(c *handlerContext) { c.d.lose() },
		context.Canceled:  func(c *handlerContext) { c.d.ended(c) },
		ErrHandlerTimeout: func(c *handlerContext) { c.limit(-time.Second) },
	} {
		workCtx, stop := context.WithCancelCause(t.Context())
		d := &delivery{}
		c := &handlerContext{parent: workCtx, d: d, deadline: farOff}
		require.True(t, d.start(c))
		end(c)
		stop(ErrStopped)
		require.ErrorIs(t, context.Cause(c), want)
		require.Error(t, Extend(c, time.Minute))
		require.Nil(t, c.timer)
	}
	workCtx, stop := context.WithCancelCause(t.Context())
	d := &delivery{}
	c := &handlerContext{parent: workCtx, d: d, deadline: farOff}
	require.True(t, d.start(c))
	stop(ErrStopped)
	require.ErrorIs(t, context.Cause(c), ErrStopped)
}
