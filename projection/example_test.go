package projection_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

// A read model counts what each customer ordered.
func Example() {
	t, end := testenv.StartExample()
	defer end()
	pool, rdb := testenv.Postgres(t), testenv.Redis(t)
	ctx := context.Background()
	if _, err := pool.Exec(ctx, `CREATE TABLE spent (customer text PRIMARY KEY, cents bigint)`); err != nil {
		panic(err)
	}

	type Order struct {
		Customer string
		Cents    int64
	}
	orders := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}
	orderPlaced := stream.Define[Order]("order.placed")
	publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	if err != nil {
		panic(err)
	}
	for i, o := range []Order{{"ada", 1200}, {"bob", 300}, {"ada", 50}} {
		if _, err := publisher.Publish(ctx, orders, orderPlaced.Event(fmt.Sprint("order-", i), o)); err != nil {
			panic(err)
		}
	}

	mux := projection.NewMux()
	projection.Handle(mux, orderPlaced, func(ctx context.Context, tx pgx.Tx, _ stream.Event, o Order) error {
		_, err := tx.Exec(ctx, `INSERT INTO spent VALUES ($1, $2)
			ON CONFLICT (customer) DO UPDATE SET cents = spent.cents + excluded.cents`, o.Customer, o.Cents)
		return err
	})
	runner, err := projection.NewRunner(pool, rdb, projection.Config{Name: "spent", Topics: []stream.Topic{orders}, Mux: mux})
	if err != nil {
		panic(err)
	}
	result, err := runner.RunOnce(ctx) // a service calls Run, which goes on until ctx ends
	fmt.Println(result.Events, err)
	result, err = runner.RunOnce(ctx)
	fmt.Println(result.Events, err)

	rows, err := pool.Query(ctx, `SELECT customer || ' ' || cents FROM spent ORDER BY customer`)
	if err != nil {
		panic(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	fmt.Println(lines, err)
	// Output:
	// 3 <nil>
	// 0 <nil>
	// [ada 1250 bob 300] <nil>
}
