package saga_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) {
	if os.Getenv(childPostgres) != "" {
		childMain()
	}
	testenv.Main(m)
}

type order struct {
	ID string `json:"id"`
}

var (
	placed   = stream.Define[order]("order.placed")
	reserved = stream.Define[order]("stock.reserved")
	charged  = stream.Define[order]("money.charged")
	overdue  = stream.Define[order]("payment.overdue")
)

const flowName = "checkout"

// service is a database with the effects of its steps, and what it emitted.
type service struct {
	pool   *pgxpool.Pool
	topic  stream.Topic
	outbox int64 // the last outbox row that was looked at
}

func newService(t testing.TB) *service {
	t.Helper()
	s := &service{pool: testenv.Pool(t, testenv.PostgresURL(t)), topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}}
	makeEffects(t, s.pool)
	return s
}

func makeEffects(t require.TestingT, pool *pgxpool.Pool) {
	_, err := pool.Exec(context.Background(), `CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, saga text NOT NULL, what text NOT NULL)`)
	require.NoError(t, err)
}

// flow returns a flow that is silent, and on the service's topic.
func (s *service) flow(edit ...func(*saga.Config)) *saga.Flow {
	config := saga.Config{Topic: s.topic, Logger: slog.New(slog.DiscardHandler)}
	for _, e := range edit {
		e(&config)
	}
	return saga.New(flowName, config)
}

func (s *service) handler(t require.TestingT, f *saga.Flow) consumergroup.Handler {
	h, err := f.Handler(s.pool)
	require.NoError(t, err)
	return h
}

// write leaves an effect in the transaction of a step or a compensation.
func write(ctx context.Context, s *saga.Tx, what string) error {
	_, err := s.Exec(ctx, `INSERT INTO effects (saga, what) VALUES ($1, $2)`, s.SagaID(), what)
	return err
}

// effect is a step, or a compensation, that writes what it is and emits what comes next.
func effect(what string, emits ...stream.Definition[order]) func(context.Context, *saga.Tx, stream.Event, order) error {
	return func(ctx context.Context, s *saga.Tx, _ stream.Event, o order) error {
		if err := write(ctx, s, what); err != nil {
			return err
		}
		for _, d := range emits {
			if err := s.Emit(ctx, d.Event(o.ID, o)); err != nil {
				return err
			}
		}
		return nil
	}
}

func undoable(what string) saga.StepConfig[order] {
	return saga.StepConfig[order]{Compensate: effect("undo " + what)}
}

func refusal(reason string) func(context.Context, *saga.Tx, stream.Event, order) error {
	return func(ctx context.Context, s *saga.Tx, _ stream.Event, _ order) error {
		return errors.Join(write(ctx, s, "refused"), saga.Refuse(errors.New(reason)))
	}
}

// effects returns what a saga's steps and compensations wrote here, in order.
func (s *service) effects(t require.TestingT, sagaID string) []string {
	rows, err := s.pool.Query(context.Background(), `SELECT what FROM effects WHERE saga = $1 ORDER BY n`, sagaID)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return all
}

// emitted returns the events that went into the outbox since the last call.
func (s *service) emitted(t require.TestingT) (events []stream.Event) {
	rows, err := s.pool.Query(context.Background(), `
SELECT id, event_id, type, source, key, time, content_type, coalesce(correlation_id, ''), coalesce(causation_id, ''), data
FROM streamkeel.outbox WHERE id > $1 ORDER BY id`, s.outbox)
	require.NoError(t, err)
	events, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e stream.Event, err error) {
		err = row.Scan(&s.outbox, &e.ID, &e.Type, &e.Source, &e.Key, &e.Time, &e.ContentType, &e.CorrelationID, &e.CausationID, &e.Data)
		return e, err
	})
	require.NoError(t, err)
	return events
}

func (s *service) get(t require.TestingT, sagaID string) saga.Saga {
	got, err := saga.Get(context.Background(), s.pool, flowName, sagaID)
	require.NoError(t, err)
	return got
}

func (s *service) state(t require.TestingT, sagaID string) saga.State { return s.get(t, sagaID).State }

// run handles events, and what comes of them, until nothing comes any more.
func (s *service) run(t require.TestingT, h consumergroup.Handler, events ...stream.Event) {
	for len(events) > 0 {
		for _, e := range events {
			require.NoError(t, handle(h, e))
		}
		events = s.emitted(t)
	}
}

// handle handles an event as a consumer does, which acks types that nobody handles.
func handle(h consumergroup.Handler, e stream.Event) error {
	err := h.Handle(context.Background(), e)
	if errors.Is(err, consumergroup.ErrUnhandled) {
		return nil
	}
	return err
}

func place(id string) stream.Event { return placed.Event(id, order{ID: id}) }

// history returns a saga's log, as "what step".
func history(s saga.Saga) []string {
	lines := make([]string, len(s.Log))
	for i, r := range s.Log {
		lines[i] = string(r.What)
		if r.Step != "" {
			lines[i] += " " + r.Step
		}
	}
	return lines
}
