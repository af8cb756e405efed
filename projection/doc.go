// Package projection keeps read models: a [Runner] reads the partitions of its topics in
// order, and applies what it reads to tables in Postgres, each event once.
//
//	mux := projection.NewMux()
//	projection.Handle(mux, OrderPlaced, func(ctx context.Context, tx pgx.Tx, e stream.Event, o Order) error {
//		_, err := tx.Exec(ctx, `INSERT INTO open_orders (id, total) VALUES ($1, $2)`, o.ID, o.Total)
//		return err
//	})
//	r, err := projection.NewRunner(pool, rdb, projection.Config{Name: "open-orders", Topics: []stream.Topic{Orders}, Mux: mux})
//	err = r.Run(ctx) // until ctx ends
//
// What Apply wrote and the checkpoint commit in one transaction, so that a crash between
// any two steps changes nothing twice and misses nothing. An event that the outbox relay
// published again, because Redis had lost it, is known by its sequence and skipped. Where
// the stream itself no longer continues the checkpoint, the runner finds out before it
// applies anything, and says so: [ErrRewound] and [ErrTrimmedUnread].
package projection
