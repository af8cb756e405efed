package telemetry

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/streamkeel/streamkeel/projection"
)

type projectionMetrics struct {
	events, failures, malformed, rewound, waiting *prometheus.CounterVec
	transaction                                   *prometheus.HistogramVec
	halted                                        *prometheus.GaugeVec
}

func newProjectionMetrics(m *Metrics, config MetricsConfig) projectionMetrics {
	return projectionMetrics{
		events:      m.counter("projection_events_total", "Events that projections committed, by result: applied, or skipped since they were applied before.", "projection", "result"),
		failures:    m.counter("projection_failures_total", "Attempts to apply an event that failed.", "projection"),
		malformed:   m.counter("projection_malformed_total", "Entries that cannot be read and were passed.", "projection"),
		rewound:     m.counter("projection_rewinds_total", "Times that a stream was read again from its start, since Redis had lost a part of it.", "projection"),
		waiting:     m.counter("projection_waits_total", "Times that a projection waited for Postgres or Redis.", "projection"),
		transaction: m.histogram("projection_transaction_seconds", "How long a transaction of a projection took.", config.HandlerBuckets, "projection"),
		halted:      m.gauge("projection_halted", "1 where a projection of this process stopped and needs a person.", "projection"),
	}
}

// Projection returns the observer of projections (projection.Config.Observer).
func (m *Metrics) Projection() projection.Observer { return m.readers }

// Observe implements projection.Observer.
func (p projectionMetrics) Observe(_ context.Context, o projection.Observation) {
	switch o.Moment {
	case projection.Applied:
		p.events.WithLabelValues(o.Projection, "applied").Add(float64(o.Events))
		p.events.WithLabelValues(o.Projection, "skipped").Add(float64(o.Skipped))
		p.transaction.WithLabelValues(o.Projection).Observe(o.Took.Seconds())
		p.halted.WithLabelValues(o.Projection).Set(0)
	case projection.Failed:
		p.failures.WithLabelValues(o.Projection).Inc()
	case projection.Malformed:
		p.malformed.WithLabelValues(o.Projection).Inc()
	case projection.Rewound:
		p.rewound.WithLabelValues(o.Projection).Inc()
	case projection.Waiting:
		p.waiting.WithLabelValues(o.Projection).Inc()
	case projection.Halted:
		p.halted.WithLabelValues(o.Projection).Set(1)
	}
}
