package saga_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

// shop runs what a service runs: its consumer, timers, and somewhere a relay.
func shop(ctx context.Context, flow *saga.Flow, topic stream.Topic, pool *pgxpool.Pool, rdb redis.UniversalClient) (wait func() error) {
	handler, err := flow.Handler(pool)
	if err != nil {
		panic(err)
	}
	consumer, err := consumergroup.New(rdb, consumergroup.Config{Topics: []stream.Topic{topic}, Group: "shop", Handler: handler})
	if err != nil {
		panic(err)
	}
	timers, err := saga.NewTimers(pool, saga.TimersConfig{})
	if err != nil {
		panic(err)
	}
	relay, err := outbox.NewRelay(pool, rdb, outbox.RelayConfig{})
	if err != nil {
		panic(err)
	}
	ended := make(chan error)
	for _, run := range []func(context.Context) error{consumer.Run, timers.Run, relay.Run} {
		go func() { ended <- run(ctx) }()
	}
	return func() error { return errors.Join(<-ended, <-ended, <-ended) }
}

// told is an Observer that prints what happens.
type told struct{ compensated chan struct{} }

func (t told) Observe(_ context.Context, o saga.Observation) {
	fmt.Println(strings.TrimSpace(o.Step + " " + string(o.Moment)))
	if o.Moment == saga.SagaCompensated {
		close(t.compensated)
	}
}

// A step reserves, the next one is refused, and the first is undone.
func Example() {
	t, end := testenv.StartExample()
	defer end()
	pool, rdb := testenv.Postgres(t), testenv.Redis(t)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if _, err := pool.Exec(ctx, `CREATE TABLE stock (item text, free int); INSERT INTO stock VALUES ('chair', 4)`); err != nil {
		panic(err)
	}

	type Order struct {
		Item  string
		Count int
	}
	var (
		orders        = stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}
		orderPlaced   = stream.Define[Order]("order.placed")
		stockReserved = stream.Define[Order]("stock.reserved")
	)
	move := func(ctx context.Context, s *saga.Tx, o Order, count int) error {
		_, err := s.Exec(ctx, `UPDATE stock SET free = free - $2 WHERE item = $1`, o.Item, count)
		return err
	}
	compensated := make(chan struct{})
	flow := saga.New("checkout", saga.Config{Topic: orders, Observer: told{compensated}})
	saga.Step(flow, "reserve", orderPlaced, func(ctx context.Context, s *saga.Tx, e stream.Event, o Order) error {
		if err := move(ctx, s, o, o.Count); err != nil {
			return err // rolled back, and tried again
		}
		return s.Emit(ctx, stockReserved.Event(e.Key, o))
	}, saga.StepConfig[Order]{
		Compensate: func(ctx context.Context, s *saga.Tx, _ stream.Event, o Order) error {
			return move(ctx, s, o, -o.Count)
		},
	})
	saga.Step(flow, "charge", stockReserved, func(context.Context, *saga.Tx, stream.Event, Order) error {
		return saga.Refuse(errors.New("the card was declined"))
	}, saga.StepConfig[Order]{Final: true})

	wait := shop(ctx, flow, orders, pool, rdb)
	placed := orderPlaced.Event("order-1", Order{"chair", 2})
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return outbox.Publish(ctx, tx, orders, placed) })
	if err != nil {
		panic(err)
	}
	<-compensated
	got, err := saga.Get(ctx, pool, "checkout", saga.ID(placed))
	if err != nil {
		panic(err)
	}
	var free int
	if err := pool.QueryRow(ctx, `SELECT free FROM stock`).Scan(&free); err != nil {
		panic(err)
	}
	fmt.Println(got.State, "because", got.Cause, "and", free, "chairs are free")
	stop()
	if err := wait(); err != nil {
		panic(err)
	}
	// Output:
	// reserve done
	// charge refused
	// reserve undone
	// compensated
	// compensated because the card was declined and 4 chairs are free
}
