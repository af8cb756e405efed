package stream_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// The vectors stand in docs/wire.md for other languages.
func TestPartitionHashKeepsItsVectors(t *testing.T) {
	for _, v := range []struct {
		key        string
		of8, of100 int
	}{{"a", 2, 10}, {"order-1", 1, 65}, {"Codertocat/Hello-World#0", 3, 55}, {"ключ", 2, 22}} {
		require.Equal(t, v.of8, stream.Topic{Name: "t", Partitions: 8}.PartitionOf(v.key), v.key)
		require.Equal(t, v.of100, stream.Topic{Name: "t", Partitions: 100}.PartitionOf(v.key), v.key)
	}
	require.Equal(t, 0, stream.Topic{Name: "t"}.PartitionOf("anything"))
}

func TestBadTopicsAreRefusedWithEveryFault(t *testing.T) {
	for name, topic := range map[string]stream.Topic{
		"empty": {}, "brace": {Name: "a}b{c"}, "star": {Name: "*"}, "newline": {Name: "a\nb"}, "long": {Name: strings.Repeat("a", 300)},
		"leading dot": {Name: ".a"}, "namespace": {Name: "a", Namespace: "x:y"}, "path": {Name: "../a"},
		"negative": {Name: "a", Partitions: -1}, "many": {Name: "a", Partitions: 5000},
		"stream of many": {Name: "a", Partitions: 2, Stream: "s"}, "empty tag": {Name: "a", Stream: "a{}b"}, "two tags": {Name: "a", Stream: "{a}{b}"},
		"open brace": {Name: "a", Stream: "a{b"},
	} {
		require.ErrorIs(t, topic.Validate(), stream.ErrInvalid, name)
	}
	err := stream.Topic{Name: "*", Namespace: "x y", Partitions: -1}.Validate()
	for _, part := range []string{"name", "namespace", "partitions -1"} {
		require.ErrorContains(t, err, part)
	}
	require.NoError(t, stream.Topic{Name: "orders", Stream: "legacy{orders}x"}.Validate())
}

func TestKeysBesideAStreamShareItsSlot(t *testing.T) {
	for streamKey, want := range map[string]string{
		"sk:orders.3": "{sk:orders.3}:retry:billing",
		"a{tag}b":     "a{tag}b:retry:billing",
	} {
		require.Equal(t, want, stream.KeyRetry.Key(streamKey, "billing"))
	}
	require.Equal(t, "{sk:orders.3}:relay", stream.KeyRelay.Key("sk:orders.3", ""))
	rdb := clusterClient(t)
	for _, key := range []string{"sk:orders.3", "a{tag}b"} {
		slot := rdb.ClusterKeySlot(t.Context(), key).Val()
		for _, what := range []stream.What{stream.KeyRetry, stream.KeyDue, stream.KeyDead, stream.KeyGroup, stream.KeyMembers, stream.KeyRelay} {
			require.Equal(t, slot, rdb.ClusterKeySlot(t.Context(), what.Key(key, "g")).Val())
		}
	}
}

func TestFirstDeclarationFixesATopic(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := topicOf(t, 8)
	require.NoError(t, stream.Declare(t.Context(), rdb, topic))
	require.NoError(t, stream.Declare(t.Context(), rdb, topic), "declaring again changes nothing")
	other := topic
	other.Partitions = 4
	require.ErrorIs(t, stream.Declare(t.Context(), rdb, other), stream.ErrPartitionMismatch)
	p, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	_, err = p.Publish(t.Context(), other, orderPlaced.Event("k", order{}))
	require.ErrorIs(t, err, stream.ErrPartitionMismatch)
	require.Zero(t, rdb.Exists(t.Context(), topic.StreamKeys()...).Val(), "nothing was written")

	require.NoError(t, stream.DeclareGroup(t.Context(), rdb, topic, stream.Group{Name: "billing", Kind: stream.GroupWork, MinIdleMs: 7}))
	topics, err := stream.Topics(t.Context(), rdb, topic.Namespace)
	require.NoError(t, err)
	require.Equal(t, []stream.Topic{topic}, topics)
	groups, err := stream.Groups(t.Context(), rdb, topic)
	require.NoError(t, err)
	require.Equal(t, []stream.Group{{Name: "billing", Kind: stream.GroupWork, MinIdleMs: 7}}, groups)
	require.NoError(t, stream.RemoveGroup(t.Context(), rdb, topic, "billing"))
	groups, err = stream.Groups(t.Context(), rdb, topic)
	require.NoError(t, err)
	require.Empty(t, groups)
	require.ErrorIs(t, stream.DeclareGroup(t.Context(), rdb, topic, stream.Group{Name: "a b"}), stream.ErrInvalid)
}

func TestAnotherLayoutIsRefused(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := topicOf(t, 1)
	require.NoError(t, rdb.Set(t.Context(), topic.Namespace+":$layout", "99", 0).Err())
	require.ErrorIs(t, stream.Declare(t.Context(), rdb, topic), stream.ErrLayout)
	_, err := stream.Topics(t.Context(), rdb, topic.Namespace)
	require.ErrorIs(t, err, stream.ErrLayout)
}
