package consumergroup_test

import (
	"context"
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// The partitions lie in slots of several servers, each read by itself.
func TestGroupsWorkOnACluster(t *testing.T) {
	t.Parallel()
	addrs := testenv.Cluster(t).Addrs()
	for kind, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, PoolSize: 20})
			t.Cleanup(func() { require.NoError(t, rdb.Close()) })
			f := &fixture{t: t, rdb: rdb, topic: stream.Topic{Name: kind, Namespace: testenv.Namespace(t), Partitions: 6}}
			events := f.publish(600)
			var seen ledger
			var o orderly
			handle := func(ctx context.Context, e stream.Event, n int) error {
				if m, _ := consumergroup.MetadataFrom(ctx); n%20 == 3 && m.Attempt < 2 {
					return errors.New("not yet")
				}
				seen.add(e.ID)
				return nil
			}
			mux := consumergroup.NewMux()
			consumergroup.Handle(mux, orderPlaced, func(ctx context.Context, e stream.Event, v order) error { return handle(ctx, e, v.N) })
			cfg := f.config(mux)
			if ordered {
				cfg = f.ordered(o.handler(handle))
			}
			obs := &observer{}
			cfg.Observer = obs
			a, b := f.run(cfg), f.run(cfg)
			seen.eventually(t, events, 1)
			if ordered {
				o.eventually(t, len(events))
			}
			f.atRest()
			require.Equal(t, 30, obs.count(consumergroup.Retried))
			require.NoError(t, a.stop())
			require.NoError(t, b.stop())
			f.leftClean()
		})
	}
}
