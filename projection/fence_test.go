package projection_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

func TestTwoRunnersApplyEachEventOnce(t *testing.T) {
	w := newWorld(t, 3)
	const events = 600
	small := func(c *projection.Config) { c.BatchSize = 7 }
	var stops []func() error
	for range 3 {
		stops = append(stops, start(t, w.runner(small)))
	}
	for i := range events {
		w.add(i%3, direct(numbered("e", i, i)[0]))
	}
	w.eventually(events)
	for _, stop := range stops {
		require.NoError(t, stop())
	}
	require.ElementsMatch(t, numbered("e", 0, events-1), w.ledger())
	inOrder(t, w, 3)
}

// inOrder requires that each partition's events were applied in order.
func inOrder(t *testing.T, w *world, partitions int) {
	t.Helper()
	place := map[string]int{}
	for n, event := range w.ledger() {
		place[event] = n
	}
	for p := range partitions {
		entries, err := w.rdb.XRange(t.Context(), w.topic.StreamKey(p), "-", "+").Result()
		require.NoError(t, err)
		last := -1
		for _, en := range entries {
			n, applied := place[en.Values["id"].(string)]
			require.True(t, applied, "%s of partition %d", en.Values["id"], p)
			require.Greater(t, n, last, "order of partition %d", p)
			last = n
		}
	}
}

// A runner that hangs in the middle of a transaction and wakes up later changes nothing.
func TestPausedRunnerThatWakesUpChangesNothing(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, numbered("e", 1, 5)...)
	reached, wake := make(chan struct{}), make(chan struct{})
	var once sync.Once
	paused := w.runner(func(c *projection.Config) {
		c.ApplyTimeout = 500 * time.Millisecond // the server ends its idle session, and frees the lock
		c.Apply = func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
			hang := false
			once.Do(func() { hang = true })
			if err := record(ctx, tx, events); err != nil {
				return err
			}
			if hang {
				close(reached)
				<-wake
			}
			return nil
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := drain(context.Background(), paused)
		done <- err
	}()
	<-reached
	stop := start(t, w.runner())
	w.eventually(5)
	w.addDirect(0, "e6")
	w.eventually(6)
	close(wake)
	<-done // whatever it says
	w.addDirect(0, "e7")
	w.eventually(7)
	w.drain(w.runner())
	require.NoError(t, stop())
	require.Equal(t, numbered("e", 1, 7), w.ledger())
}

// A runner that stands by takes over where the active one falls silent.
func TestStandByTakesOver(t *testing.T) {
	w := newWorld(t, 1)
	first, second := start(t, w.runner()), start(t, w.runner())
	n := 0
	more := func(count int) {
		for range count {
			n++
			w.addDirect(0, numbered("e", n, n)...)
		}
		w.eventually(n)
	}
	more(20)
	stops := []func() error{first, second}
	rand.Shuffle(2, func(i, j int) { stops[i], stops[j] = stops[j], stops[i] })
	require.NoError(t, stops[0]())
	more(20)
	require.NoError(t, stops[1]())
	require.Equal(t, numbered("e", 1, n), w.ledger())
}
