package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
)

// MetricsConfig configures [Metrics]. The zero value is the safe default.
type MetricsConfig struct {
	// Types are the event types that have a label value of their own; all others share
	// "other". Default none: who writes to a stream decides about the types in it, and each
	// value costs a time series for every topic, group and outcome.
	Types []string
	// HandlerBuckets are the upper bounds, in seconds, of the histograms of handlers and
	// transactions. Default 1 ms to 1 min.
	HandlerBuckets []float64
	// AgeBuckets are the upper bounds, in seconds, of the histogram of events' ages. Default
	// 5 ms to 1 h.
	AgeBuckets []float64
}

// otherType is the label value of event types that MetricsConfig.Types does not name.
const otherType = "other"

// Metrics counts what this process does. It is a prometheus.Collector of its own, to be
// registered where the program wants it; nothing goes to the default registry by itself. Any
// number of consumers, relays, projections and sagas may share one.
type Metrics struct {
	types    map[string]bool
	consumer consumerMetrics
	relay    relayMetrics
	readers  projectionMetrics
	saga     sagaMetrics
	all      []prometheus.Collector
}

// NewMetrics returns metrics of which nothing was counted.
func NewMetrics(config MetricsConfig) *Metrics {
	if config.HandlerBuckets == nil {
		config.HandlerBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	}
	if config.AgeBuckets == nil {
		config.AgeBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600}
	}
	m := &Metrics{types: map[string]bool{}}
	for _, t := range config.Types {
		m.types[t] = true
	}
	m.consumer = newConsumerMetrics(m, config)
	m.relay = newRelayMetrics(m, config)
	m.readers = newProjectionMetrics(m, config)
	m.saga = newSagaMetrics(m)
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all {
		c.Collect(ch)
	}
}

func (m *Metrics) typeLabel(eventType string) string {
	if m.types[eventType] {
		return eventType
	}
	return otherType
}

const prefix = "streamkeel"

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: prefix, Name: name, Help: help}, labels)
	m.all = append(m.all, c)
	return c
}

func (m *Metrics) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: prefix, Name: name, Help: help}, labels)
	m.all = append(m.all, g)
	return g
}

func (m *Metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: prefix, Name: name, Help: help, Buckets: buckets}, labels)
	m.all = append(m.all, h)
	return h
}
