package outbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// oldPartition makes the row partition of days ago, and returns its name.
func (w *world) oldPartition(days int) (name string) {
	w.t.Helper()
	day := time.Now().UTC().AddDate(0, 0, -days)
	name = "outbox_" + day.Format("20060102")
	from, to := day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)
	_, err := w.pool.Exec(w.t.Context(), fmt.Sprintf(query(`
CREATE TABLE {schema}.%[1]s (LIKE {schema}.outbox_row INCLUDING ALL);
ALTER TABLE {schema}.outbox_row ATTACH PARTITION {schema}.%[1]s FOR VALUES FROM ('%[2]s 00:00:00+00') TO ('%[3]s 00:00:00+00')`), name, from, to))
	require.NoError(w.t, err)
	return name
}

// insertOld writes a row as it was written days ago.
func insertOld(t *testing.T, tx Tx, w *world, days int, id string) {
	t.Helper()
	_, err := tx.Exec(t.Context(), query(`
INSERT INTO {schema}.outbox_row (created_at, shard, partition, namespace, topic, key, event_id, type, source, data)
SELECT clock_timestamp() - $1 * interval '1 day', (t.first_shard + p) % {schema}.outbox_shards(), p, t.namespace, t.name, 'k', $4, 't', t.name, ''
FROM {schema}.topic t, {schema}.partition_of('k', t.partitions) p WHERE t.namespace = $2 AND t.name = $3`),
		days, w.topic.Namespace, w.topic.Name, id)
	require.NoError(t, err)
}

// ageLog makes all batches look days old.
func (w *world) ageLog(days int) {
	w.t.Helper()
	_, err := w.pool.Exec(w.t.Context(), query(`UPDATE {schema}.relay_batch SET frozen_at = frozen_at - $1 * interval '1 day'`), days)
	require.NoError(w.t, err)
}

// publishedDaysAgo has a relay publish all n rows, and makes that look days old.
func (w *world) publishedDaysAgo(n, days int) {
	w.t.Helper()
	stop := start(w.t, w.relay())
	w.eventually(n)
	eventuallyIdle(w.t, w)
	stop()
	w.rest()
	w.ageLog(days)
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

// upkeepUntil runs upkeep until done says so. Transactions of other tests on the same server, in whatever database, put
// off what it does.
func (w *world) upkeepUntil(done func(UpkeepReport, error) bool) (report UpkeepReport, err error) {
	require.Eventually(w.t, func() bool {
		report, err = w.upkeep()
		return done(report, err)
	}, patience, 10*time.Millisecond)
	return report, err
}

func TestOldRowsAreDroppedOnceTheyWerePublishedForLongEnough(t *testing.T) {
	w := newWorld(t, 1)
	require.NoError(t, Declare(t.Context(), w.pool, w.topic))
	old := w.oldPartition(4)
	mustKeep := func(why string) {
		t.Helper()
		report, err := w.upkeep()
		require.NoError(t, err)
		require.NotContains(t, report.Dropped, old, why) // a day that ends meanwhile may go
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
	report, err := w.upkeepUntil(func(r UpkeepReport, _ error) bool { return slices.Contains(r.Dropped, old) })
	require.NoError(t, err)
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
	old := w.oldPartition(5)
	insertOld(t, w.pool, w, 5, "old")
	w.publishedDaysAgo(1, 2)
	open, err := w.pool.Begin(t.Context())
	require.NoError(t, err)
	insertOld(t, open, w, 5, "late")
	done := make(chan error, 1)
	go func() {
		for {
			if _, err := w.upkeep(); err != nil {
				done <- err
				return
			}
		}
	}()
	require.Eventually(t, func() bool { // the detach waits for the transaction
		var pending bool
		require.NoError(t, w.pool.QueryRow(t.Context(), query(`SELECT bool_or(inhdetachpending) FROM pg_inherits WHERE inhparent = '{schema}.outbox_row'::regclass`)).Scan(&pending))
		return pending
	}, patience, time.Millisecond)
	require.NoError(t, open.Commit(t.Context()))
	require.ErrorContains(t, <-done, old)
	other := w.oldPartition(4)
	_, err = w.upkeepUntil(func(UpkeepReport, error) (gone bool) {
		require.NoError(t, w.pool.QueryRow(t.Context(), "SELECT to_regclass($1) IS NULL", query("{schema}."+other)).Scan(&gone))
		return gone
	})
	require.ErrorContains(t, err, "written late", "it keeps no other from going")
	require.Equal(t, 2, w.rows(old))
}

// Transactions that ended late may let a younger row partition go first, and their like cut its detach off.
func TestDetachThatWasCutOffHoldsUpNoOther(t *testing.T) {
	w := newWorld(t, 1)
	old := []string{w.oldPartition(6), w.oldPartition(5)}
	require.NoError(t, Declare(t.Context(), w.pool, w.topic))
	insertOld(t, w.pool, w, 6, "old")
	w.publishedDaysAgo(1, 3)
	open, err := w.pool.Begin(t.Context())
	require.NoError(t, err)
	defer open.Rollback(t.Context())
	require.NoError(t, Publish(t.Context(), open, w.topic, event("k", "open")))
	err = Schema{}.database(w.pool).runFor(t.Context(), time.Second, "ALTER TABLE {schema}.outbox_row DETACH PARTITION {schema}."+old[1]+" CONCURRENTLY")
	require.Equal(t, "57014", pgerr.Code(err), "%v", err)
	require.NoError(t, open.Rollback(t.Context()))
	var gone []string
	w.upkeepUntil(func(report UpkeepReport, _ error) bool {
		gone = append(gone, report.Dropped...)
		return len(gone) == 2
	})
	require.ElementsMatch(t, old, gone)
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
	w.publishedDaysAgo(3, 3)
	// The days ahead are used up, but for today's.
	rows, err := w.pool.Query(ctx, query(`
SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = '{schema}.outbox_row'::regclass AND relname > 'outbox_' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD')`))
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

	publisher, err := w.pool.Acquire(ctx)
	require.NoError(t, err)
	defer publisher.Release()
	end, ended := make(chan struct{}), make(chan struct{})
	slowest, published := time.Duration(0), 0
	go func() {
		defer close(ended)
		for ; ; published++ {
			select {
			case <-end:
				return
			default:
			}
			begin := time.Now()
			if !assert.NoError(t, Publish(ctx, publisher, w.topic, event("k", fmt.Sprint(published)))) {
				return
			}
			slowest = max(slowest, time.Since(begin))
		}
	}()
	waited, watched := 0, make(chan struct{}) // how often the publisher was seen to wait for a lock
	go func() {
		defer close(watched)
		pid := publisher.Conn().PgConn().PID()
		for {
			select {
			case <-ended:
				return
			case <-time.After(5 * time.Millisecond):
			}
			var waits bool
			err := w.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted AND locktype = 'relation')`, pid).Scan(&waits)
			if assert.NoError(t, err) && waits {
				waited++
			}
		}
	}()
	stopPublishing := sync.OnceFunc(func() {
		close(end)
		<-watched
	})
	defer stopPublishing()
	made := 0
	_, err = w.upkeepUntil(func(report UpkeepReport, err error) bool {
		made += report.Made
		return errors.Is(err, errDetach)
	})
	require.ErrorIs(t, err, errDetach, "the open transaction holds it up")
	require.Equal(t, 1, strings.Count(err.Error(), "drop row partition"), "the others are not tried: %v", err)
	require.Equal(t, 7, made, "row partitions are made all the same")
	stopPublishing()
	t.Logf("%d published beside it, the slowest in %s", published, slowest)
	require.Positive(t, published)
	require.Zero(t, waited)
	if testenv.IsLong() { // on a machine that does nothing else
		require.Less(t, slowest, 200*time.Millisecond)
	}

	require.NoError(t, open.Rollback(ctx))
	// A cut-off detach is finished.
	var gone []string
	_, err = w.upkeepUntil(func(report UpkeepReport, err error) bool {
		gone = append(gone, report.Dropped...)
		return err == nil && len(gone) == len(old)
	})
	require.NoError(t, err)
	require.ElementsMatch(t, old, gone)
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
