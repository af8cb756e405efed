package demo

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
)

const flowName = "checkout"

// shop is the saga of an order: place, reserve stock, charge, confirm. A declined charge and an
// address that nobody can deliver to abort it, and what was done before is undone.
func (w *worker) shop() (*consumergroup.Consumer, *saga.Timers, error) {
	flow := saga.New(flowName, saga.Config{
		Topic: w.topics.orders, Starts: []string{orderPlaced.Type(), paymentOverdue.Type()}, Logger: slog.Default(),
	})
	release, refund := w.release, w.refund
	if w.cfg.Break == BreakUndoRefused { // whatever was done is undone, and what was refused too
		release = func(ctx context.Context, s *saga.Tx, e stream.Event, o order) error {
			return errors.Join(w.release(ctx, s, e, o), w.refund(ctx, s, e, o))
		}
		refund = func(context.Context, *saga.Tx, stream.Event, order) error { return nil }
	}
	saga.Step(flow, "reserve", orderPlaced, w.reserve, saga.StepConfig[order]{Compensate: release, Emits: []string{stockReserved.Type(), paymentOverdue.Type()}})
	saga.Step(flow, "charge", stockReserved, w.charge, saga.StepConfig[order]{Compensate: refund, Emits: []string{orderCharged.Type()}})
	saga.Step(flow, "confirm", orderCharged, w.confirm, saga.StepConfig[order]{Final: true})
	saga.Step(flow, "expire", paymentOverdue, expire, saga.StepConfig[order]{NothingToUndo: true})
	handler, err := flow.Handler(w.pool)
	if err != nil {
		return nil, nil, err
	}
	c, err := w.consumer(w.topics.orders, groupShop, handler)
	if err != nil {
		return nil, nil, err
	}
	timers, err := saga.NewTimers(w.pool, saga.TimersConfig{})
	return c, timers, err
}

// Longer than a run: a timer that fires took part in nothing, and would show.
const paymentWithin = time.Hour

func (w *worker) reserve(ctx context.Context, s *saga.Tx, _ stream.Event, o order) error {
	if _, err := s.Exec(ctx, `UPDATE demo.stock SET quantity = quantity - $2 WHERE sku = $1`, o.SKU, o.Quantity); err != nil {
		return err
	}
	if err := s.After(ctx, "payment", paymentWithin, paymentOverdue.Event(o.ID, o)); err != nil {
		return err
	}
	return s.Emit(ctx, stockReserved.Event(o.ID, o))
}

func (w *worker) release(ctx context.Context, s *saga.Tx, _ stream.Event, o order) error {
	_, err := s.Exec(ctx, `WITH o AS (UPDATE demo.orders SET state = 'cancelled' WHERE id = $3)
		UPDATE demo.stock SET quantity = quantity + $2 WHERE sku = $1`, o.SKU, o.Quantity, o.ID)
	return err
}

func (w *worker) charge(ctx context.Context, s *saga.Tx, _ stream.Event, o order) error {
	if w.dice.declined(o.N) {
		return saga.Refuse(errors.New("the card was declined"))
	}
	if err := s.Cancel(ctx, "payment"); err != nil {
		return err
	}
	if err := pay(ctx, s, o, o.Cents); err != nil {
		return err
	}
	return s.Emit(ctx, orderCharged.Event(o.ID, o))
}

func (w *worker) refund(ctx context.Context, s *saga.Tx, _ stream.Event, o order) error {
	return pay(ctx, s, o, -o.Cents)
}

// pay moves money from the customer to the till.
func pay(ctx context.Context, s *saga.Tx, o order, cents int64) error {
	_, err := s.Exec(ctx, `WITH a AS (UPDATE demo.account SET cents = cents - $2 WHERE customer = $1)
		UPDATE demo.till SET cents = cents + $2 WHERE sku = $3`, o.Customer, cents, o.SKU)
	return err
}

func (w *worker) confirm(ctx context.Context, s *saga.Tx, _ stream.Event, o order) error {
	if w.dice.undeliverable(o.N) {
		return saga.Refuse(errors.New("nobody delivers to that address"))
	}
	_, err := s.Exec(ctx, `UPDATE demo.orders SET state = 'confirmed' WHERE id = $1`, o.ID)
	return err
}

func expire(context.Context, *saga.Tx, stream.Event, order) error {
	return saga.Refuse(errors.New("nobody paid in time"))
}
