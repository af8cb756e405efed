package consumergroup_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
)

func TestBatchHandlesEventsTogetherAndSettlesEachByItself(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(90)
	bad := events[17].ID
	var mu sync.Mutex
	var sizes []int
	var seen ledger
	h, err := consumergroup.Batch(consumergroup.BatchConfig{Size: 8, Wait: 50 * time.Millisecond, Handle: func(_ context.Context, items []consumergroup.Item) []error {
		results := make([]error, len(items))
		for i, it := range items {
			switch {
			case it.Event.ID == bad:
				results[i] = consumergroup.Permanent(errors.New("no such order"))
			case it.Metadata.Group != "billing":
				results[i] = consumergroup.Permanent(errors.New("no metadata"))
			default:
				seen.add(it.Event.ID)
			}
		}
		mu.Lock()
		sizes = append(sizes, len(items))
		mu.Unlock()
		return results
	}})
	require.NoError(t, err)
	cfg := f.config(h)
	cfg.Concurrency = 16
	f.run(cfg)
	f.atRest()
	largest := 0
	for _, n := range sizes {
		largest = max(largest, n)
		require.LessOrEqual(t, n, 8)
	}
	require.Equal(t, 8, largest, "nothing was gathered: %v", sizes)
	for _, e := range events {
		want := 1
		if e.ID == bad {
			want = 0
		}
		require.Equal(t, want, seen.count(e.ID))
	}
	q, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
	require.NoError(t, err)
	require.Len(t, page.Letters, 1)
	require.Equal(t, bad, page.Letters[0].Entry.Event.ID)
}

func TestBatchThatMisbehavesFailsItsItemsAndNothingElse(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(12)
	var seen ledger
	var mu sync.Mutex
	calls := 0
	h, err := consumergroup.Batch(consumergroup.BatchConfig{Size: 4, Handle: func(_ context.Context, items []consumergroup.Item) []error {
		mu.Lock()
		calls++
		call := calls
		mu.Unlock()
		switch call {
		case 1:
			panic("boom")
		case 2:
			return make([]error, len(items)+1)
		}
		for _, it := range items {
			seen.add(it.Event.ID)
		}
		return nil
	}})
	require.NoError(t, err)
	f.run(f.config(h))
	seen.eventually(t, events, 1)
	f.atRest()

	_, err = consumergroup.Batch(consumergroup.BatchConfig{Size: -1, Wait: -1})
	for _, fault := range []string{"Size -1", "Wait -1", "Handle is nil"} {
		require.ErrorContains(t, err, fault)
	}
}
