package outbox

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// oldPartition makes the row partition of days ago, and returns its name.
func (w *world) oldPartition(days int) (name string) {
	w.t.Helper()
	day := time.Now().UTC().AddDate(0, 0, -days)
	name = "outbox_" + day.Format("20060102")
	from, to := day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)
	_, err := w.pool.Exec(w.t.Context(), fmt.Sprintf(query(`
CREATE TABLE {schema}.%[1]s (LIKE {schema}.outbox INCLUDING ALL);
ALTER TABLE {schema}.outbox ATTACH PARTITION {schema}.%[1]s FOR VALUES FROM ('%[2]s 00:00:00+00') TO ('%[3]s 00:00:00+00')`), name, from, to))
	require.NoError(w.t, err)
	return name
}

// insertOld writes a row as it was written days ago.
func insertOld(t *testing.T, tx Tx, w *world, days int, id string) {
	t.Helper()
	_, err := tx.Exec(t.Context(), query(`
INSERT INTO {schema}.outbox (created_at, namespace, topic, key, event_id, type) VALUES (clock_timestamp() - $1 * interval '1 day', $2, $3, 'k', $4, 't')`),
		days, w.topic.Namespace, w.topic.Name, id)
	require.NoError(t, err)
}

// ageLog makes all batches look days old.
func (w *world) ageLog(days int) {
	w.t.Helper()
	_, err := w.pool.Exec(w.t.Context(), query(`UPDATE {schema}.relay_batch SET frozen_at = frozen_at - $1 * interval '1 day'`), days)
	require.NoError(w.t, err)
}

// rest has the relay write where the streams are, as it does after a minute without rows.
func (w *world) rest() {
	w.t.Helper()
	before := w.rows("relay_batch")
	r := w.relay()
	r.restAfter = time.Millisecond
	stop := start(w.t, r)
	require.Eventually(w.t, func() bool { return w.rows("relay_batch") > before }, patience, 10*time.Millisecond)
	stop()
}

func (w *world) upkeep() (UpkeepReport, error) {
	return Upkeep(w.t.Context(), w.pool, UpkeepConfig{Retention: 24 * time.Hour, DaysAhead: 7})
}

func TestOldRowsAreDroppedOnceTheyWerePublishedForLongEnough(t *testing.T) {
	w := newWorld(t, 1)
	require.NoError(t, Declare(t.Context(), w.pool, w.topic))
	old := w.oldPartition(4)
	mustKeep := func(why string) {
		t.Helper()
		report, err := w.upkeep()
		require.NoError(t, err)
		require.Empty(t, report.Dropped, why)
	}
	insertOld(t, w.pool, w, 4, "old")
	mustKeep("it is not published")
	open, err := w.pool.Begin(t.Context()) // since then
	require.NoError(t, err)
	defer open.Rollback(t.Context())
	insertOld(t, open, w, 4, "late")
	stop := start(t, w.relay())
	w.eventually(1)
	eventuallyIdle(t, w)
	stop()
	mustKeep("it was published just now")
	w.ageLog(2)
	mustKeep("somebody still writes to it")
	require.NoError(t, open.Commit(t.Context()))
	mustKeep("what came late is not published")
	stop = start(t, w.relay())
	w.eventually(2)
	eventuallyIdle(t, w)
	mustKeep("what came late was published just now")
	stop()
	w.ageLog(2)
	mustKeep("a takeover would read it to know where the stream is")
	w.rest()
	w.ageLog(2)
	report, err := w.upkeep()
	require.NoError(t, err)
	require.Equal(t, []string{old}, report.Dropped)
	require.Zero(t, w.rows("outbox"))
	require.EqualValues(t, 7, report.DaysAhead)

	start(t, w.relay())
	w.publish(event("k", "after"))
	w.eventually(3)
}

// A time that was set by hand puts a row where nobody looks for it any more.
func TestRowWrittenLateIntoAnOldPartitionIsNotDropped(t *testing.T) {
	w := newWorld(t, 1)
	require.NoError(t, Declare(t.Context(), w.pool, w.topic))
	old := w.oldPartition(4)
	insertOld(t, w.pool, w, 4, "old")
	stop := start(t, w.relay())
	w.eventually(1)
	eventuallyIdle(t, w)
	stop()
	w.rest()
	w.ageLog(2)
	open, err := w.pool.Begin(t.Context())
	require.NoError(t, err)
	insertOld(t, open, w, 4, "late")
	done := make(chan error, 1)
	go func() {
		_, err := w.upkeep()
		done <- err
	}()
	require.Eventually(t, func() bool { // the detach waits for the transaction
		var pending bool
		require.NoError(t, w.pool.QueryRow(t.Context(), query(`SELECT bool_or(inhdetachpending) FROM pg_inherits WHERE inhparent = '{schema}.outbox'::regclass`)).Scan(&pending))
		return pending
	}, patience, time.Millisecond)
	require.NoError(t, open.Commit(t.Context()))
	require.ErrorContains(t, <-done, old)
	_, err = w.upkeep()
	require.ErrorContains(t, err, "written late")
	require.Equal(t, 2, w.rows(old))
}

// The relay was away for days, and comes back beside a transaction that stays open: publishing goes on.
func TestUpkeepNeverMakesAPublishWait(t *testing.T) {
	w := newWorld(t, 1)
	ctx := t.Context()
	require.NoError(t, Declare(ctx, w.pool, w.topic))
	old := []string{w.oldPartition(6), w.oldPartition(5), w.oldPartition(4)}
	for days := range 3 {
		insertOld(t, w.pool, w, 4+days, fmt.Sprint("old", days))
	}
	stop := start(t, w.relay(func(c *RelayConfig) { c.DisableUpkeep = true }))
	w.eventually(3)
	eventuallyIdle(t, w)
	stop()
	w.rest()
	w.ageLog(3)
	// The days ahead are used up, but for today's.
	rows, err := w.pool.Query(ctx, query(`
SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = '{schema}.outbox'::regclass AND relname > 'outbox_' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD')`))
	require.NoError(t, err)
	ahead, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	for _, name := range ahead {
		_, err := w.pool.Exec(ctx, query("DROP TABLE {schema}."+name))
		require.NoError(t, err)
	}

	open, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	defer open.Rollback(ctx)
	require.NoError(t, Publish(ctx, open, w.topic, event("k", "open")))

	done := make(chan struct{})
	slowest, published := time.Duration(0), 0
	go func() {
		defer close(done)
		for end := time.Now().Add(7 * time.Second); time.Now().Before(end); published++ {
			begin := time.Now()
			if err := Publish(ctx, w.pool, w.topic, event("k", fmt.Sprint(published))); err != nil {
				t.Error(err)
				return
			}
			slowest = max(slowest, time.Since(begin))
		}
	}()
	report, err := w.upkeep()
	require.ErrorContains(t, err, "drop row partition "+old[0]+": detach", "the open transaction holds it up")
	require.Equal(t, 7, report.Made, "row partitions are made all the same")
	<-done
	t.Logf("%d published beside it, the slowest in %s", published, slowest)
	require.Positive(t, published)
	require.Less(t, slowest, 200*time.Millisecond)

	require.NoError(t, open.Rollback(ctx))
	// A cut-off detach is finished.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		report, err = w.upkeep()
		require.NoError(c, err)
	}, patience, 100*time.Millisecond)
	require.Equal(t, old, report.Dropped)
	require.Equal(t, published, w.rows("outbox"))
}

func TestLogIsTrimmedWithTheRowsAndKeepsWhatATakeoverNeeds(t *testing.T) {
	w := newWorld(t, 1)
	b := w.bank(2)
	r := w.relay()
	stop := start(t, r)
	for i := range completeEvery + 10 {
		b.changes(2)
		w.eventuallyMore(2 * (i + 1))
	}
	b.verify()
	eventuallyIdle(t, w)
	stop()
	all := w.rows("relay_batch")
	require.Greater(t, all, completeEvery)
	report, err := w.upkeep()
	require.NoError(t, err)
	require.Zero(t, report.Log)
	w.ageLog(3)
	report, err = w.upkeep()
	require.NoError(t, err)
	require.Positive(t, report.Log)
	require.LessOrEqual(t, w.rows("relay_batch"), 8+completeEvery)
	start(t, w.relay())
	b.verifyEach(2)
}

func TestDelayedEventsComeWhenTheyAreDueInTheirOrder(t *testing.T) {
	w := newWorld(t, 1)
	ctx := t.Context()
	start(t, w.relay())
	require.NoError(t, PublishAfter(ctx, w.pool, w.topic, 300*time.Millisecond, event("k", "second")))
	require.NoError(t, PublishAt(ctx, w.pool, w.topic, time.Now().Add(-time.Hour), events("k", "first", "and first")...))
	require.NoError(t, PublishAfter(ctx, w.pool, w.topic, time.Hour, event("k", "never")))
	w.publish(event("k", "now"))
	w.eventually(4)
	ids := w.ids()
	require.Equal(t, "now", ids[0])
	require.Equal(t, []string{"first", "and first", "second"}, ids[1:])
	require.Equal(t, 1, w.rows("outbox_delayed"))
}
