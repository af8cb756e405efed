package consumergroup_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

func TestWeightsShareTheWorkersAndStarveNoTopic(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	low := f.topic
	low.Name = "reports"
	const n = 1500
	f.publish(n)
	p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	events := make([]stream.Event, n)
	for i := range events {
		events[i] = orderPlaced.Event(string(rune('a'+i%26)), order{N: i})
	}
	_, err = p.PublishBatch(t.Context(), low, events)
	require.NoError(t, err)

	var mu sync.Mutex
	var handled []string // topics, in the order in which their events were handled
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error {
		m, _ := consumergroup.MetadataFrom(ctx)
		mu.Lock()
		handled = append(handled, m.Topic)
		mu.Unlock()
		return nil
	}))
	cfg.Topics = append(cfg.Topics, low)
	cfg.Weights = map[string]int{"orders": 4}
	f.run(cfg)
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(handled) == 2*n }, patience, 5*time.Millisecond)
	counts := map[string]int{}
	for _, topic := range handled {
		if counts[topic]++; counts["orders"] == n {
			break
		}
	}
	require.Greater(t, counts["reports"], n/10, "the lowest starves")
	require.Less(t, counts["reports"], n/2, "the weights are not kept")
	f.atRest()
}

func TestWeightsAreValidated(t *testing.T) {
	t.Parallel()
	cfg := consumergroup.Config{Topics: []stream.Topic{{Name: "orders"}}, Ordered: true, Weights: map[string]int{"orders": 0, "others": 1}}
	_, err := consumergroup.New(nil, cfg)
	for _, fault := range []string{`Weights["orders"] 0 must be`, `Weights["others"] is none of Topics`, "not for groups with Ordered"} {
		require.ErrorContains(t, err, fault)
	}
}
