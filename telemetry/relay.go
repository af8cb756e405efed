package telemetry

import (
	"context"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/streamkeel/streamkeel/outbox"
)

type relayMetrics struct {
	rows, bytes, batches, rewound *prometheus.CounterVec
	refused, waiting, deferred    *prometheus.CounterVec
	mismatch                      *prometheus.CounterVec
	batch                         *prometheus.HistogramVec
	owned, stopped                *prometheus.GaugeVec
	backlog, oldest               *prometheus.GaugeVec
	daysAhead                     *prometheus.GaugeVec
}

func newRelayMetrics(m *Metrics, config MetricsConfig) relayMetrics {
	return relayMetrics{
		rows:      m.counter("outbox_published_rows_total", "Outbox rows that were published to Redis."),
		bytes:     m.counter("outbox_published_bytes_total", "Bytes of outbox rows that were published to Redis."),
		batches:   m.counter("outbox_batches_total", "Batches that were published to Redis."),
		rewound:   m.counter("outbox_rewound_rows_total", "Outbox rows that Redis had lost and that were published again."),
		refused:   m.counter("outbox_refused_rows_total", "Outbox rows that can never be published and were set aside."),
		waiting:   m.counter("outbox_waits_total", "Times that a relay waited for Postgres or Redis."),
		deferred:  m.counter("outbox_deferred_total", "Times that the upkeep of the outbox could not get its way."),
		mismatch:  m.counter("outbox_mismatches_total", "Times that a topic stood differently in Redis and in Postgres."),
		batch:     m.histogram("outbox_batch_seconds", "How long publishing a batch took.", config.HandlerBuckets),
		owned:     m.gauge("outbox_shard_owned", "1 for each shard that this process relays.", "shard"),
		stopped:   m.gauge("outbox_shard_stopped", "1 where a shard of this process stands still until an operator decides.", "shard"),
		backlog:   m.gauge("outbox_backlog_rows", "Rows that are committed and not published.", "shard"),
		oldest:    m.gauge("outbox_oldest_seconds", "Age of the oldest of them, by the database's clock.", "shard"),
		daysAhead: m.gauge("outbox_days_ahead", "Days ahead for which there are row partitions: at 0 publishing fails."),
	}
}

// Relay returns the observer of relays (outbox.RelayConfig.Observer).
func (m *Metrics) Relay() outbox.Observer { return m.relay }

// Observe implements outbox.Observer.
func (r relayMetrics) Observe(_ context.Context, o outbox.Observation) {
	shard := strconv.Itoa(o.Shard)
	switch o.Moment {
	case outbox.TakenOver:
		r.owned.WithLabelValues(shard).Set(1)
		r.stopped.WithLabelValues(shard).Set(0)
	case outbox.GivenUp: // another relay tells of it from now on
		for _, g := range []*prometheus.GaugeVec{r.owned, r.stopped, r.backlog, r.oldest} {
			g.DeleteLabelValues(shard)
		}
	case outbox.Published:
		r.batches.WithLabelValues().Inc()
		r.rows.WithLabelValues().Add(float64(o.Rows))
		r.bytes.WithLabelValues().Add(float64(o.Bytes))
		r.batch.WithLabelValues().Observe(o.Took.Seconds())
	case outbox.Rewound:
		r.rewound.WithLabelValues().Add(float64(o.Rows))
	case outbox.Stopped:
		r.stopped.WithLabelValues(shard).Set(1)
	case outbox.Resumed:
		r.stopped.WithLabelValues(shard).Set(0)
	case outbox.Refused:
		r.refused.WithLabelValues().Inc()
	case outbox.Waiting:
		r.waiting.WithLabelValues().Inc()
	case outbox.Backlog:
		r.backlog.WithLabelValues(shard).Set(float64(o.Rows))
		r.oldest.WithLabelValues(shard).Set(o.Age.Seconds())
	case outbox.Upkept:
		r.daysAhead.WithLabelValues().Set(float64(o.DaysAhead))
	case outbox.Deferred:
		r.deferred.WithLabelValues().Inc()
	case outbox.Mismatch:
		r.mismatch.WithLabelValues().Inc()
	}
}
