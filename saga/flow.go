package saga

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// Config configures a [Flow]. Topic is required; every other zero is a default.
type Config struct {
	// Schema is where the tables are, the outbox among them. Default "streamkeel".
	Schema string
	// Topic is where Emit publishes, and where the flow says that a saga was aborted or
	// completed: every service that holds steps of the flow must consume it.
	Topic stream.Topic
	// Starts names the types of events that come from outside: those that start a saga, and
	// those of other services. Where it is set, or any step declares Emits, a step whose event
	// nobody is known to publish is a fault.
	Starts []string
	// Within is StepConfig.Within of steps that set none. Default: no limit.
	Within time.Duration
	// AbortWithin is how long undoing an aborted saga may take before it counts as stuck.
	// Default 5 minutes.
	AbortWithin time.Duration
	// MaxAttempts is how many failures of a saga's compensations, all steps together, park it
	// for a person. Default 8. It must be less than the consumer group's own limit (10 by
	// default), or else the event is dead-lettered before, and the saga stays aborting, and stuck.
	MaxAttempts int
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
	// Observer is told what happens to sagas. Default: nobody.
	Observer Observer
}

// Flow is a kind of saga: its steps, as far as this service holds them. Services that hold
// other steps of it have a Flow of the same name and topic. Declare all steps before its
// handler is made.
type Flow struct {
	name      string
	config    Config
	schema    pgschema.Name
	outbox    outbox.Schema
	log       *quiet.Log
	steps     []*step
	byType    map[string][]*step
	byName    map[string]*step
	faults    []error
	aborted   stream.Definition[Aborted]
	completed stream.Definition[Completed]
}

// Aborted is what a flow says, as "<flow>.aborted", when a step refused: whoever did a step
// of the saga undoes it.
type Aborted struct {
	Flow  string `json:"flow"`
	Saga  string `json:"saga"`
	Step  string `json:"step"` // which refused; empty where a person aborted the saga
	Cause string `json:"cause"`
}

// Completed is what a flow says, as "<flow>.completed", when a saga reached its end.
type Completed struct {
	Flow string `json:"flow"`
	Saga string `json:"saga"`
	Step string `json:"step"` // which completed it
}

// New returns a flow without steps. Name and topic belong to the protocol between the
// services of the flow. Mistakes come out of [Flow.Handler], all at once.
func New(name string, config Config) *Flow {
	if config.AbortWithin == 0 {
		config.AbortWithin = 5 * time.Minute
	}
	if config.MaxAttempts == 0 {
		config.MaxAttempts = 8
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	schema, err := pgschema.Parse(config.Schema)
	f := &Flow{
		name: name, config: config, schema: schema, outbox: outboxIn(schema), log: quiet.New(config.Logger.With("flow", name)),
		byType: map[string][]*step{}, byName: map[string]*step{},
		aborted: stream.Define[Aborted](name + ".aborted"), completed: stream.Define[Completed](name + ".completed"),
	}
	if err != nil {
		f.faults = append(f.faults, invalid("flow %.140s: Schema: %w", name, err))
	}
	return f
}

// sql puts the schema's name into a statement.
func (f *Flow) sql(text string) string { return f.schema.SQL(text) }

// Name returns the flow's name.
func (f *Flow) Name() string { return f.name }

// Aborted defines the event that says that a saga was aborted, for others who want to know.
func (f *Flow) Aborted() stream.Definition[Aborted] { return f.aborted }

// Completed defines the event that says that a saga was completed.
func (f *Flow) Completed() stream.Definition[Completed] { return f.completed }

// Types returns the types of the events that the flow's handler handles, for
// consumergroup.Mux.HandleType where other handlers share the consumer.
func (f *Flow) Types() []string {
	types := []string{f.aborted.Type(), f.completed.Type()}
	for _, s := range f.steps {
		if !slices.Contains(types, s.on) {
			types = append(types, s.on)
		}
	}
	return types
}

// Err reports every fault of the flow as declared, joined.
func (f *Flow) Err() error {
	faults := slices.Clone(f.faults)
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !stream.ValidName(f.name) {
		fault("name %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", f.name)
	}
	if err := f.config.Topic.Validate(); err != nil {
		faults = append(faults, err)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"Within", f.config.Within}, {"AbortWithin", f.config.AbortWithin}} {
		if d.d < 0 {
			fault("%s %s is negative", d.name, d.d)
		}
	}
	if f.config.MaxAttempts < 1 {
		fault("MaxAttempts %d must be at least 1", f.config.MaxAttempts)
	}
	if len(f.steps) == 0 {
		fault("it has no steps")
	}
	faults = append(faults, f.graphFaults()...)
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("saga: %w flow %.140q: %w", ErrInvalid, f.name, errors.Join(faults...))
}

// graphFaults checks that somebody publishes what each step waits for, if the flow says who
// publishes what.
func (f *Flow) graphFaults() (faults []error) {
	known := map[string]bool{}
	for _, t := range f.config.Starts {
		known[t] = true
	}
	for _, s := range f.steps {
		for _, t := range s.emits {
			known[t] = true
		}
	}
	for _, s := range f.steps {
		if len(known) > 0 && !known[s.on] {
			faults = append(faults, fmt.Errorf("step %s waits for %s, which no step emits and Starts does not name", s.name, s.on))
		}
		if s.on == f.aborted.Type() || s.on == f.completed.Type() {
			faults = append(faults, fmt.Errorf("step %s cannot be on %s, which is the flow's own", s.name, s.on))
		}
	}
	return faults
}

// warnUncompensated says which steps cannot be undone.
func (f *Flow) warnUncompensated() {
	var names []string
	for _, s := range f.steps {
		if s.undo == nil && !s.final && !s.nothingToUndo {
			names = append(names, s.name)
		}
	}
	if len(names) > 0 {
		f.config.Logger.Warn("steps without compensation stay done when a saga is aborted", "flow", f.name, "steps", strings.Join(names, " "))
	}
}
