package inbox_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// fill writes n rows of an age.
func (w *world) fill(prefix string, n int, age time.Duration) {
	w.t.Helper()
	_, err := w.pool.Exec(w.t.Context(), `INSERT INTO streamkeel.inbox
		SELECT 'billing', 'shop', $1::text || i, now() - $3 * interval '1 microsecond' FROM generate_series(1, $2::int) AS i`, prefix, n, age.Microseconds())
	require.NoError(w.t, err)
}

func (w *world) cleaner(edit ...func(*inbox.CleanerConfig)) *inbox.Cleaner {
	w.t.Helper()
	config := inbox.CleanerConfig{Every: time.Millisecond}
	for _, e := range edit {
		e(&config)
	}
	c, err := inbox.NewCleaner(w.pool, config)
	require.NoError(w.t, err)
	return c
}

const day = 24 * time.Hour

func TestCleanerDeletesOldRowsAndNoOther(t *testing.T) {
	w := newWorld(t)
	w.fill("old", 2500, 30*day+time.Minute) // more than two batches
	w.fill("young", 100, 30*day-time.Hour)
	n, err := w.cleaner().Clean(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2500, n)
	require.Equal(t, 100, w.rows())
	require.Equal(t, 100, w.count(`SELECT count(*) FROM streamkeel.inbox WHERE event_id LIKE 'young%'`))
}

func TestCleanersShareTheWork(t *testing.T) {
	w := newWorld(t)
	w.fill("old", 20_000, 40*day)
	var wg sync.WaitGroup
	deleted, errs := make([]int64, 3), make([]error, 3)
	for i := range deleted {
		wg.Go(func() { deleted[i], errs[i] = w.cleaner().Clean(t.Context()) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.EqualValues(t, 20_000, deleted[0]+deleted[1]+deleted[2])
	require.Zero(t, w.rows())
}

func TestCleanerSparesWhatATransactionHasInHand(t *testing.T) {
	w := newWorld(t)
	w.fill("old", 10, 40*day)
	tx, err := w.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT FROM streamkeel.inbox WHERE event_id = 'old3' FOR UPDATE`)
	require.NoError(t, err)
	n, err := w.cleaner().Clean(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 9, n, "it waits for nobody")
	require.NoError(t, tx.Rollback(t.Context()))
	n, err = w.cleaner().Clean(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}

func TestCleanerRunsUntilItsContextEnds(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.cleaner().Run(ctx) }()
	for range 2 { // it comes again
		w.fill("old", 10, 40*day)
		require.Eventually(t, func() bool { return w.rows() == 0 }, patience, 5*time.Millisecond)
	}
	cancel()
	require.NoError(t, <-ended)
}

func TestCleanerEndsWhereTheTableIsMissing(t *testing.T) {
	w := newWorld(t)
	_, err := w.pool.Exec(t.Context(), `DROP TABLE streamkeel.inbox`)
	require.NoError(t, err)
	require.ErrorContains(t, w.cleaner().Run(t.Context()), "inbox: delete old rows")
}

func TestCleanerRefusesToForgetWhatMayComeAgain(t *testing.T) {
	w := newWorld(t)
	for _, config := range []inbox.CleanerConfig{
		{},
		{Retention: 18 * day},
		{OutboxRetention: 7 * day},
		{Retention: 3 * day, OutboxRetention: day, RetryWithin: day, RedriveWithin: day},
	} {
		_, err := inbox.NewCleaner(w.pool, config)
		require.NoError(t, err)
	}
	for want, config := range map[string]inbox.CleanerConfig{
		"Retention 168h0m0s must be at least 432h0m0s: OutboxRetention 24h0m0s + RetryWithin 72h0m0s + RedriveWithin 336h0m0s": {Retention: 7 * day},
		"Retention 720h0m0s must be at least 1128h0m0s": {RedriveWithin: 43 * day},
		"RetryWithin -1s is negative":                   {RetryWithin: -time.Second},
		"Every -1s is negative":                         {Every: -time.Second},
	} {
		_, err := inbox.NewCleaner(w.pool, config)
		require.ErrorContains(t, err, want)
	}
	_, err := inbox.NewCleaner(nil, inbox.CleanerConfig{Every: -1})
	require.ErrorContains(t, err, "pool is nil")
	require.ErrorContains(t, err, "Every -1ns is negative")
}

// What was deleted is used again, by ids in the order of time as by others: with a vacuum between, as autovacuum runs one, the table
// does not grow. The long form measures what docs/inbox.md says.
func TestTableThatIsCleanedStopsGrowing(t *testing.T) {
	w := newWorld(t)
	half, rounds := 10_000, 8
	if testenv.IsLong() {
		half = 500_000
	}
	for name, id := range map[string]string{"ordered": "streamkeel.new_event_id()", "random": "gen_random_uuid()::text"} {
		exec := func(sql string, args ...any) {
			_, err := w.pool.Exec(t.Context(), sql, args...)
			require.NoError(t, err)
		}
		exec(`TRUNCATE streamkeel.inbox`)
		fill := func(age time.Duration) {
			exec(`INSERT INTO streamkeel.inbox SELECT 'billing', 'shop', `+id+`, now() - $2 * interval '1 microsecond' + i * interval '1 millisecond'
				FROM generate_series(1, $1::int) AS i`, half, age.Microseconds())
		}
		size := func() (mib [3]float64) {
			for i, relation := range []string{"inbox", "inbox_pkey", "inbox_handled_at"} {
				mib[i] = float64(w.count(`SELECT pg_relation_size($1)`, "streamkeel."+relation)) / (1 << 20)
			}
			return mib
		}
		fill(100 * day)
		fill(99 * day)
		first := size()
		t.Logf("%s ids, %d rows: %.1f MiB of table, primary key and time", name, 2*half, first)
		for round := range rounds {
			oldest := time.Duration(100-round) * day
			started := time.Now()
			n, err := w.cleaner(func(c *inbox.CleanerConfig) { c.Retention = oldest - day/2 }).Clean(t.Context())
			require.NoError(t, err)
			require.EqualValues(t, half, n)
			t.Logf("a batch took %s", (time.Since(started) / time.Duration(half/1000)).Round(10*time.Microsecond))
			started = time.Now()
			exec(`VACUUM streamkeel.inbox`)
			t.Logf("the vacuum took %s", time.Since(started).Round(time.Millisecond))
			fill(oldest - 2*day)
			t.Logf("%.1f MiB", size())
		}
		last := size() // where nothing is used again it is five times as large
		require.LessOrEqual(t, last[0]+last[1]+last[2], 2.5*(first[0]+first[1]+first[2]))
	}
}
