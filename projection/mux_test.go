package projection_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

type order struct {
	ID    string `json:"id"`
	Total int    `json:"total"`
}

var (
	orderPlaced   = stream.Define[order]("order.placed")
	orderShipped  = stream.Define[order]("order.shipped")
	orderArchived = stream.Define[order]("order.archived")
)

// The mux keeps a table of orders by state: what is queued and what is not must not overtake
// each other.
func orderMux() *projection.Mux {
	mux := projection.NewMux()
	projection.Queue(mux, orderPlaced, func(batch *pgx.Batch, e stream.Event, o order) error {
		batch.Queue(`INSERT INTO ledger (event, key) VALUES ($1, 'placed')`, o.ID)
		return nil
	})
	projection.Handle(mux, orderShipped, func(ctx context.Context, tx pgx.Tx, e stream.Event, o order) error {
		tag, err := tx.Exec(ctx, `UPDATE ledger SET key = 'shipped' WHERE event = $1 AND key = 'placed'`, o.ID)
		if err == nil && tag.RowsAffected() != 1 {
			err = errors.New("shipped before it was placed")
		}
		return err
	})
	return mux
}

func withMux(mux *projection.Mux) func(*projection.Config) {
	return func(c *projection.Config) { c.Apply, c.Mux = nil, mux }
}

func (w *world) keys() map[string]string {
	w.t.Helper()
	rows, err := w.pool.Query(w.t.Context(), `SELECT event, key FROM ledger`)
	require.NoError(w.t, err)
	keys := map[string]string{}
	var event, key string
	_, err = pgx.ForEachRow(rows, []any{&event, &key}, func() error { keys[event] = key; return nil })
	require.NoError(w.t, err)
	return keys
}

func TestMuxAppliesInOrderAndPassesOtherTypes(t *testing.T) {
	w := newWorld(t, 1)
	for _, id := range []string{"o1", "o2", "o3"} {
		w.add(0, orderPlaced.Event(id, order{ID: id}))
		w.add(0, orderArchived.Event(id, order{ID: id}))
		if id != "o3" {
			w.add(0, orderShipped.Event(id, order{ID: id}))
		}
	}
	require.Equal(t, projection.Result{Events: 8}, w.drain(w.runner(withMux(orderMux()))))
	require.Equal(t, map[string]string{"o1": "shipped", "o2": "shipped", "o3": "placed"}, w.keys())
}

func TestUndecodablePayloadGoesToOnMalformedAtOnce(t *testing.T) {
	w := newWorld(t, 1)
	w.add(0, orderPlaced.Event("o1", order{ID: "o1"}))
	w.add(0, stream.NewEvent("order.placed", "o2", stream.ContentTypeMsgpack, []byte("\xdd\xff\xff\xff\xff")))
	w.add(0, orderPlaced.Event("o3", order{ID: "o3"}))

	_, err := drain(t.Context(), w.runner(withMux(orderMux())))
	var event *projection.EventError
	require.ErrorAs(t, err, &event)
	require.ErrorIs(t, err, stream.ErrUndecodable)
	require.Equal(t, 1, event.Attempts)

	skip := w.runner(withMux(orderMux()), func(c *projection.Config) { c.OnMalformed = projection.Skip })
	require.Equal(t, projection.Result{Events: 1, Malformed: 1}, w.drain(skip))
	require.Equal(t, map[string]string{"o1": "placed", "o3": "placed"}, w.keys())
}

func TestFailedQueuedStatementIsAFailedAttempt(t *testing.T) {
	w := newWorld(t, 1)
	mux := projection.NewMux()
	projection.Queue(mux, orderPlaced, func(batch *pgx.Batch, e stream.Event, o order) error {
		batch.Queue(`SELECT 1/$1::int`, o.Total)
		return nil
	})
	w.add(0, orderPlaced.Event("o1", order{Total: 1}))
	w.add(0, orderPlaced.Event("o2", order{Total: 0}))
	err := w.runner(withMux(mux), func(c *projection.Config) { c.MaxAttempts = 2 }).Run(t.Context())
	var event *projection.EventError
	require.ErrorAs(t, err, &event)
	require.ErrorContains(t, err, "division by zero")
}

func TestConfigReportsEveryFault(t *testing.T) {
	t.Parallel()
	mux := projection.NewMux()
	projection.Handle(mux, stream.Define[order](""), func(context.Context, pgx.Tx, stream.Event, order) error { return nil })
	projection.Handle[order](mux, orderShipped, nil)
	projection.Queue(mux, orderPlaced, func(*pgx.Batch, stream.Event, order) error { return nil })
	projection.Queue(mux, orderPlaced, func(*pgx.Batch, stream.Event, order) error { return nil })
	_, err := projection.NewRunner(nil, nil, projection.Config{
		Schema: "a.b", Name: "a b", Topics: topics(stream.Topic{Name: "x"}, stream.Topic{Name: "x"}, stream.Topic{}), Mux: mux, Apply: record,
		BatchSize: -1, MaxAttempts: -1, MinBackoff: -1, MaxBackoff: -2, ApplyTimeout: -1, ShutdownTimeout: -1,
	})
	require.ErrorIs(t, err, projection.ErrInvalid)
	for _, fault := range []string{
		"the Postgres pool is nil", "the Redis client is nil", `Schema: schema "a.b"`, `Name "a b"`, "the stream sk:x.0 twice", "invalid topic", "one of Apply and Mux",
		"event type \"\"", "the handler of order.shipped is nil", "order.placed has two handlers", "BatchSize -1", "MaxAttempts -1",
		"MinBackoff -1ns", "MaxBackoff -2ns", "ApplyTimeout -1ns", "ShutdownTimeout -1ns",
	} {
		require.ErrorContains(t, err, fault)
	}
	_, err = projection.NewRunner(nil, nil, projection.Config{Mux: projection.NewMux()})
	require.ErrorContains(t, err, "the Mux has no handlers")
	require.ErrorContains(t, err, "Topics is empty")
}
