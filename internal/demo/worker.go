package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

// WorkerConfig is what a worker process is told, as JSON in WorkerVar.
type WorkerConfig struct {
	Name        string
	Namespace   string
	RedisURL    string
	PostgresURL string
	Seed        int64
	MinIdle     time.Duration
	Break       Break
}

// WorkerVar is the environment variable with a worker's config.
const WorkerVar = "STREAMKEEL_DEMO_WORKER"

// worker is one process of the services that consume: the group notify, the projection
// activity, and the shop's saga.
type worker struct {
	cfg    WorkerConfig
	topics topics
	dice   dice
	rdb    *redis.Client
	pool   *pgxpool.Pool
}

// Work runs a worker until ctx ends.
func Work(ctx context.Context, config string) error {
	w := &worker{}
	if err := json.Unmarshal([]byte(config), &w.cfg); err != nil {
		return fmt.Errorf("demo: worker config: %w", err)
	}
	opts, err := redis.ParseURL(w.cfg.RedisURL)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	w.topics, w.dice = topicsIn(w.cfg.Namespace), dice(w.cfg.Seed)
	w.rdb = redis.NewClient(opts)
	defer func() { _ = w.rdb.Close() }()
	if w.pool, err = openPool(ctx, w.cfg.PostgresURL, 12); err != nil {
		return err
	}
	defer w.pool.Close()

	notify, err := w.notify()
	if err != nil {
		return err
	}
	activity, err := w.activity()
	if err != nil {
		return err
	}
	shop, timers, err := w.shop()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return notify.Run(ctx) })
	g.Go(func() error { return activity.Run(ctx) })
	g.Go(func() error { return shop.Run(ctx) })
	g.Go(func() error { return timers.Run(ctx) })
	return g.Wait()
}

func (w *worker) consumer(topic stream.Topic, group string, h consumergroup.Handler) (*consumergroup.Consumer, error) {
	return consumergroup.New(w.rdb, consumergroup.Config{
		Topics: []stream.Topic{topic}, Group: group, Name: w.cfg.Name, Handler: w.countReruns(group, h), Concurrency: 8,
		Retry:  consumergroup.Policy{MaxAttempts: 4, MinBackoff: 100 * time.Millisecond, MaxBackoff: time.Second},
		Limits: pel.Limits{MinIdle: w.cfg.MinIdle},
		Logger: slog.Default(),
	})
}

// countReruns writes down every run that is not the first, before the handler runs.
func (w *worker) countReruns(group string, h consumergroup.Handler) consumergroup.Handler {
	return consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		if m, _ := consumergroup.MetadataFrom(ctx); m.Deliveries > 1 || m.Attempt > 1 {
			if _, err := w.pool.Exec(ctx, `INSERT INTO demo.rerun VALUES ($1, $2, $3, $4)`, group, e.ID, m.Attempt, m.Deliveries); err != nil {
				return consumergroup.Unavailable(err)
			}
		}
		return h.Handle(ctx, e)
	})
}

// notify is a handler with faults: some events fail once or twice, some always, until the
// fault is removed. Its effect is a row in the ledger, in the inbox's transaction.
func (w *worker) notify() (*consumergroup.Consumer, error) {
	effect := func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
		if err := w.fault(ctx, e); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO demo.effect VALUES ($1, $2)`, groupNotify, e.ID)
		return err
	}
	handler := inbox.Handler(w.pool, effect)
	switch w.cfg.Break {
	case BreakNoInbox:
		handler = consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
			began := time.Now()
			err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error { return effect(ctx, tx, e) })
			redisx.Pause(ctx, 30*time.Millisecond+3*time.Since(began)) // most deaths come between the commit and the ack
			return err
		})
	case BreakAckEarly:
		careful := handler
		handler = consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
			go func() {
				defer func() { _ = recover() }()
				ctx := context.WithoutCancel(ctx)
				redisx.Pause(ctx, 50*time.Millisecond)
				_ = careful.Handle(ctx, e)
			}()
			return nil
		})
	}
	return w.consumer(w.topics.webhooks, groupNotify, handler)
}

var errDeclined = errors.New("the receiver declined")

// fault fails by the number of the event and the attempt.
func (w *worker) fault(ctx context.Context, e stream.Event) error {
	n, err := strconv.Atoi(e.Attributes["n"])
	if err != nil {
		return consumergroup.Permanent(fmt.Errorf("attribute n: %w", err))
	}
	m, _ := consumergroup.MetadataFrom(ctx)
	if m.Attempt > w.dice.failures(n) {
		return nil
	}
	if w.dice.poison(n) {
		var removed bool
		if err := w.pool.QueryRow(ctx, `SELECT removed FROM demo.fault`).Scan(&removed); err != nil {
			return consumergroup.Unavailable(err)
		}
		if removed {
			return nil
		}
		if n%2 == 0 {
			panic("a payload that nobody thought of")
		}
	}
	return errDeclined
}

// activity is the read model: deliveries by repository and type.
func (w *worker) activity() (*projection.Runner, error) {
	return projection.NewRunner(w.pool, w.rdb, projection.Config{
		Name: groupActivity, Topics: []stream.Topic{w.topics.webhooks}, Apply: w.apply, Logger: slog.Default(),
	})
}

func (w *worker) apply(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
	batch := &pgx.Batch{}
	for _, e := range events {
		version, err := strconv.ParseInt(e.Attributes["version"], 10, 64)
		if err != nil {
			return fmt.Errorf("attribute version of %s: %w", e.ID, err)
		}
		batch.Queue(`INSERT INTO demo.activity AS a VALUES ($1, $2, 1) ON CONFLICT (repository, type) DO UPDATE SET n = a.n + 1`,
			e.Attributes["owner"], e.Type)
		batch.Queue(`INSERT INTO demo.effect VALUES ($1, $2)`, groupActivity, e.ID)
		batch.Queue(`INSERT INTO demo.key_seen AS k VALUES ($1, $2, ($2::bigint <> 1)::int) ON CONFLICT (key) DO UPDATE
			SET version = EXCLUDED.version, violations = k.violations + (EXCLUDED.version <> k.version + 1)::int`, e.Key, version)
	}
	return tx.SendBatch(ctx, batch).Close()
}
