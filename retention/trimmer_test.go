package retention_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const old = 1_700_000_000_000 // ms: long ago

type fixture struct {
	rdb *redis.Client
	key string
}

// newFixture has a stream of 10 entries from long ago, with IDs old-1 to old-10.
func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{testenv.Redis(t), testenv.Namespace(t) + ":orders.0"}
	for i := range 10 {
		require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.key, ID: id(i + 1), Values: []string{"a", "b"}}).Err())
	}
	return f
}

func id(n int) string { return strconv.Itoa(old) + "-" + strconv.Itoa(n) }

// group makes a group that was given the first `delivered` entries, and acked all but `pending`.
func (f *fixture) group(t testing.TB, name string, delivered int64, pending ...int) {
	t.Helper()
	require.NoError(t, f.rdb.XGroupCreate(t.Context(), f.key, name, "0").Err())
	if delivered == 0 {
		return
	}
	streams, err := f.rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: name, Consumer: "c", Streams: []string{f.key, ">"}, Count: delivered, Block: -1}).Result()
	require.NoError(t, err)
	for _, m := range streams[0].Messages {
		keep := false
		for _, p := range pending {
			keep = keep || m.ID == id(p)
		}
		if !keep {
			require.NoError(t, f.rdb.XAck(t.Context(), f.key, name, m.ID).Err())
		}
	}
}

func (f *fixture) trim(t testing.TB, policy retention.Policy, dry bool, groups ...string) retention.Report {
	t.Helper()
	var registered []stream.Group
	for _, g := range groups {
		registered = append(registered, stream.Group{Name: g})
	}
	report, err := retention.Trim(t.Context(), f.rdb, f.key, registered, policy, dry)
	require.NoError(t, err)
	return report
}

func (f *fixture) first(t testing.TB) string {
	t.Helper()
	m, err := f.rdb.XRangeN(t.Context(), f.key, "-", "+", 1).Result()
	require.NoError(t, err)
	if len(m) == 0 {
		return ""
	}
	return m[0].ID
}

var exact = retention.Policy{Exact: true}

func TestFloorIsTheLeastThatAnyGroupHasNotFinished(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		make  func(f *fixture)
		first string
		group string
	}{
		"all read, nothing pending": {func(f *fixture) { f.group(t, "a", 10) }, "", "a"},
		"half read":                 {func(f *fixture) { f.group(t, "a", 10); f.group(t, "b", 5) }, id(6), "b"},
		"one pending":               {func(f *fixture) { f.group(t, "a", 10, 3, 7); f.group(t, "b", 5) }, id(3), "a"},
		"nothing read":              {func(f *fixture) { f.group(t, "a", 10); f.group(t, "b", 0) }, id(1), "b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			c.make(f)
			dry := f.trim(t, exact, true)
			require.Zero(t, dry.Trimmed)
			require.Equal(t, id(1), f.first(t), "a dry run changes nothing")
			report := f.trim(t, exact, false)
			require.Equal(t, c.first, f.first(t))
			require.Equal(t, retention.HeldByGroup, report.Held)
			require.Equal(t, c.group, report.Group)
			require.Equal(t, dry.Cut, report.Cut)
			require.EqualValues(t, 10-report.Left, report.Trimmed)
		})
	}
}

func TestNothingIsTrimmedWhereSomebodyIsMissing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.Equal(t, retention.HeldNoGroup, f.trim(t, exact, false).Held)
	f.group(t, "a", 10)
	report := f.trim(t, exact, false, "a", "late")
	require.Equal(t, retention.HeldMissing, report.Held)
	require.Equal(t, "late", report.Group)
	require.Equal(t, retention.HeldByPolicy, f.trim(t, retention.Policy{KeepAll: true}, false).Held)
	require.EqualValues(t, 10, f.rdb.XLen(t.Context(), f.key).Val())
	f.key += "x"
	require.Equal(t, retention.HeldNoStream, f.trim(t, exact, false).Held)
}

func TestYoungEntriesStay(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: f.key, Values: []string{"a", "b"}}).Err())
	f.group(t, "a", 11)
	report := f.trim(t, exact, false, "a")
	require.EqualValues(t, 10, report.Trimmed)
	require.EqualValues(t, 1, report.Left)
	require.Equal(t, retention.HeldByAge, report.Held)
	report = f.trim(t, retention.Policy{Exact: true, Keep: time.Nanosecond}, false, "a")
	require.LessOrEqual(t, report.Left, int64(1))
}

func TestApproximateTrimmingGoesByWholeNodes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	pipe := f.rdb.Pipeline()
	for i := range 500 {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: f.key, ID: id(i + 11), Values: []string{"a", "b"}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	f.group(t, "a", 510, 450)
	report := f.trim(t, retention.Policy{}, false, "a")
	require.Positive(t, report.Trimmed)
	require.LessOrEqual(t, report.Trimmed, int64(449))
	require.Contains(t, f.rdb.XRange(t.Context(), f.key, id(450), id(450)).Val()[0].ID, "-450")
}

func TestWrongTypeAndBadPolicyAreErrors(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.rdb.Set(t.Context(), f.key+"x", "", 0).Err())
	_, err := retention.Trim(t.Context(), f.rdb, f.key+"x", nil, exact, false)
	require.ErrorContains(t, err, "WRONGTYPE")
	_, err = retention.Trim(t.Context(), f.rdb, f.key, nil, retention.Policy{Keep: -1}, false)
	require.ErrorContains(t, err, "Keep -1ns is negative")
}
