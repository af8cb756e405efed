// Package outbox moves events from a Postgres transaction to Redis Streams: in order per key, each once in
// the surviving stream, whoever crashes.
//
// [Publish] writes events as rows, in the transaction that they tell of. A [Relay] reads what
// lies between two snapshots of the database, a batch, and adds it to the streams:
//
//	err := outbox.InTx(ctx, pool, func(tx pgx.Tx) error {
//		if err := insertOrder(ctx, tx, order); err != nil {
//			return err
//		}
//		return outbox.Publish(ctx, tx, Orders, OrderPlaced.Event(order.ID, order))
//	})
//
// Events of one key come in the order in which their transactions committed if these lock something of the
// key before they publish: the row that they change does it, and where there is none, [Lock].
//
// docs/outbox.md tells how it works and what an operator can do.
package outbox
