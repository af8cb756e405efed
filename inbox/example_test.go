package inbox_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// An event that is delivered twice is billed once.
func Example() {
	t, end := testenv.StartExample()
	defer end()
	pool, rdb := testenv.Postgres(t), testenv.Redis(t)
	ctx := context.Background()
	if _, err := pool.Exec(ctx, `CREATE TABLE invoice (order_id text, cents bigint)`); err != nil {
		panic(err)
	}

	type Order struct {
		ID    string
		Cents int64
	}
	orders := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}
	orderPlaced := stream.Define[Order]("order.placed")
	publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	if err != nil {
		panic(err)
	}
	e := orderPlaced.Event("order-1", Order{"order-1", 1200})
	other := orderPlaced.Event("order-2", Order{"order-2", 300})
	for _, one := range []stream.Event{e, e, other} {
		if _, err := publisher.Publish(ctx, orders, one); err != nil {
			panic(err)
		}
	}

	ctx, stop := context.WithCancel(ctx)
	mux := consumergroup.NewMux()
	inbox.Handle(mux, pool, orderPlaced, func(ctx context.Context, tx pgx.Tx, _ stream.Event, o Order) error {
		_, err := tx.Exec(ctx, `INSERT INTO invoice VALUES ($1, $2)`, o.ID, o.Cents)
		if o.ID == "order-2" {
			stop()
		}
		return err
	})
	consumer, err := consumergroup.New(rdb, consumergroup.Config{
		Topics: []stream.Topic{orders}, Group: "billing", Handler: mux, Concurrency: 1,
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(consumer.Run(ctx))

	rows, err := pool.Query(context.Background(), `SELECT order_id || ' ' || cents FROM invoice ORDER BY order_id`)
	if err != nil {
		panic(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	fmt.Println(lines, err)
	// Output:
	// <nil>
	// [order-1 1200 order-2 300] <nil>
}

// Where the effect is a call of another system, a claim in Redis keeps all but one delivery from it.
func ExampleClaims() {
	t, end := testenv.StartExample()
	defer end()
	ctx := context.Background()
	claims, err := inbox.NewClaims(testenv.Redis(t), inbox.ClaimsConfig{Namespace: testenv.Namespace(t)})
	if err != nil {
		panic(err)
	}
	e := stream.NewEvent("order.placed", "order-1", stream.ContentTypeJSON, []byte(`{}`))
	e.Source = "shop"
	for range 2 {
		ran, err := claims.Do(ctx, "billing", e, func(context.Context) error {
			fmt.Println("charging") // give the other system e.ID as idempotency key, if it takes one
			return nil
		})
		fmt.Println(ran, err)
	}
	// Output:
	// charging
	// true <nil>
	// false <nil>
}
