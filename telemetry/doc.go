// Package telemetry shows what Streamkeel does to Prometheus and OpenTelemetry. The packages
// that do the work know neither.
//
// [Metrics] counts what the consumers, relays, projections and sagas of this process do:
//
//	metrics := telemetry.NewMetrics(telemetry.MetricsConfig{Types: []string{OrderPlaced.Type()}})
//	prometheus.MustRegister(metrics)
//	consumergroup.New(rdb, consumergroup.Config{…, Observer: metrics.Consumer()})
//
// [Backlog] asks Redis, at each scrape, what is left to do: lag, pending entries, retries and
// dead letters of every group in the registry. The reclaimer daemon serves it; a service needs
// its own only where no reclaimer runs.
//
// [Tracing] makes spans, and carries the trace from the publisher to the handler, and on to
// what the handler publishes:
//
//	tracing := telemetry.NewTracing(telemetry.TracingConfig{})
//	mux.Use(tracing.Handle)
//
// docs/operations.md lists every metric, and what an alarm on it means.
package telemetry
