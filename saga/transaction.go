package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/pgtx"
	"github.com/streamkeel/streamkeel/stream"
)

// transaction is one transaction of the flow: statements that are sent together, and what is
// told to the Observer once it committed.
type transaction struct {
	tx           pgx.Tx
	batch        pgx.Batch
	observations []Observation
}

// log writes a moment into the saga's log, and tells the Observer.
func (t *transaction) log(f *Flow, o Observation, detail string) {
	t.batch.Queue(f.sql(writeLog), f.name, o.Saga, string(o.Moment), o.Step, o.Event.ID, detail)
	t.observations = append(t.observations, o)
}

// flush sends the queued statements.
func (t *transaction) flush(ctx context.Context) error {
	err := t.tx.SendBatch(ctx, &t.batch).Close()
	t.batch = pgx.Batch{}
	if err != nil {
		return fmt.Errorf("saga: write: %w", err)
	}
	return nil
}

// nested runs fn within a savepoint, and goes back to it if fn fails.
func (t *transaction) nested(ctx context.Context, s *Tx, fn func(context.Context, *Tx, stream.Event) error) error {
	if _, err := t.tx.Exec(ctx, `SAVEPOINT streamkeel_step`); err != nil {
		return fmt.Errorf("saga: savepoint: %w", err)
	}
	s.Tx = t.tx
	err := fn(ctx, s, s.event)
	if err == nil {
		// A statement that failed, and whose error fn swallowed, fails this one.
		if _, err = t.tx.Exec(ctx, `RELEASE SAVEPOINT streamkeel_step`); err == nil {
			return nil
		}
		err = fmt.Errorf("saga: end of step: %w", err)
	}
	if _, back := t.tx.Exec(ctx, `ROLLBACK TO SAVEPOINT streamkeel_step`); back != nil {
		return fmt.Errorf("%w; saga: back to the savepoint: %w", err, back)
	}
	return err
}

// inTx runs fn in a transaction, again if it loses against another one, and says
// consumergroup.Unavailable where Postgres is away.
func (f *Flow) inTx(ctx context.Context, pool *pgxpool.Pool, fn func(context.Context, *transaction) error) error {
	var t *transaction
	err := pgtx.Run(ctx, pool, "saga", func(tx pgx.Tx) error {
		t = &transaction{tx: tx}
		return fn(ctx, t)
	})
	if pgerr.IsNoTable(err) {
		return fmt.Errorf("saga: the tables are missing, apply the migrations: %w", err)
	}
	if err == nil {
		f.observe(ctx, t.observations)
	}
	return err
}

// guarded makes a panic an error.
func guarded(fn func(context.Context, *Tx, stream.Event) error) func(context.Context, *Tx, stream.Event) error {
	return func(ctx context.Context, s *Tx, e stream.Event) (err error) {
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("saga: compensation panicked: %v", v)
			}
		}()
		return fn(ctx, s, e)
	}
}

// packEvent and pack write events and topics as the tables keep them.
func packEvent(e stream.Event) ([]byte, error) {
	packed, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("saga: pack event %s: %w", e.ID, err)
	}
	return packed, nil
}

func pack(topic stream.Topic, e stream.Event) (topicJSON, event []byte, err error) {
	if topicJSON, err = json.Marshal(topic); err != nil {
		return nil, nil, fmt.Errorf("saga: pack topic %s: %w", topic.Name, err)
	}
	event, err = packEvent(e)
	return topicJSON, event, err
}

func unpack(topicJSON, event []byte) (topic stream.Topic, e stream.Event, err error) {
	if len(topicJSON) > 0 {
		err = json.Unmarshal(topicJSON, &topic)
	}
	if err = errors.Join(err, json.Unmarshal(event, &e)); err != nil {
		err = fmt.Errorf("saga: unpack event: %w", err)
	}
	return topic, e, err
}
