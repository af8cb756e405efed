package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/outbox"
)

// What a batch costs beside a transaction that stays open: batches of a row each, one every batchEvery.
const (
	openFor    = 10 * time.Minute
	batchEvery = 5 * time.Millisecond
	openParts  = 10 // the last of the run is compared with the first
)

// besideOpen returns how long the median batch takes from its commit until it is published, in the last part of a run of so many.
func besideOpen(parts int) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		return withDatabase(ctx, func(pool *pgxpool.Pool) (v float64, err error) {
			topic := e.topic()
			if err := outbox.Declare(ctx, pool, topic); err != nil {
				return 0, err
			}
			open, err := pool.Begin(ctx)
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, open.Rollback(ctx)) }()
			if err := outbox.Publish(ctx, open, topic, e.events[0]); err != nil {
				return 0, err
			}
			seen := make(batches, 100)
			relay, err := relayOn(pool, e, seen)
			if err != nil {
				return 0, err
			}
			stop := running(ctx, relay.Run)
			defer func() { err = errors.Join(err, stop()) }()
			n := max(1, int(float64(openFor/batchEvery)*e.scale)/openParts) // a part
			var took []float64
			began := time.Now()
			for i := range parts * n {
				if err := sleep(ctx, time.Until(began.Add(time.Duration(i)*batchEvery))); err != nil {
					return 0, err
				}
				if err := outbox.Publish(ctx, pool, topic, e.events[0]); err != nil {
					return 0, err
				}
				committed := time.Now()
				if _, err := seen.await(ctx, 1); err != nil {
					return 0, err
				}
				if i >= (parts-1)*n {
					took = append(took, float64(time.Since(committed).Microseconds())/1000)
				}
			}
			return median(took), nil
		})
	}
}
