package outbox

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// query returns a statement on the tables that the test's database has.
func query(text string) string { return pgschema.Name{}.SQL(text) }

func TestOutboxesInTwoSchemasOfADatabaseDoNotSeeEachOther(t *testing.T) {
	w := newWorld(t, 2)
	testenv.MigrateIn(t, testenv.PostgresURL(t), "user") // a word of SQL's own
	other, err := In("user")
	require.NoError(t, err)

	own := w.topic
	w.topic.Namespace += "-other"
	require.NoError(t, other.Declare(t.Context(), w.pool, w.topic))
	require.NoError(t, other.Publish(t.Context(), w.pool, w.topic, events("k", "theirs1", "theirs2")...))
	require.NoError(t, other.PublishAfter(t.Context(), w.pool, w.topic, time.Millisecond, event("k", "theirs3")))
	status, err := ReadStatus(t.Context(), w.pool)
	require.NoError(t, err)
	require.Zero(t, status.Delayed)
	for _, s := range status.Shards {
		require.Zero(t, s.Unpublished)
	}
	otherTopic := w.topic
	w.topic = own
	w.publish(events("k", "ours")...)

	start(t, w.relay())
	w.eventually(1)
	start(t, w.relay(func(c *RelayConfig) { c.Schema = "user" }))
	w.topic = otherTopic
	w.eventually(3)
	require.Equal(t, []string{"theirs1", "theirs2", "theirs3"}, w.ids())
	w.topic = own
	require.Equal(t, []string{"ours"}, w.ids())

	report, err := Upkeep(t.Context(), w.pool, UpkeepConfig{Retention: time.Hour, DaysAhead: 9, Schema: "user"})
	require.NoError(t, err)
	require.GreaterOrEqual(t, report.Made, 2)
	ours, err := ReadStatus(t.Context(), w.pool)
	require.NoError(t, err)
	theirs, err := other.ReadStatus(t.Context(), w.pool)
	require.NoError(t, err)
	require.Less(t, ours.DaysAhead, theirs.DaysAhead, "their row partitions are theirs")
}

func TestTwoSchemasThatShareStreamsAreKeptApart(t *testing.T) {
	w := newWorld(t, 1)
	testenv.MigrateIn(t, testenv.PostgresURL(t), "billing")
	other, err := In("billing")
	require.NoError(t, err)
	w.publish(events("k", "ours")...)
	start(t, w.relay())
	w.eventually(1)

	require.NoError(t, other.Publish(t.Context(), w.pool, w.topic, event("k", "theirs")))
	start(t, w.relay(func(c *RelayConfig) { c.Schema = "billing" }))
	require.Eventually(t, func() bool {
		status, err := other.ReadStatus(t.Context(), w.pool)
		require.NoError(t, err)
		for _, s := range status.Shards {
			if s.Stop != nil && s.Stop.Reason == ReasonForeign {
				return true
			}
		}
		return false
	}, patience, 20*time.Millisecond)
	require.Equal(t, []string{"ours"}, w.ids())
}

func TestNamesThatAreNoSchemasAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	const bad, fault = `o"; DROP SCHEMA streamkeel; --`, "is not [a-z_][a-z0-9_]{0,62}"
	_, err := In(bad)
	require.ErrorContains(t, err, fault)
	_, err = NewRelay(w.pool, w.rdb, RelayConfig{Schema: bad})
	require.ErrorContains(t, err, fault)
	_, err = NewNotifier(w.pool, NotifierConfig{Schema: bad})
	require.ErrorContains(t, err, fault)
	_, err = Upkeep(t.Context(), w.pool, UpkeepConfig{Schema: bad})
	require.ErrorContains(t, err, fault)
	_, err = Republish(t.Context(), w.pool, w.rdb, RepublishConfig{Schema: bad})
	require.ErrorContains(t, err, fault)
}
