package projection_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

func TestGroupFollowsTheCheckpointAndShowsTheLag(t *testing.T) {
	w := newWorld(t, 1)
	ids := w.addDirect(0, numbered("e", 1, 10)...)
	r := w.runner(func(c *projection.Config) { c.BatchSize = 4 })
	result, err := r.RunOnce(t.Context())
	require.NoError(t, err)
	require.Equal(t, projection.Result{Events: 4}, result)

	g := w.group(0)
	require.Equal(t, ids[3], g.LastDeliveredID)
	require.EqualValues(t, 6, g.Lag)
	require.Zero(t, g.Pending)
	require.Zero(t, g.Consumers, "nobody reads by the group")
	w.drain(r)
	require.EqualValues(t, 0, w.group(0).Lag)
	w.addDirect(0, "e11")
	require.EqualValues(t, 1, w.group(0).Lag)
}

func TestProjectionHoldsRetention(t *testing.T) {
	w := newWorld(t, 1)
	ids := w.addDirect(0, numbered("e", 1, 10)...)
	w.drain(w.runner(func(c *projection.Config) { c.BatchSize = 10 }))
	w.addDirect(0, "e11", "e12")
	groups, err := stream.Groups(t.Context(), w.rdb, w.topic)
	require.NoError(t, err)
	require.Equal(t, []stream.Group{{Name: projectionName, Kind: stream.GroupProjection}}, groups)

	report, err := retention.Trim(t.Context(), w.rdb, w.topic.StreamKey(0), groups, retention.Policy{Keep: 1, Exact: true}, false)
	require.NoError(t, err)
	require.GreaterOrEqual(t, report.Left, int64(2), "what was not applied stays: %+v", report)
	require.LessOrEqual(t, report.Cut.Compare(mustID(t, ids[9]).Next()), 0)
	w.drain(w.runner())
	require.Equal(t, numbered("e", 1, 12), w.ledger())
}

func TestVanishedGroupIsMadeAgainAtTheCheckpoint(t *testing.T) {
	w := newWorld(t, 1)
	r := w.runner()
	ids := w.addDirect(0, numbered("e", 1, 3)...)
	w.drain(r)
	for _, next := range []*projection.Runner{r, w.runner()} {
		require.NoError(t, w.rdb.XGroupDestroy(t.Context(), w.topic.StreamKey(0), projectionName).Err())
		ids = append(ids, w.add(0, direct(numbered("e", len(ids)+1, len(ids)+1)[0])))
		w.drain(next)
		require.Equal(t, ids[len(ids)-1], w.group(0).LastDeliveredID)
		require.EqualValues(t, 0, w.group(0).Lag)
	}
	require.Equal(t, numbered("e", 1, 5), w.ledger())
}

func TestGroupMovedByHandIsMovedBack(t *testing.T) {
	w := newWorld(t, 1)
	ids := w.addDirect(0, numbered("e", 1, 3)...)
	w.drain(w.runner())
	require.NoError(t, w.rdb.XGroupSetID(t.Context(), w.topic.StreamKey(0), projectionName, "$").Err())
	w.addDirect(0, "e4")
	require.NoError(t, w.rdb.XGroupSetID(t.Context(), w.topic.StreamKey(0), projectionName, "$").Err())
	poisoned := w.runner(func(c *projection.Config) { c.Apply = failOn("e4") })
	_, err := poisoned.RunOnce(t.Context())
	require.NoError(t, err)
	require.Equal(t, ids[2], w.group(0).LastDeliveredID, "it must not let e4 be trimmed")
}
