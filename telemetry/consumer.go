package telemetry

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/streamkeel/streamkeel/consumergroup"
)

type consumerMetrics struct {
	m          *Metrics
	deliveries *prometheus.CounterVec
	settled    *prometheus.CounterVec
	letters    *prometheus.CounterVec
	reclaimed  *prometheus.CounterVec
	handler    *prometheus.HistogramVec
	age        *prometheus.HistogramVec
}

func newConsumerMetrics(m *Metrics, config MetricsConfig) consumerMetrics {
	return consumerMetrics{
		m:          m,
		deliveries: m.counter("deliveries_total", "Entries that consumers of this process took.", "topic", "group", "type"),
		settled:    m.counter("settled_total", "Deliveries by how they ended: handled, skipped, retried, dead_lettered, released or lost.", "topic", "group", "type", "outcome"),
		letters:    m.counter("letters_total", "Events that became dead letters, by reason.", "topic", "group", "reason"),
		reclaimed:  m.counter("reclaimed_total", "Entries that were taken from silent consumers and are handled again.", "topic", "group"),
		handler:    m.histogram("handler_seconds", "How long handlers ran, by how the delivery ended.", config.HandlerBuckets, "topic", "group", "type", "outcome"),
		age:        m.histogram("event_age_seconds", "How old events were when their handler succeeded, by the clocks of publisher and consumer.", config.AgeBuckets, "topic", "group"),
	}
}

// Consumer returns the observer of consumers (consumergroup.Config.Observer) and of upkeep
// (consumergroup.UpkeepConfig.Observer).
func (m *Metrics) Consumer() consumergroup.Observer { return m.consumer }

// Observe implements consumergroup.Observer.
func (c consumerMetrics) Observe(_ context.Context, o consumergroup.Observation) {
	eventType := c.m.typeLabel(o.Event.Type)
	switch o.Moment {
	case consumergroup.Delivered:
		c.deliveries.WithLabelValues(o.Topic, o.Group, eventType).Inc()
		return
	case consumergroup.Reclaimed:
		c.reclaimed.WithLabelValues(o.Topic, o.Group).Inc()
		return
	case consumergroup.Trimmed:
		c.letters.WithLabelValues(o.Topic, o.Group, string(o.Reason)).Inc()
		return
	case consumergroup.DeadLettered:
		c.letters.WithLabelValues(o.Topic, o.Group, string(o.Reason)).Inc()
	case consumergroup.Handled:
		if !o.Event.Time.IsZero() {
			c.age.WithLabelValues(o.Topic, o.Group).Observe(max(time.Since(o.Event.Time), 0).Seconds())
		}
	}
	outcome := string(o.Moment)
	c.settled.WithLabelValues(o.Topic, o.Group, eventType, outcome).Inc()
	if o.Took > 0 {
		c.handler.WithLabelValues(o.Topic, o.Group, eventType, outcome).Observe(o.Took.Seconds())
	}
}
