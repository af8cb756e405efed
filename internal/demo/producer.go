package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/examples/webhooks"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// producer is the two services that say what happened: the one that receives webhooks,
// and the shop's counter.
type producer struct {
	pool   *pgxpool.Pool
	cfg    Config
	topics topics
	dice   dice
	input  []delivery

	done atomic.Int64 // transactions that ended, of both kinds

	mu         sync.Mutex
	rolledBack []string // ids of events whose transaction was rolled back, on purpose
}

// all is how many transactions there will be.
func (p *producer) all() int64 { return int64(p.cfg.Events + p.cfg.Orders) }

// delivery is a webhook, prepared.
type delivery struct {
	webhooks.Delivery
	eventType, owner string
}

const writers = 8

func newProducer(pool *pgxpool.Pool, cfg Config, t topics) (*producer, error) {
	all, err := webhooks.Load()
	if err != nil {
		return nil, err
	}
	p := &producer{pool: pool, cfg: cfg, topics: t, dice: dice(cfg.Seed)}
	for _, d := range all {
		s, err := d.Subject()
		if err != nil {
			return nil, err
		}
		p.input = append(p.input, delivery{d, d.EventType(s), s.Owner()})
	}
	return p, nil
}

// errOnPurpose rolls a transaction back.
var errOnPurpose = errors.New("rolled back on purpose")

// run publishes everything, in the order that the seed draws, by several writers.
func (p *producer) run(ctx context.Context) error {
	jobs := make([]func(context.Context) error, 0, p.cfg.Events+p.cfg.Orders)
	for n := range p.cfg.Events {
		jobs = append(jobs, func(ctx context.Context) error { return p.webhook(ctx, n) })
	}
	for n := range p.cfg.Orders {
		jobs = append(jobs, func(ctx context.Context) error { return p.order(ctx, n) })
	}
	shuffle := rand.New(rand.NewPCG(uint64(p.cfg.Seed), 0)) //nolint:gosec // a seed for a repeatable order
	shuffle.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })

	queue := make(chan func(context.Context) error)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(queue)
		for _, job := range jobs {
			select {
			case queue <- job:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range writers {
		g.Go(func() error {
			for job := range queue {
				if err := job(ctx); err != nil {
					return err
				}
				p.done.Add(1)
			}
			return nil
		})
	}
	return g.Wait()
}

const deliver = `
WITH k AS (INSERT INTO demo.key AS k VALUES ($1, 1) ON CONFLICT (key) DO UPDATE SET version = k.version + 1 RETURNING version)
INSERT INTO demo.delivery SELECT $2, $3, $1, k.version, $4, $5 FROM k RETURNING version`

// webhook is one delivery: its row and its event, in one transaction. The key's row comes
// first, as the lock that keeps the key's events in order.
func (p *producer) webhook(ctx context.Context, n int) error {
	d := p.input[n%len(p.input)]
	key := d.owner + "#" + strconv.Itoa(n/len(p.input)%64)
	e := stream.NewEvent(d.eventType, key, stream.ContentTypeJSON, d.Payload)
	return p.transaction(ctx, e.ID, p.dice.rollsBack(n), func(tx pgx.Tx) error {
		var version int64
		err := tx.QueryRow(ctx, deliver, key, e.ID, n, d.owner, d.eventType).Scan(&version)
		if err != nil {
			return err
		}
		e.Attributes = map[string]string{"n": strconv.Itoa(n), "version": strconv.FormatInt(version, 10), "owner": d.owner}
		if err := p.publish(ctx, tx, p.topics.webhooks, e); err != nil {
			return err
		}
		if p.dice.takesLong(n) { // others commit meanwhile, with larger row ids
			redisx.Pause(ctx, 40*time.Millisecond)
		}
		return nil
	})
}

// order is one order, placed: its row and the event that starts its saga.
func (p *producer) order(ctx context.Context, n int) error {
	o := order{
		ID: fmt.Sprintf("order-%06d", n), N: n, Customer: n % 200, SKU: n % 50, Quantity: 1 + n%3,
		Cents: int64(500 + 100*(n%40)),
	}
	e := orderPlaced.Event(o.ID, o)
	e.CorrelationID = o.ID // the saga's id
	return p.transaction(ctx, e.ID, p.dice.orderRollsBack(n), func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO demo.orders (id, event_id, n, customer, sku, quantity, cents) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			o.ID, e.ID, n, o.Customer, o.SKU, o.Quantity, o.Cents)
		if err != nil {
			return err
		}
		return p.publish(ctx, tx, p.topics.orders, e)
	})
}

func (p *producer) transaction(ctx context.Context, eventID string, rollBack bool, fn func(pgx.Tx) error) error {
	err := outbox.InTx(ctx, p.pool, func(tx pgx.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		if rollBack {
			return errOnPurpose
		}
		return nil
	})
	if errors.Is(err, errOnPurpose) {
		p.mu.Lock()
		p.rolledBack = append(p.rolledBack, eventID)
		p.mu.Unlock()
		return nil
	}
	if err != nil {
		return fmt.Errorf("demo: produce: %w", err)
	}
	return nil
}

// publish writes the event into the outbox, within the transaction unless the demo is broken.
func (p *producer) publish(ctx context.Context, tx pgx.Tx, topic stream.Topic, e stream.Event) error {
	if p.cfg.Break == BreakPublishOutside {
		return outbox.Publish(ctx, p.pool, topic, e)
	}
	return outbox.Publish(ctx, tx, topic, e)
}

// order is what the shop's events carry.
type order struct {
	ID       string `json:"id"`
	N        int    `json:"n"`
	Customer int    `json:"customer"`
	SKU      int    `json:"sku"`
	Quantity int    `json:"quantity"`
	Cents    int64  `json:"cents"`
}

var (
	orderPlaced    = stream.Define[order]("order.placed")
	stockReserved  = stream.Define[order]("order.stock_reserved")
	orderCharged   = stream.Define[order]("order.charged")
	paymentOverdue = stream.Define[order]("order.payment_overdue")
)
