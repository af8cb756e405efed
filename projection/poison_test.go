package projection_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

var errPoison = errors.New("poison")

// failOn returns an Apply that fails for one event.
func failOn(id string) func(context.Context, pgx.Tx, []stream.Event) error {
	return func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
		if err := record(ctx, tx, events); err != nil {
			return err
		}
		if slices.ContainsFunc(events, func(e stream.Event) bool { return e.ID == id }) {
			return errPoison
		}
		return nil
	}
}

func TestPoisonHaltsTheProjectionAndIsNamed(t *testing.T) {
	w := newWorld(t, 2)
	w.addDirect(0, "a1", "a2", "a3", "a4")
	w.addDirect(1, numbered("b", 1, 4)...)
	seen := &moments{}
	r := w.runner(func(c *projection.Config) { c.Apply, c.MaxAttempts, c.Observer = failOn("a3"), 4, seen })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := r.Run(ctx)
	var event *projection.EventError
	require.ErrorAs(t, err, &event)
	require.ErrorIs(t, err, errPoison)
	require.Equal(t, "a3", event.Event)
	require.Equal(t, "order.placed", event.Type)
	require.Equal(t, w.topic.StreamKey(0), event.Stream)
	require.Equal(t, 4, event.Attempts)
	require.Equal(t, 4, seen.count(projection.Failed))
	require.Equal(t, 1, seen.count(projection.Halted))
	require.ElementsMatch(t, []string{"a1", "a2", "b1", "b2", "b3", "b4"}, w.ledger(), "what stands before it was applied, and other partitions; nothing was skipped")

	w.drain(w.runner())
	require.ElementsMatch(t, append(numbered("a", 1, 4), numbered("b", 1, 4)...), w.ledger())
}

func TestEventThatFailsForAWhileHoldsBackItsPartitionOnly(t *testing.T) {
	w := newWorld(t, 2)
	w.addDirect(0, "a1", "a2")
	var mended atomic.Bool
	r := w.runner(func(c *projection.Config) {
		c.MaxAttempts, c.MinBackoff, c.MaxBackoff = 1000, 20*time.Millisecond, 20*time.Millisecond
		c.Apply = func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
			if mended.Load() {
				return record(ctx, tx, events)
			}
			return failOn("a1")(ctx, tx, events)
		}
	})
	stop := start(t, r)
	w.addDirect(1, numbered("b", 1, 3)...)
	w.eventually(3)
	require.Equal(t, numbered("b", 1, 3), w.ledger())
	mended.Store(true)
	w.eventually(5)
	require.NoError(t, stop())
	require.Equal(t, append(numbered("b", 1, 3), "a1", "a2"), w.ledger())
}

// A batch may fail by what its events have in common, as ON CONFLICT DO UPDATE does that
// meets one row twice.
func TestBatchThatFailsAsAWholeIsAppliedSingly(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, numbered("e", 1, 10)...)
	r := w.runner(func(c *projection.Config) {
		c.Apply = func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
			if len(events) > 1 {
				return errors.New("too many")
			}
			return record(ctx, tx, events)
		}
	})
	w.drain(r)
	require.Equal(t, numbered("e", 1, 10), w.ledger())
}

func TestErrorsThatApplySwallowsAreFailures(t *testing.T) {
	t.Parallel()
	for name, apply := range map[string]func(context.Context, pgx.Tx, []stream.Event) error{
		"failed statement": func(ctx context.Context, tx pgx.Tx, _ []stream.Event) error {
			_, _ = tx.Exec(ctx, `SELECT 1/0`) // the transaction can only be rolled back
			return nil
		},
		"panic": func(context.Context, pgx.Tx, []stream.Event) error { panic("boom") },
		"own rollback": func(ctx context.Context, tx pgx.Tx, _ []stream.Event) error {
			return tx.Rollback(ctx)
		},
		"deferred constraint": func(ctx context.Context, tx pgx.Tx, _ []stream.Event) error {
			_, err := tx.Exec(ctx, `INSERT INTO late VALUES (1), (1)`)
			return err
		},
		"too slow": func(ctx context.Context, tx pgx.Tx, _ []stream.Event) error {
			_, err := tx.Exec(ctx, `SELECT pg_sleep(10)`)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			_, err := w.pool.Exec(t.Context(), `CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)`)
			require.NoError(t, err)
			w.addDirect(0, "e1")
			r := w.runner(func(c *projection.Config) { c.Apply, c.MaxAttempts, c.ApplyTimeout = apply, 2, 500*time.Millisecond })
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var event *projection.EventError
			require.ErrorAs(t, r.Run(ctx), &event)
			require.Equal(t, 2, event.Attempts)
			require.True(t, w.checkpoint(0).ID.IsZero(), "nothing was passed")
		})
	}
}

func TestMalformedEntryHaltsByDefault(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, "e1")
	w.foreign(0)
	w.addDirect(0, "e2")
	_, err := drain(t.Context(), w.runner())
	var event *projection.EventError
	require.ErrorAs(t, err, &event)
	require.ErrorIs(t, err, stream.ErrMalformed)
	require.Equal(t, []string{"e1"}, w.ledger())
}

// foreign writes an entry that is no event.
func (w *world) foreign(p int) {
	w.t.Helper()
	require.NoError(w.t, w.rdb.Do(w.t.Context(), "xadd", w.topic.StreamKey(p), "*", "temperature", "21", "id", "a\x00b\xff").Err())
}

func TestMalformedEntriesMayBeSkippedOrKept(t *testing.T) {
	t.Parallel()
	keep := func(ctx context.Context, tx pgx.Tx, entry stream.Entry, cause error) error {
		if !errors.Is(cause, stream.ErrMalformed) {
			return cause
		}
		for name, value := range entry.Fields() {
			_, err := tx.Exec(ctx, `INSERT INTO ledger (event, key) VALUES ('kept', $1)`, name+"="+value)
			return err
		}
		return nil
	}
	for name, test := range map[string]struct {
		decide func(context.Context, pgx.Tx, stream.Entry, error) error
		want   []string
	}{
		"skipped": {projection.Skip, []string{"e1", "e2", "e3"}},
		"kept":    {keep, []string{"kept", "e1", "e2", "kept", "kept", "e3"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.foreign(0)
			w.addDirect(0, "e1", "e2")
			w.foreign(0)
			w.foreign(0)
			w.addDirect(0, "e3")
			seen := &moments{}
			decide := func(c *projection.Config) { c.OnMalformed, c.Observer = test.decide, seen }
			require.Equal(t, projection.Result{Events: 3, Malformed: 3}, w.drain(w.runner(decide)))
			w.foreign(0) // the checkpoint at a foreign entry is known again
			w.drain(w.runner(decide))
			w.drain(w.runner(decide))
			require.Equal(t, 4, seen.count(projection.Malformed))
			require.Equal(t, test.want, w.ledger()[:len(test.want)])
		})
	}
}

func TestOnMalformedThatFailsHalts(t *testing.T) {
	w := newWorld(t, 1)
	w.foreign(0)
	r := w.runner(func(c *projection.Config) {
		c.OnMalformed = func(_ context.Context, _ pgx.Tx, _ stream.Entry, cause error) error { return cause }
	})
	_, err := drain(t.Context(), r)
	var event *projection.EventError
	require.ErrorAs(t, err, &event)
}

func TestAdoptedEntriesAreApplied(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, "e1")
	w.foreign(0)
	w.foreign(0)
	w.topic.Adopt = stream.Adopt(func(fields map[string]string) (stream.Event, error) {
		return stream.NewEvent("measured", "", "text/plain", []byte(fields["temperature"])), nil
	})
	require.Equal(t, projection.Result{Events: 3}, w.drain(w.runner()))
	w.foreign(0)
	require.Equal(t, projection.Result{Events: 1}, w.drain(w.runner()), "the checkpoint at a foreign entry is known again")
	entries, err := w.rdb.XRange(t.Context(), w.topic.StreamKey(0), "-", "+").Result()
	require.NoError(t, err)
	want := []string{"e1"}
	for _, en := range entries[1:] {
		want = append(want, w.topic.StreamKey(0)+"/"+en.ID)
	}
	require.Equal(t, want, w.ledger())
}
