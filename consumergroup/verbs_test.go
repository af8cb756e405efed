package consumergroup_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/stream"
)

func TestVerbsDecideHowADeliveryEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(3)
	var mu sync.Mutex
	seen := map[string][]consumergroup.Metadata{}
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		m, _ := consumergroup.MetadataFrom(ctx)
		mu.Lock()
		defer mu.Unlock()
		seen[e.ID] = append(seen[e.ID], m)
		runs := len(seen[e.ID])
		switch {
		case e.ID == events[0].ID && runs <= 8: // more often than MaxAttempts and MaxDeliveries
			return consumergroup.Release(time.Millisecond)
		case e.ID == events[1].ID && runs == 1:
			return consumergroup.Retry(time.Millisecond)
		case e.ID == events[2].ID:
			return consumergroup.DeadLetter("looks like fraud")
		}
		return nil
	}))
	cfg.MaxDeliveries = 5
	obs := &observer{}
	cfg.Observer = obs
	f.run(cfg)
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen[events[0].ID]) == 9 && len(seen[events[1].ID]) == 2 && len(seen[events[2].ID]) == 1
	}, patience, 5*time.Millisecond)
	f.atRest()
	for _, m := range seen[events[0].ID] {
		require.Equal(t, 1, m.Attempt, "a release counts no attempt")
		require.Equal(t, 1, m.Deliveries, "a release counts no delivery")
	}
	require.Equal(t, 2, seen[events[1].ID][1].Attempt)
	require.Equal(t, 8, obs.count(consumergroup.Released))
	require.Equal(t, 1, obs.count(consumergroup.Retried))
	q, err := dlq.Open(f.rdb, f.topic, "billing")
	require.NoError(t, err)
	page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
	require.NoError(t, err)
	require.Len(t, page.Letters, 1)
	require.Equal(t, dlq.ReasonManual, page.Letters[0].Reason)
	require.Equal(t, "looks like fraud", page.Letters[0].Error)
}

func TestExtendLetsAHandlerGoOnAndNobodyTakesItsEntry(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	events := f.publish(1)
	var seen ledger
	done := make(chan error, 10)
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		seen.add(e.ID)
		if err := consumergroup.Extend(ctx, time.Minute); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			done <- context.Cause(ctx)
		case <-time.After(3 * time.Second): // HandlerTimeout and MinIdle are long over
			done <- nil
		}
		return nil
	}))
	cfg.HandlerTimeout = 300 * time.Millisecond
	f.run(cfg)
	f.run(cfg)
	require.NoError(t, <-done)
	f.atRest()
	require.Equal(t, 1, seen.count(events[0].ID))
}

func TestExtendTellsWhyItCannot(t *testing.T) {
	t.Parallel()
	require.ErrorIs(t, consumergroup.Extend(t.Context(), time.Second), consumergroup.ErrInvalid)
	f := newFixture(t, 1)
	f.publish(1)
	type outcome struct {
		negative, late, ctxErr error
		deadline               bool
	}
	got := make(chan outcome, 100)
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error {
		var o outcome
		_, o.deadline = ctx.Deadline()
		o.negative = consumergroup.Extend(ctx, -time.Second)
		<-ctx.Done()
		o.late, o.ctxErr = consumergroup.Extend(ctx, time.Second), ctx.Err()
		got <- o
		return ctx.Err()
	}))
	cfg.HandlerTimeout = 20 * time.Millisecond
	f.run(cfg)
	o := <-got
	require.ErrorIs(t, o.negative, consumergroup.ErrInvalid)
	require.ErrorIs(t, o.late, consumergroup.ErrHandlerTimeout)
	require.ErrorIs(t, o.ctxErr, context.DeadlineExceeded)
	require.True(t, o.deadline)
}

// What ends a handler's context is made when somebody first asks, and it tells the same then.
func TestContextTellsHowItEndedHoweverLateItIsAsked(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.publish(1)
	type outcome struct{ err, cause, derived error }
	late, kept := make(chan outcome, 100), make(chan context.Context, 100)
	cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error {
		switch m, _ := consumergroup.MetadataFrom(ctx); m.Attempt {
		case 1:
			deadline, _ := ctx.Deadline()
			time.Sleep(time.Until(deadline))
			child, cancel := context.WithCancel(ctx)
			defer cancel()
			late <- outcome{ctx.Err(), context.Cause(ctx), context.Cause(child)}
			return ctx.Err()
		default:
			kept <- ctx
			return nil
		}
	}))
	cfg.HandlerTimeout = 50 * time.Millisecond
	f.run(cfg)
	o := <-late
	require.ErrorIs(t, o.err, context.DeadlineExceeded)
	require.ErrorIs(t, o.cause, consumergroup.ErrHandlerTimeout)
	require.ErrorIs(t, o.derived, consumergroup.ErrHandlerTimeout)
	ctx := <-kept
	f.atRest()
	require.ErrorIs(t, ctx.Err(), context.Canceled, "its handler has returned")
	require.Error(t, consumergroup.Extend(ctx, time.Minute))
	m, ok := consumergroup.MetadataFrom(ctx)
	require.True(t, ok)
	require.Equal(t, 2, m.Attempt)
}

type refusing struct{ err error }

func (r refusing) Validate(string, []byte) error { return r.err }

func TestMiddlewareWrapsFromTheOutside(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.publish(1)
	var log bytes.Buffer // written by one handler at a time, read after the end
	var order []string
	mark := func(name string) consumergroup.Middleware {
		return func(next consumergroup.Handler) consumergroup.Handler {
			return consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
				order = append(order, name)
				return next.Handle(ctx, e)
			})
		}
	}
	cfg := f.config(consumergroup.HandlerFunc(func(context.Context, stream.Event) error { panic("boom") }))
	cfg.Concurrency, cfg.Retry.MaxAttempts = 1, 1
	cfg.Middleware = []consumergroup.Middleware{
		mark("outer"), mark("inner"), consumergroup.Logging(slog.New(slog.NewTextHandler(&log, nil))), consumergroup.Recovery(),
	}
	c := f.run(cfg)
	require.Eventually(t, func() bool { return f.rdb.XLen(t.Context(), f.keys(0).Dead).Val() == 1 }, patience, 5*time.Millisecond)
	require.NoError(t, c.stop())
	require.Equal(t, []string{"outer", "inner"}, order)
	require.Contains(t, log.String(), "handler panicked: boom", "a recovery inside lets the log see the panic")
	require.Contains(t, log.String(), "attempt=1")
}

func TestTimeoutAndValidationMiddleware(t *testing.T) {
	t.Parallel()
	run := func(m consumergroup.Middleware, h consumergroup.HandlerFunc) error {
		return m(h).Handle(t.Context(), stream.NewEvent("order.placed", "k", stream.ContentTypeJSON, []byte(`{}`)))
	}
	err := run(consumergroup.Timeout(time.Millisecond), func(ctx context.Context, _ stream.Event) error {
		<-ctx.Done()
		return context.Cause(ctx)
	})
	require.ErrorIs(t, err, consumergroup.ErrHandlerTimeout)

	never := func(context.Context, stream.Event) error { t.Error("the handler ran"); return nil }
	err = run(consumergroup.Validation(refusing{errors.New("no id")}), never)
	require.ErrorIs(t, err, stream.ErrInvalid)
	require.Equal(t, consumergroup.PermanentError, consumergroup.Classify(err))
	err = run(consumergroup.Validation(refusing{stream.ErrUndecodable}), never)
	require.ErrorIs(t, err, stream.ErrUndecodable)
	ran := errors.New("ran")
	require.ErrorIs(t, run(consumergroup.Validation(refusing{}), func(context.Context, stream.Event) error { return ran }), ran)

	_, err = consumergroup.New(nil, consumergroup.Config{Middleware: []consumergroup.Middleware{nil}})
	require.ErrorContains(t, err, "Middleware[0] is nil")
}
