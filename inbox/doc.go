// Package inbox gives a handler's effects exactly once, although its events are delivered at least once.
//
// Where the effects are in Postgres, a row that says "handled" commits with them, or not at all:
//
//	inbox.Handle(mux, pool, OrderPlaced, func(ctx context.Context, tx pgx.Tx, e stream.Event, o Order) error {
//		_, err := tx.Exec(ctx, `INSERT INTO invoice (order_id, cents) VALUES ($1, $2)`, o.ID, o.Cents)
//		return err
//	})
//
// A process may die, a connection may break, Redis may deliver again: the invoice is there once. A
// [Cleaner] deletes old rows.
//
// Where the effects are somewhere else, nothing can make them exactly once. [Claims] come near: a token in Redis
// keeps all but one of concurrent and later deliveries from the effect. Only where the process dies, or
// loses Redis, between the effect and the record of it, the effect comes twice.
package inbox
