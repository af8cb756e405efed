package retention_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

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
	require.Equal(t, retention.HeldByPolicy, report.Held)
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

// add adds entries with the given IDs.
func (f *fixture) add(t testing.TB, ids ...string) {
	t.Helper()
	pipe := f.rdb.Pipeline()
	for _, id := range ids {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: f.key, ID: id, Values: []string{"id", id, "type", "t", "data", "0123456789"}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
}

func TestLengthAndBytesLetYoungerEntriesGoButNotUnfinishedOnes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	now := time.Now().UnixMilli()
	var ids []string
	for i := range 1600 {
		ids = append(ids, strconv.FormatInt(now, 10)+"-"+strconv.Itoa(i))
	}
	f.add(t, ids...)
	f.group(t, "a", 1610)
	report := f.trim(t, retention.Policy{}, false)
	require.LessOrEqual(t, report.Trimmed, int64(10), "young entries stay without a limit")
	report = f.trim(t, retention.Policy{MaxLen: 100}, false)
	require.EqualValues(t, 100, report.Left)
	require.Equal(t, ids[1500], f.first(t))
	require.Equal(t, retention.HeldByPolicy, report.Held)

	bytes := f.rdb.MemoryUsage(t.Context(), f.key).Val()
	report = f.trim(t, retention.Policy{MaxBytes: bytes / 2}, false)
	require.InDelta(t, 50, report.Left, 25)
	require.NoError(t, f.rdb.XGroupCreate(t.Context(), f.key, "late", ids[1595]).Err())
	report = f.trim(t, retention.Policy{MaxLen: 1}, false, "a", "late")
	require.EqualValues(t, 4, report.Left, "what late has not read stays")
	require.Equal(t, "late", report.Group)
}

func TestAgeBeatsAckCountsAndListsWhatItDiscards(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	young := strconv.FormatInt(time.Now().UnixMilli(), 10) + "-1"
	f.add(t, young)
	f.group(t, "done", 11)
	f.group(t, "holds", 10, 2, 5)
	f.group(t, "behind", 7)
	policy := retention.Policy{AgeBeatsAck: 2 * time.Hour}
	dry := f.trim(t, policy, true, "absent")
	require.EqualValues(t, 11, dry.Left)
	require.Equal(t, retention.Loss{Unread: 10}, dry.Losses["absent"], "a group that is registered has read nothing")
	report := f.trim(t, policy, false)
	require.EqualValues(t, 10, report.Trimmed)
	require.Equal(t, young, f.first(t))
	require.Equal(t, map[string]retention.Loss{"holds": {Pending: 2}, "behind": {Unread: 3}}, report.Losses)
	var listed []string
	for _, id := range report.Discarded {
		listed = append(listed, id.String())
	}
	require.Equal(t, []string{id(2), id(5), id(8), id(9), id(10)}, listed)
	require.EqualValues(t, 2, f.rdb.XPending(t.Context(), f.key, "holds").Val().Count, "what was pending stays in the list, for a letter")
	report = f.trim(t, policy, false)
	require.Empty(t, report.Losses, "nothing is counted twice")
}

func TestManyDiscardedEntriesAreAllCounted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var ids []string
	for i := range 2500 {
		ids = append(ids, id(i+11))
	}
	f.add(t, ids...)
	f.group(t, "behind", 10)
	report := f.trim(t, retention.Policy{AgeBeatsAck: 2 * time.Hour}, false)
	require.EqualValues(t, 2510, report.Trimmed)
	require.Equal(t, map[string]retention.Loss{"behind": {Unread: 2500}}, report.Losses)
	require.Len(t, report.Discarded, 1000, "the list is bounded")
}

func TestStaleGroupsAreReported(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.group(t, "done", 10)
	f.group(t, "holds", 10, 4)
	f.group(t, "behind", 7)
	report := f.trim(t, retention.Policy{}, true)
	require.Len(t, report.Stale, 2)
	require.Equal(t, id(4), report.Stale["holds"].String())
	require.Equal(t, id(8), report.Stale["behind"].String())
	report = f.trim(t, retention.Policy{StaleAfter: 100 * 365 * 24 * time.Hour}, true)
	require.Empty(t, report.Stale)
}

// memory is an Archive in memory that may refuse.
type memory struct {
	entries []stream.Entry
	refuse  error
}

func (m *memory) Append(_ context.Context, _ string, entries []stream.Entry) error {
	if m.refuse != nil {
		return m.refuse
	}
	for _, en := range entries {
		if n := len(m.entries); n == 0 || en.ID.Compare(m.entries[n-1].ID) > 0 {
			m.entries = append(m.entries, en)
		}
	}
	return nil
}

func (m *memory) Read(_ context.Context, _ string, after stream.ID, limit int) ([]stream.Entry, error) {
	var found []stream.Entry
	for _, en := range m.entries {
		if en.ID.Compare(after) > 0 && len(found) < limit {
			found = append(found, en)
		}
	}
	return found, nil
}

func TestNothingIsTrimmedThatTheArchiveDoesNotHave(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var ids []string
	for i := range 1300 {
		ids = append(ids, id(i+11))
	}
	f.add(t, ids...)
	f.group(t, "a", 1310, 1250)
	archive := &memory{refuse: errors.New("disk full")}
	_, err := retention.Trim(t.Context(), f.rdb, f.key, nil, retention.Policy{Archive: archive}, false)
	require.ErrorContains(t, err, "disk full")
	require.EqualValues(t, 1310, f.rdb.XLen(t.Context(), f.key).Val())
	archive.refuse = nil
	report := f.trim(t, retention.Policy{Archive: archive}, false)
	require.EqualValues(t, 1249, report.Archived)
	require.EqualValues(t, 1249, report.Trimmed)
	require.Equal(t, id(1250), f.first(t))
	require.Len(t, archive.entries, 1249)
	require.Equal(t, retention.HeldByGroup, report.Held)
	report = f.trim(t, retention.Policy{Archive: archive}, false)
	require.Zero(t, report.Archived)
}

func TestPoliciesAreValidatedWhole(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, retention.Policy{AgeBeatsAck: time.Minute}.Validate(), "AgeBeatsAck 1m0s must be at least Keep 1h0m0s")
	err := retention.Policy{Keep: -1, MaxLen: -1, MaxBytes: -1, AgeBeatsAck: -1, StaleAfter: -1}.Validate()
	for _, part := range []string{"Keep -1ns", "MaxLen -1", "MaxBytes -1", "StaleAfter -1ns", "AgeBeatsAck -1ns"} {
		require.ErrorContains(t, err, part)
	}
	require.ErrorContains(t, retention.Policy{KeepAll: true, MaxLen: 1}.Validate(), "KeepAll excludes")
}
