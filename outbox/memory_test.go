package outbox

import (
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
)

// A backlog of the largest rows in as many shards as a relay reads at a time: what it holds of them is bounded by pages, not
// by batches. The test is not parallel: it measures the process.
func TestLargestRowsKeepTheLiveHeapOfARelayWithin64MiBOfItsStart(t *testing.T) {
	w := worldOn(t, testenv.Postgres(t), testenv.Redis(t), 2)
	rows, rounds := 120, 1
	if testenv.IsLong() {
		rows, rounds = 300, 5
	}
	start(t, w.relay())
	w.publish(event("k", "first"))
	w.eventually(1)
	w.emptyStreams()
	before := liveHeap()
	for range rounds {
		_, err := w.pool.Exec(t.Context(), query(`
INSERT INTO {schema}.outbox (namespace, topic, key, type, data)
SELECT $1, $2, 'key ' || i, 'large', convert_to(repeat('x', 1048576), 'UTF8') FROM generate_series(1, $3::integer) i`),
			w.topic.Namespace, w.topic.Name, rows)
		require.NoError(t, err)
		peak := before
		require.Eventually(t, func() bool {
			peak = max(peak, liveHeap())
			return w.length() >= int64(rows)
		}, time.Minute, time.Millisecond)
		t.Logf("%d rows of 1 MiB: from %.1f MiB to %.1f MiB", rows, mib(before), mib(peak))
		require.Less(t, mib(peak)-mib(before), 64.0)
		w.emptyStreams()
	}
}

func (w *world) emptyStreams() {
	w.t.Helper()
	for p := range w.topic.Count() {
		require.NoError(w.t, w.rdb.XTrimMaxLen(w.t.Context(), w.topic.StreamKey(p), 0).Err())
	}
}

// length returns how many entries the topic's streams hold.
func (w *world) length() (n int64) {
	for p := range w.topic.Count() {
		n += w.rdb.XLen(w.t.Context(), w.topic.StreamKey(p)).Val()
	}
	return n
}

// liveHeap returns what the process cannot do without: what garbage is left until the next collection depends on GOGC, and
// the race detector has pools forget.
func liveHeap() uint64 {
	runtime.GC()
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() + samples[1].Value.Uint64()
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
