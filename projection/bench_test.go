package projection_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

// BenchmarkRunner applies a backlog over eight partitions: one row inserted, or one counter
// counted up, for each event.
func BenchmarkRunner(b *testing.B) {
	for name, queue := range map[string]string{
		"insert": `INSERT INTO placed (id, total) VALUES ($1, $2)`,
		"count":  `INSERT INTO totals (key, n) VALUES (left($1, 3), $2) ON CONFLICT (key) DO UPDATE SET n = totals.n + excluded.n`,
	} {
		b.Run(name, func(b *testing.B) {
			pool, rdb := testenv.Postgres(b), testenv.Redis(b)
			_, err := pool.Exec(b.Context(), `CREATE TABLE placed (id text, total int); CREATE TABLE totals (key text PRIMARY KEY, n bigint)`)
			require.NoError(b, err)
			topic := stream.Topic{Name: "orders", Namespace: testenv.Namespace(b), Partitions: 8}
			publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
			require.NoError(b, err)
			events := make([]stream.Event, 0, 1000)
			for i := range b.N {
				id := fmt.Sprintf("%05d", i%100_000)
				events = append(events, orderPlaced.Event(id, order{ID: id, Total: 1}))
				if len(events) == cap(events) || i == b.N-1 {
					_, err := publisher.PublishBatch(b.Context(), topic, events)
					require.NoError(b, err)
					events = events[:0]
				}
			}
			mux := projection.NewMux()
			projection.Queue(mux, orderPlaced, func(batch *pgx.Batch, _ stream.Event, o order) error {
				batch.Queue(queue, o.ID, o.Total)
				return nil
			})
			r, err := projection.NewRunner(pool, rdb, projection.Config{Name: "bench", Topics: []stream.Topic{topic}, Mux: mux})
			require.NoError(b, err)
			b.ResetTimer()
			result, err := drain(b.Context(), r)
			require.NoError(b, err)
			require.Equal(b, b.N, result.Events)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
