package consumergroup_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// BenchmarkConsume drains a backlog of b.N events with 1,000 keys in 8 partitions.
func BenchmarkConsume(b *testing.B) {
	for name, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		b.Run(name, func(b *testing.B) {
			f := newFixture(b, 8)
			p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
			require.NoError(b, err)
			for at := 0; at < b.N; at += 5000 {
				events := make([]stream.Event, min(5000, b.N-at))
				for i := range events {
					events[i] = orderPlaced.Event(fmt.Sprint("key-", (at+i)%1000), order{N: i})
				}
				_, err = p.PublishBatch(b.Context(), f.topic, events)
				require.NoError(b, err)
			}
			var handled atomic.Int64
			done := make(chan struct{})
			cfg := f.config(consumergroup.HandlerFunc(func(context.Context, stream.Event) error {
				if handled.Add(1) == int64(b.N) {
					close(done)
				}
				return nil
			}))
			cfg.Ordered, cfg.Concurrency, cfg.Limits = ordered, 16, pel.Limits{}
			b.ResetTimer()
			f.run(cfg)
			<-done
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
