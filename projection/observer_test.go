package projection_test

import (
	"context"
	"slices"
	"sync"

	"github.com/streamkeel/streamkeel/projection"
)

// moments remembers what an Observer is told.
type moments struct {
	mu  sync.Mutex
	all []projection.Observation
}

func (m *moments) Observe(_ context.Context, o projection.Observation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, o)
}

func (m *moments) of(moment projection.Moment) []projection.Observation {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.all), func(o projection.Observation) bool { return o.Moment != moment })
}

func (m *moments) count(moment projection.Moment) int { return len(m.of(moment)) }
