package telemetry

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/streamkeel/streamkeel/saga"
)

type sagaMetrics struct {
	steps, ended, timers *prometheus.CounterVec
}

func newSagaMetrics(m *Metrics) sagaMetrics {
	return sagaMetrics{
		steps:  m.counter("saga_steps_total", "Steps of sagas by what became of their event, and of what was to undo them.", "flow", "step", "outcome"),
		ended:  m.counter("saga_ended_total", "Sagas that were completed, compensated or parked in a database of this process.", "flow", "outcome"),
		timers: m.counter("saga_timers_total", "Timers that fired.", "flow"),
	}
}

// Saga returns the observer of sagas and of their timers (saga.Config.Observer,
// saga.TimersConfig.Observer).
func (m *Metrics) Saga() saga.Observer { return m.saga }

// sagaOutcomes are the label values of the moments of a step.
var sagaOutcomes = map[saga.Moment]string{
	saga.StepDone: "done", saga.StepRefused: "refused", saga.StepSkipped: "skipped", saga.StepRepeated: "repeated",
	saga.StepCompensated: "undone", saga.NothingToUndo: "nothing_to_undo", saga.CompensationFailed: "undo_failed", saga.CompensationGiven: "undo_skipped",
}

// Observe implements saga.Observer.
func (s sagaMetrics) Observe(_ context.Context, o saga.Observation) {
	switch o.Moment {
	case saga.SagaCompleted, saga.SagaCompensated, saga.SagaParked:
		s.ended.WithLabelValues(o.Flow, string(o.Moment)).Inc()
	case saga.TimerFired:
		s.timers.WithLabelValues(o.Flow).Inc()
	default:
		if outcome := sagaOutcomes[o.Moment]; outcome != "" {
			s.steps.WithLabelValues(o.Flow, o.Step, outcome).Inc()
		}
	}
}
