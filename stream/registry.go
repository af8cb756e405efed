package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// Layout is the version of keys and fields that this version of Streamkeel reads and writes.
const Layout = "1"

// Topics and groups are written down by whoever declares them, so that the daemons and
// the command line find them without scanning the keyspace:
// <namespace>:$topics, <namespace>:$groups:<topic> and <namespace>:$layout.
func topicsKey(namespace string) string        { return namespace + ":$topics" }
func groupsKey(namespace, topic string) string { return namespace + ":$groups:" + topic }
func layoutKey(namespace string) string        { return namespace + ":$layout" }

// topicRecord is how a topic stands in the registry.
type topicRecord struct {
	Partitions int    `json:"partitions"`
	Stream     string `json:"stream,omitempty"`
}

// GroupKind says how a group takes its entries.
type GroupKind string

// The kinds of groups.
const (
	// GroupWork is a consumer group whose entries any consumer takes.
	GroupWork GroupKind = "work"
	// GroupOrdered is a consumer group whose partitions are leased.
	GroupOrdered GroupKind = "ordered"
	// GroupProjection is a read model: nothing is pending, its position moves with
	// its checkpoint.
	GroupProjection GroupKind = "projection"
)

// Group is a group as the registry knows it.
type Group struct {
	Name string    `json:"-"`
	Kind GroupKind `json:"kind"`
	// MaxDeliveries is the group's limit, so that the reclaimer keeps the same one.
	MaxDeliveries int `json:"max_deliveries,omitempty"`
	// MinIdleMs is after how long without a heartbeat the group's consumers count as silent.
	MinIdleMs int64 `json:"min_idle_ms,omitempty"`
}

// Declare writes the topics into the registry. It is idempotent, and repeated on every
// heal and every minute by what uses a topic, so that a flushed Redis heals. A topic
// that was declared with another number of partitions or another stream is
// ErrPartitionMismatch; a namespace of another layout is ErrLayout.
func Declare(ctx context.Context, rdb redis.UniversalClient, topics ...Topic) error {
	var faults []error
	for _, t := range topics {
		if err := t.Validate(); err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	for _, t := range topics {
		if err := declare(ctx, rdb, t); err != nil {
			return err
		}
	}
	return nil
}

func declare(ctx context.Context, rdb redis.UniversalClient, t Topic) error {
	ns := t.NamespaceName()
	layout, err := setOnce(ctx, rdb, layoutKey(ns))
	if err != nil {
		return fmt.Errorf("stream: declare topic %s: %w", t.Name, err)
	}
	if layout != Layout {
		return fmt.Errorf("stream: namespace %s: %w %q, this version knows %q", ns, ErrLayout, layout, Layout)
	}
	want := topicRecord{Partitions: t.Count(), Stream: t.Stream}
	record, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("stream: declare topic %s: %w", t.Name, err)
	}
	pipe := rdb.Pipeline()
	pipe.HSetNX(ctx, topicsKey(ns), t.Name, record)
	stored := pipe.HGet(ctx, topicsKey(ns), t.Name)
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("stream: declare topic %s: %w", t.Name, err)
	}
	var have topicRecord
	if err := json.Unmarshal([]byte(stored.Val()), &have); err != nil {
		return fmt.Errorf("stream: topic %s in %s: %w: %w", t.Name, topicsKey(ns), ErrLayout, err)
	}
	if have != want {
		return fmt.Errorf("stream: topic %s: %w: %s has %d partitions (stream %q), this program says %d (stream %q)",
			t.Name, ErrPartitionMismatch, topicsKey(ns), have.Partitions, have.Stream, want.Partitions, want.Stream)
	}
	return nil
}

// setOnce writes the layout where there is none, and returns the one that stands.
func setOnce(ctx context.Context, rdb redis.UniversalClient, key string) (string, error) {
	pipe := rdb.Pipeline()
	pipe.SetNX(ctx, key, Layout, 0)
	stored := pipe.Get(ctx, key)
	_, err := pipe.Exec(ctx)
	return stored.Val(), err
}

// DeclareGroup writes a group of the topic into the registry. A group that is
// registered holds retention: nothing that it has not finished is trimmed, even while
// its stream lacks it.
func DeclareGroup(ctx context.Context, rdb redis.UniversalClient, t Topic, g Group) error {
	if !ValidName(g.Name) {
		return fmt.Errorf("stream: %w group name %.140q: not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", ErrInvalid, g.Name)
	}
	record, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("stream: declare group %s: %w", g.Name, err)
	}
	if err := rdb.HSet(ctx, groupsKey(t.NamespaceName(), t.Name), g.Name, record).Err(); err != nil {
		return fmt.Errorf("stream: declare group %s of topic %s: %w", g.Name, t.Name, err)
	}
	return nil
}

// RemoveGroup takes a group out of the registry, so that it holds retention no longer.
// The group itself and its retries and letters stay.
func RemoveGroup(ctx context.Context, rdb redis.UniversalClient, t Topic, group string) error {
	if err := rdb.HDel(ctx, groupsKey(t.NamespaceName(), t.Name), group).Err(); err != nil {
		return fmt.Errorf("stream: remove group %s of topic %s: %w", group, t.Name, err)
	}
	return nil
}

// Topics returns the topics that the namespace's registry holds, by name. A layout that
// this version does not know is ErrLayout; an empty registry is no error.
func Topics(ctx context.Context, rdb redis.UniversalClient, namespace string) ([]Topic, error) {
	layout, err := rdb.Get(ctx, layoutKey(namespace)).Result()
	if err != nil && !redisx.IsNil(err) {
		return nil, fmt.Errorf("stream: read registry of %s: %w", namespace, err)
	}
	if err == nil && layout != Layout {
		return nil, fmt.Errorf("stream: namespace %s: %w %q, this version knows %q", namespace, ErrLayout, layout, Layout)
	}
	records, err := rdb.HGetAll(ctx, topicsKey(namespace)).Result()
	if err != nil {
		return nil, fmt.Errorf("stream: read registry of %s: %w", namespace, err)
	}
	topics := make([]Topic, 0, len(records))
	for _, name := range slices.Sorted(maps.Keys(records)) {
		var r topicRecord
		if err := json.Unmarshal([]byte(records[name]), &r); err != nil {
			return nil, fmt.Errorf("stream: topic %s in %s: %w: %w", name, topicsKey(namespace), ErrLayout, err)
		}
		t := Topic{Name: name, Namespace: namespace, Partitions: r.Partitions, Stream: r.Stream}
		if err := t.Validate(); err != nil {
			return nil, err
		}
		topics = append(topics, t)
	}
	return topics, nil
}

// Groups returns the groups that are registered for the topic, by name.
func Groups(ctx context.Context, rdb redis.UniversalClient, t Topic) ([]Group, error) {
	records, err := rdb.HGetAll(ctx, groupsKey(t.NamespaceName(), t.Name)).Result()
	if err != nil {
		return nil, fmt.Errorf("stream: read groups of topic %s: %w", t.Name, err)
	}
	groups := make([]Group, 0, len(records))
	for _, name := range slices.Sorted(maps.Keys(records)) {
		g := Group{}
		if err := json.Unmarshal([]byte(records[name]), &g); err != nil {
			return nil, fmt.Errorf("stream: group %s of topic %s: %w: %w", name, t.Name, ErrLayout, err)
		}
		g.Name = name
		groups = append(groups, g)
	}
	return groups, nil
}

// CheckServer refuses a server that Streamkeel cannot stand on: ErrUnsupportedServer for one
// that is too old or a redis.Ring, ErrEviction for one that may evict streams (unless
// allowEviction). On a Cluster it asks the servers of the given keys.
func CheckServer(ctx context.Context, rdb redis.UniversalClient, allowEviction bool, keys ...string) error {
	if !redisx.IsCluster(rdb) || len(keys) == 0 {
		keys = []string{""}
	}
	for _, key := range keys {
		server, err := redisx.Probe(ctx, rdb, key)
		if err == nil {
			err = server.Check(allowEviction)
		}
		if err != nil {
			return fmt.Errorf("stream: check Redis: %w", err)
		}
	}
	return nil
}
