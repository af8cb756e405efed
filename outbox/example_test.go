package outbox_test

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// An order and the event that tells of it commit together, or not at all; a relay moves the event to Redis.
func Example() {
	t, end := testenv.StartExample()
	defer end()
	pool, rdb := testenv.Postgres(t), testenv.Redis(t)
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := pool.Exec(ctx, `CREATE TABLE orders (id text PRIMARY KEY)`); err != nil {
		panic(err)
	}

	type Order struct{ ID string }
	orders := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}
	orderPlaced := stream.Define[Order]("order.placed")
	place := func(o Order) error {
		return outbox.InTx(ctx, pool, func(tx pgx.Tx) error {
			if err := outbox.Publish(ctx, tx, orders, orderPlaced.Event(o.ID, o)); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO orders VALUES ($1)`, o.ID)
			return err
		})
	}
	fmt.Println(place(Order{"order-1"}))
	fmt.Println(place(Order{"order-1"}) != nil) // it is there already: no event says that it was placed again
	fmt.Println(place(Order{"order-2"}))

	relay, err := outbox.NewRelay(pool, rdb, outbox.RelayConfig{})
	if err != nil {
		panic(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }() // cmd/outbox-relay is a program that does this

	reader, err := stream.NewReader(rdb, stream.ReaderConfig{Topic: orders, Follow: true})
	if err != nil {
		panic(err)
	}
	for en, err := range reader.Entries(ctx) {
		o, decodeErr := orderPlaced.Decode(en.Event)
		fmt.Println(en.Event.Type, o.ID, err, decodeErr)
		if o.ID == "order-2" {
			break
		}
	}
	cancel()
	fmt.Println(<-ended)
	// Output:
	// <nil>
	// true
	// <nil>
	// order.placed order-1 <nil> <nil>
	// order.placed order-2 <nil> <nil>
	// <nil>
}

// Any driver for database/sql publishes too, and so does plain SQL: any language, and psql.
func ExampleSQLTx() {
	t, end := testenv.StartExample()
	defer end()
	ctx := context.Background()
	db, err := sql.Open("pgx", testenv.PostgresURL(t))
	if err != nil {
		panic(err)
	}
	defer func() { _ = db.Close() }()
	orders := stream.Topic{Name: "orders"}
	orderPlaced := stream.Define[int]("order.placed")

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		panic(err)
	}
	fmt.Println(outbox.Publish(ctx, outbox.SQLTx(tx), orders, orderPlaced.Event("order-1", 1)))
	fmt.Println(tx.Commit())

	_, err = db.ExecContext(ctx, `
INSERT INTO streamkeel.outbox (topic, key, type, data)
VALUES ('orders', 'order-2', 'order.placed', convert_to('{"n":2}', 'UTF8'))`)
	fmt.Println(err)

	var events int
	err = db.QueryRowContext(ctx, `SELECT count(*) FROM streamkeel.outbox`).Scan(&events)
	fmt.Println(events, err)
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// 2 <nil>
}
