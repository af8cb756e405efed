package saga

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/pgerr"
)

// State is how far a saga is, in this database.
type State string

// The states.
const (
	StateRunning     State = "running"
	StateCompleted   State = "completed"
	StateAborting    State = "aborting"    // something is left to undo
	StateCompensated State = "compensated" // everything that was done here is undone
	StateParked      State = "parked"      // a compensation failed too often; a person must see to it
)

// Saga is a saga as this database knows it.
type Saga struct {
	Flow, ID         string
	State            State
	Started, Updated time.Time
	// Cause is why it was aborted.
	Cause string
	// LastStep is the last step that ran, ExpectedBy when the next one, or the end, is
	// overdue; zero where nothing was declared.
	LastStep   string
	ExpectedBy time.Time
	// Stuck says that ExpectedBy has passed, by the clock of Postgres.
	Stuck bool
	// Steps has what was done, in order, and Log what happened; only Get fills them.
	Steps []StepRecord
	Log   []LogRecord
}

// StepRecord is the barrier of an action or a compensation.
type StepRecord struct {
	Step     string
	Op       string // action or compensation
	Outcome  string // done, refused, skipped or failed
	EventID  string
	Attempts int
	Error    string
	At       time.Time
}

// LogRecord is a line of a saga's log.
type LogRecord struct {
	At      time.Time
	What    Moment
	Step    string
	EventID string
	Detail  string
}

// failure is the error of a compensation that failed.
func (s Saga) failure() string {
	for _, r := range s.Steps {
		if r.Outcome == "failed" {
			return r.Step + ": " + r.Error
		}
	}
	return ""
}

// Querier is a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

const sagaColumns = `flow, saga_id, state, started, updated, cause, last_step, expected_by,
	coalesce(state IN ('running', 'aborting') AND expected_by < now(), false)`

const getSaga = `SELECT ` + sagaColumns + ` FROM {schema}.saga WHERE flow = $1 AND saga_id = $2`

const getSteps = `
SELECT step, op, outcome, event_id, attempts, error, at FROM {schema}.saga_step
WHERE flow = $1 AND saga_id = $2 ORDER BY seq`

const getLog = `
SELECT at, what, step, event_id, detail FROM {schema}.saga_log
WHERE flow = $1 AND saga_id = $2 ORDER BY id`

// Get returns a saga with its steps and its log, or ErrNotFound.
func Get(ctx context.Context, db Querier, flow, sagaID string) (Saga, error) {
	return Schema{}.Get(ctx, db, flow, sagaID)
}

// Get is the package's Get, for this schema.
func (sc Schema) Get(ctx context.Context, db Querier, flow, sagaID string) (Saga, error) {
	found, err := collect(ctx, db, scanSaga, sc.name.SQL(getSaga), flow, sagaID)
	if err != nil {
		return Saga{}, err
	}
	if len(found) == 0 {
		return Saga{}, fmt.Errorf("saga: %.200s of flow %.140s: %w", sagaID, flow, ErrNotFound)
	}
	s := found[0]
	s.Steps, err = collect(ctx, db, func(row pgx.CollectableRow) (r StepRecord, err error) {
		err = row.Scan(&r.Step, &r.Op, &r.Outcome, &r.EventID, &r.Attempts, &r.Error, &r.At)
		return r, err
	}, sc.name.SQL(getSteps), flow, sagaID)
	if err != nil {
		return Saga{}, err
	}
	s.Log, err = collect(ctx, db, func(row pgx.CollectableRow) (r LogRecord, err error) {
		err = row.Scan(&r.At, &r.What, &r.Step, &r.EventID, &r.Detail)
		return r, err
	}, sc.name.SQL(getLog), flow, sagaID)
	return s, err
}

// Filter says which sagas List returns; zero fields restrict nothing.
type Filter struct {
	Flow   string
	States []State
	// Stuck restricts to those whose next step, or whose undoing, is overdue.
	Stuck bool
	// Limit is how many at the most. Default 100.
	Limit int
	// After goes on behind a saga of the page before.
	After Saga
}

const listSagas = `
SELECT ` + sagaColumns + `
FROM {schema}.saga
WHERE ($1 = '' OR flow = $1)
	AND (cardinality($2::text[]) = 0 OR state = ANY ($2))
	AND (NOT $3 OR (state IN ('running', 'aborting') AND expected_by < now()))
	AND ($5 = '' OR (updated, flow, saga_id) > ($4, $6, $5))
ORDER BY updated, flow, saga_id
LIMIT $7`

// List returns sagas, those that were touched longest ago first, without steps and log.
func List(ctx context.Context, db Querier, filter Filter) ([]Saga, error) {
	return Schema{}.List(ctx, db, filter)
}

// List is the package's List, for this schema.
func (sc Schema) List(ctx context.Context, db Querier, filter Filter) ([]Saga, error) {
	if filter.Limit < 0 {
		return nil, invalid("Limit %d is negative", filter.Limit)
	}
	if filter.Limit == 0 {
		filter.Limit = 100
	}
	states := make([]string, len(filter.States))
	for i, s := range filter.States {
		states[i] = string(s)
	}
	return collect(ctx, db, scanSaga, sc.name.SQL(listSagas), filter.Flow, states, filter.Stuck,
		filter.After.Updated, filter.After.ID, filter.After.Flow, filter.Limit)
}

func scanSaga(row pgx.CollectableRow) (s Saga, err error) {
	var expected *time.Time
	err = row.Scan(&s.Flow, &s.ID, &s.State, &s.Started, &s.Updated, &s.Cause, &s.LastStep, &expected, &s.Stuck)
	if expected != nil {
		s.ExpectedBy = *expected
	}
	return s, err
}

func collect[T any](ctx context.Context, db Querier, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, sql, args...)
	if err == nil {
		var all []T
		if all, err = pgx.CollectRows(rows, scan); err == nil {
			return all, nil
		}
	}
	if pgerr.IsNoTable(err) {
		return nil, fmt.Errorf("saga: the tables are missing, apply the migrations: %w", err)
	}
	return nil, fmt.Errorf("saga: query: %w", err)
}
