package telemetry_test

import (
	"bufio"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/saga"
	"github.com/streamkeel/streamkeel/stream"
	"github.com/streamkeel/streamkeel/telemetry"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// lines returns a collector's samples, one a line, sorted as Prometheus writes them.
func lines(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	var text strings.Builder
	for _, family := range families {
		_, err := expfmt.MetricFamilyToText(&text, family)
		require.NoError(t, err)
	}
	return text.String()
}

func TestConsumersAreCountedByHowDeliveriesEnd(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{Types: []string{"order.placed"}})
	see := func(o consumergroup.Observation) {
		o.Topic, o.Group = "orders", "billing"
		m.Consumer().Observe(t.Context(), o)
	}
	placed := stream.Event{Type: "order.placed", Time: time.Now().Add(-2 * time.Second)}
	see(consumergroup.Observation{Moment: consumergroup.Delivered, Event: placed})
	see(consumergroup.Observation{Moment: consumergroup.Handled, Event: placed, Took: 20 * time.Millisecond})
	see(consumergroup.Observation{Moment: consumergroup.Retried, Event: placed, Took: time.Millisecond})
	see(consumergroup.Observation{Moment: consumergroup.DeadLettered, Event: placed, Took: time.Millisecond, Reason: dlq.ReasonAttempts})
	see(consumergroup.Observation{Moment: consumergroup.Skipped, Event: stream.Event{Type: "made.up.by.somebody"}})
	see(consumergroup.Observation{Moment: consumergroup.Reclaimed})
	see(consumergroup.Observation{Moment: consumergroup.Trimmed, Reason: dlq.ReasonTrimmed})
	got := lines(t, m)
	for _, line := range []string{
		`streamkeel_deliveries_total{group="billing",topic="orders",type="order.placed"} 1`,
		`streamkeel_settled_total{group="billing",outcome="handled",topic="orders",type="order.placed"} 1`,
		`streamkeel_settled_total{group="billing",outcome="retried",topic="orders",type="order.placed"} 1`,
		`streamkeel_settled_total{group="billing",outcome="dead_lettered",topic="orders",type="order.placed"} 1`,
		`streamkeel_settled_total{group="billing",outcome="skipped",topic="orders",type="other"} 1`,
		`streamkeel_letters_total{group="billing",reason="attempts",topic="orders"} 1`,
		`streamkeel_letters_total{group="billing",reason="trimmed",topic="orders"} 1`,
		`streamkeel_reclaimed_total{group="billing",topic="orders"} 1`,
		`streamkeel_handler_seconds_count{group="billing",outcome="handled",topic="orders",type="order.placed"} 1`,
		`streamkeel_event_age_seconds_bucket{group="billing",topic="orders",le="1"} 0`,
		`streamkeel_event_age_seconds_bucket{group="billing",topic="orders",le="30"} 1`,
	} {
		require.Contains(t, got, line)
	}
}

func TestTypesOfStrangersMakeNoTimeSeries(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{})
	for range 1000 {
		m.Consumer().Observe(t.Context(), consumergroup.Observation{Moment: consumergroup.Delivered, Topic: "orders", Group: "g", Event: stream.NewEvent(time.Now().String(), "", "", nil)})
	}
	require.Equal(t, 1, testutil.CollectAndCount(m, "streamkeel_deliveries_total"))
}

func TestRelaysAreCountedAndTellOnlyOfTheirShards(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{})
	for _, o := range []outbox.Observation{
		{Moment: outbox.TakenOver, Shard: 3},
		{Moment: outbox.TakenOver, Shard: 4},
		{Moment: outbox.Published, Shard: 3, Rows: 7, Bytes: 700, Took: time.Millisecond},
		{Moment: outbox.Rewound, Shard: 3, Rows: 2},
		{Moment: outbox.Refused, Shard: 3},
		{Moment: outbox.Waiting, Shard: -1, Err: errors.New("away")},
		{Moment: outbox.Backlog, Shard: 3, Rows: 9, Age: 4 * time.Second},
		{Moment: outbox.Backlog, Shard: 4, Rows: 1},
		{Moment: outbox.Stopped, Shard: 3},
		{Moment: outbox.Upkept, Shard: -1, DaysAhead: 6},
		{Moment: outbox.Deferred, Shard: -1},
		{Moment: outbox.Mismatch, Shard: -1},
		{Moment: outbox.GivenUp, Shard: 4},
	} {
		m.Relay().Observe(t.Context(), o)
	}
	got := lines(t, m)
	for _, line := range []string{
		"streamkeel_outbox_published_rows_total 7", "streamkeel_outbox_published_bytes_total 700", "streamkeel_outbox_batches_total 1",
		"streamkeel_outbox_rewound_rows_total 2", "streamkeel_outbox_refused_rows_total 1", "streamkeel_outbox_waits_total 1",
		`streamkeel_outbox_backlog_rows{shard="3"} 9`, `streamkeel_outbox_oldest_seconds{shard="3"} 4`, `streamkeel_outbox_shard_stopped{shard="3"} 1`,
		`streamkeel_outbox_shard_owned{shard="3"} 1`, "streamkeel_outbox_days_ahead 6", "streamkeel_outbox_deferred_total 1", "streamkeel_outbox_mismatches_total 1",
	} {
		require.Contains(t, got, line)
	}
	require.NotContains(t, got, `shard="4"`, "another relay tells of it")
	m.Relay().Observe(t.Context(), outbox.Observation{Moment: outbox.Resumed, Shard: 3})
	require.Contains(t, lines(t, m), `streamkeel_outbox_shard_stopped{shard="3"} 0`)
}

func TestProjectionsAreCounted(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{})
	for _, o := range []projection.Observation{
		{Moment: projection.Applied, Events: 5, Skipped: 2, Took: time.Millisecond},
		{Moment: projection.Failed},
		{Moment: projection.Malformed},
		{Moment: projection.Rewound},
		{Moment: projection.Waiting},
		{Moment: projection.Halted},
	} {
		o.Projection = "totals"
		m.Projection().Observe(t.Context(), o)
	}
	got := lines(t, m)
	for _, line := range []string{
		`streamkeel_projection_events_total{projection="totals",result="applied"} 5`, `streamkeel_projection_events_total{projection="totals",result="skipped"} 2`,
		`streamkeel_projection_failures_total{projection="totals"} 1`, `streamkeel_projection_malformed_total{projection="totals"} 1`,
		`streamkeel_projection_rewinds_total{projection="totals"} 1`, `streamkeel_projection_waits_total{projection="totals"} 1`, `streamkeel_projection_halted{projection="totals"} 1`,
	} {
		require.Contains(t, got, line)
	}
	m.Projection().Observe(t.Context(), projection.Observation{Moment: projection.Applied, Projection: "totals"})
	require.Contains(t, lines(t, m), `streamkeel_projection_halted{projection="totals"} 0`)
}

func TestSagasAreCounted(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{})
	for _, moment := range []saga.Moment{
		saga.StepDone, saga.StepRefused, saga.StepSkipped, saga.StepRepeated, saga.StepCompensated, saga.NothingToUndo, saga.CompensationFailed,
		saga.CompensationGiven, saga.SagaAborted, saga.SagaCompleted, saga.SagaCompensated, saga.SagaParked, saga.TimerFired,
	} {
		m.Saga().Observe(t.Context(), saga.Observation{Moment: moment, Flow: "checkout", Step: "charge"})
	}
	got := lines(t, m)
	for _, outcome := range []string{"done", "refused", "skipped", "repeated", "undone", "nothing_to_undo", "undo_failed", "undo_skipped"} {
		require.Contains(t, got, `streamkeel_saga_steps_total{flow="checkout",outcome="`+outcome+`",step="charge"} 1`)
	}
	for _, outcome := range []string{"completed", "compensated", "parked"} {
		require.Contains(t, got, `streamkeel_saga_ended_total{flow="checkout",outcome="`+outcome+`"} 1`)
	}
	require.Contains(t, got, `streamkeel_saga_timers_total{flow="checkout"} 1`)
	require.Equal(t, 12, strings.Count(got, `flow="checkout"`))
}

// backlog is a topic with a group on the shared Redis.
func backlog(t *testing.T, rdb redis.UniversalClient, ns string) stream.Topic {
	t.Helper()
	topic := stream.Topic{Name: "orders", Namespace: ns, Partitions: 2}
	require.NoError(t, stream.Declare(t.Context(), rdb, topic))
	require.NoError(t, stream.DeclareGroup(t.Context(), rdb, topic, stream.Group{Name: "billing", Kind: stream.GroupWork}))
	for p := range 2 {
		_, err := pel.Ensure(t.Context(), rdb, pel.KeysOf(topic.StreamKey(p), "billing"), "0")
		require.NoError(t, err)
		for range 3 {
			require.NoError(t, rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: topic.StreamKey(p), Values: []string{"id", "1", "type", "t"}}).Err())
		}
	}
	return topic
}

func TestBacklogTellsWhatIsLeftToDoAndNeverMakesUpALag(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	topic := backlog(t, rdb, ns)
	require.NoError(t, rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "billing", Consumer: "c", Streams: []string{topic.StreamKey(0), ">"}, Count: 2}).Err())
	b, err := telemetry.NewBacklog(rdb, telemetry.BacklogConfig{Namespaces: []string{ns}, Every: time.Nanosecond})
	require.NoError(t, err)
	got := lines(t, b)
	labels := `{group="billing",namespace="` + ns + `",topic="orders"} `
	for _, line := range []string{
		"streamkeel_group_lag" + labels + "4", "streamkeel_group_pending" + labels + "2", "streamkeel_group_retry_entries" + labels + "0", "streamkeel_group_letters" + labels + "0",
		"streamkeel_group_missing_partitions" + labels + "0", `streamkeel_topic_entries{namespace="` + ns + `",topic="orders"} 6`, `streamkeel_backlog_up{namespace="` + ns + `"} 1`,
	} {
		require.Contains(t, got, line)
	}
	require.NoError(t, rdb.Do(t.Context(), "xgroup", "destroy", topic.StreamKey(1), "billing").Err())
	got = lines(t, b)
	require.NotContains(t, got, "streamkeel_group_lag", "a lag that is not known is absent")
	require.Contains(t, got, "streamkeel_group_missing_partitions"+labels+"1")
}

func TestBacklogOfABrokenTopicDoesNotHideOthers(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	backlog(t, rdb, ns)
	broken := stream.Topic{Name: "broken", Namespace: ns}
	require.NoError(t, stream.Declare(t.Context(), rdb, broken))
	require.NoError(t, stream.DeclareGroup(t.Context(), rdb, broken, stream.Group{Name: "billing", Kind: stream.GroupWork}))
	require.NoError(t, rdb.Set(t.Context(), broken.StreamKey(0), "no stream", 0).Err())
	b, err := telemetry.NewBacklog(rdb, telemetry.BacklogConfig{Namespaces: []string{ns}})
	require.NoError(t, err)
	got := lines(t, b)
	require.Contains(t, got, `streamkeel_group_lag{group="billing",namespace="`+ns+`",topic="orders"} 6`)
	require.NotContains(t, got, `topic="broken"`)
	require.Contains(t, got, `streamkeel_backlog_up{namespace="`+ns+`"} 0`)
}

func TestScrapesDuringAnOutageSayThatNothingIsKnown(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), ContextTimeoutEnabled: true})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	backlog(t, rdb, "sk")
	require.NoError(t, server.Pause())
	defer func() { require.NoError(t, server.Resume()) }()
	b, err := telemetry.NewBacklog(rdb, telemetry.BacklogConfig{Timeout: 200 * time.Millisecond})
	require.NoError(t, err)
	began := time.Now()
	got := lines(t, b)
	require.Less(t, time.Since(began), 10*time.Second, "a look is bounded")
	require.Contains(t, got, `streamkeel_backlog_up{namespace="sk"} 0`)
	require.NotContains(t, got, "streamkeel_group_")
}

func TestWrongBacklogConfigIsToldAtOnce(t *testing.T) {
	t.Parallel()
	_, err := telemetry.NewBacklog(nil, telemetry.BacklogConfig{Namespaces: []string{"a:b"}, Every: -1})
	for _, part := range []string{"Redis client is nil", `"a:b"`, "Every"} {
		require.ErrorContains(t, err, part)
	}
}

func TestEveryMetricIsDocumentedWithItsLabels(t *testing.T) {
	t.Parallel()
	b, err := telemetry.NewBacklog(testenv.Redis(t), telemetry.BacklogConfig{})
	require.NoError(t, err)
	descs := make(chan *prometheus.Desc, 100)
	telemetry.NewMetrics(telemetry.MetricsConfig{}).Describe(descs)
	b.Describe(descs)
	close(descs)
	defined := map[string]string{}
	pattern := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	for d := range descs {
		match := pattern.FindStringSubmatch(d.String())
		require.NotNil(t, match, d.String())
		defined[match[1]] = strings.ReplaceAll(match[2], ",", ", ")
	}
	documented := map[string]string{}
	file, err := os.Open("../docs/operations.md")
	require.NoError(t, err)
	defer file.Close()
	row := regexp.MustCompile("^\\| `(streamkeel_[a-z_]+)` \\|([^|]*)\\|")
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if match := row.FindStringSubmatch(lines.Text()); match != nil {
			documented[match[1]] = strings.TrimSpace(match[2])
		}
	}
	require.NoError(t, lines.Err())
	require.Equal(t, defined, documented)
}
