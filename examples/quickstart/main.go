// Command quickstart publishes an event in the transaction of what it tells of, relays it to
// Redis, and handles it once: all of Streamkeel's usual path in one process.
//
//	REDIS_URL=redis://localhost:6379 DATABASE_URL=postgres://localhost/app go run ./examples/quickstart
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/migrations"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// Order is what the event carries.
type Order struct {
	ID    string `json:"id"`
	Cents int    `json:"cents"`
}

// OrderPlaced and Orders are shared by who publishes and who consumes.
var (
	OrderPlaced = stream.Define[Order]("order.placed")
	Orders      = stream.Topic{Name: "orders", Partitions: 8}
)

// placeOrder commits the order and its event together, or neither.
func placeOrder(ctx context.Context, pool *pgxpool.Pool, o Order) error {
	return outbox.InTx(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO orders (id, cents) VALUES ($1, $2)`, o.ID, o.Cents); err != nil {
			return err
		}
		return outbox.Publish(ctx, tx, Orders, OrderPlaced.Event(o.ID, o))
	})
}

// bill handles each order once: its effect and the record that it was handled commit together.
func bill(ctx context.Context, tx pgx.Tx, _ stream.Event, o Order) error {
	_, err := tx.Exec(ctx, `INSERT INTO invoices (order_id, cents) VALUES ($1, $2)`, o.ID, o.Cents)
	return err
}

// serve runs the relay and the consumer until ctx ends. In production the relay is a daemon
// of its own, cmd/outbox-relay.
func serve(ctx context.Context, pool *pgxpool.Pool, rdb redis.UniversalClient) error {
	relay, err := outbox.NewRelay(pool, rdb, outbox.RelayConfig{})
	if err != nil {
		return err
	}
	mux := consumergroup.NewMux()
	inbox.Handle(mux, pool, OrderPlaced, bill)
	billing, err := consumergroup.New(rdb, consumergroup.Config{Topics: []stream.Topic{Orders}, Group: "billing", Handler: mux})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return relay.Run(ctx) })
	g.Go(func() error { return billing.Run(ctx) })
	return g.Wait()
}

const tables = `
CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, cents integer NOT NULL);
CREATE TABLE IF NOT EXISTS invoices (order_id text NOT NULL, cents integer NOT NULL)`

// setUp makes Streamkeel's tables, as `streamkeel migrate up` does, and the program's own.
func setUp(ctx context.Context, pool *pgxpool.Pool) error {
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }() // the pool stays open
	if err := migrations.Up(ctx, db); err != nil {
		return err
	}
	_, err := pool.Exec(ctx, tables)
	return err
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Getenv("REDIS_URL"), os.Getenv("DATABASE_URL")); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, redisURL, postgresURL string) error {
	opts, err := redis.ParseURL(redisURL)
	if err != nil {
		return fmt.Errorf("REDIS_URL: %w", err)
	}
	rdb := redis.NewClient(opts)
	defer func() { _ = rdb.Close() }()
	pool, err := pgxpool.New(ctx, postgresURL)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer pool.Close()
	if err := setUp(ctx, pool); err != nil {
		return err
	}
	order := OrderPlaced.Event("", Order{}).ID // any new id
	if err := placeOrder(ctx, pool, Order{ID: order, Cents: 1999}); err != nil {
		return err
	}
	fmt.Println("placed order", order, "- its invoice follows; Ctrl+C ends")
	return serve(ctx, pool, rdb)
}
