package consumergroup_test

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// faults are what happens to a Redis while handlers run, and how it ends.
var faults = map[string]struct {
	strike, heal func(t *testing.T, f *fixture)
	lost         bool // it loses what was in Redis
}{
	"connections killed": {strike: func(t *testing.T, f *fixture) {
		for range 20 {
			_ = f.rdb.Do(t.Context(), "client", "kill", "type", "normal", "skipme", "no").Err() // its own too
			require.False(t, wait(t, 20*time.Millisecond))
		}
	}},
	"FLUSHALL": {strike: func(t *testing.T, f *fixture) { require.NoError(t, f.rdb.FlushAll(t.Context()).Err()) }, lost: true},
	"stream deleted": {strike: func(t *testing.T, f *fixture) {
		require.NoError(t, f.rdb.Del(t.Context(), f.topic.StreamKey(0)).Err())
	}, lost: true},
	"group destroyed": {strike: func(t *testing.T, f *fixture) {
		require.NoError(t, f.rdb.XGroupDestroy(t.Context(), f.topic.StreamKey(0), "billing").Err())
	}, lost: true},
	"OOM": {
		strike: func(t *testing.T, f *fixture) {
			require.NoError(t, f.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err())
		},
		heal: func(t *testing.T, f *fixture) {
			require.NoError(t, f.rdb.ConfigSet(t.Context(), "maxmemory", "0").Err())
		},
	},
	"READONLY": {
		strike: func(t *testing.T, f *fixture) {
			require.NoError(t, f.rdb.Do(t.Context(), "replicaof", "127.0.0.1", "1").Err())
		},
		heal: func(t *testing.T, f *fixture) {
			require.NoError(t, f.rdb.Do(t.Context(), "replicaof", "no", "one").Err())
		},
	},
	"paused": {
		strike: func(t *testing.T, f *fixture) {
			require.NoError(t, f.rdb.Do(t.Context(), "client", "pause", "3000", "all").Err()) // longer than MinIdle
		},
	},
}

func TestConsumerGoesOnByItselfAfterFaultsAndNothingIsCounted(t *testing.T) {
	t.Parallel()
	for name, fault := range faults {
		for kind, ordered := range map[string]bool{"unordered": false, "ordered": true} {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
				f := &fixture{t: t, rdb: testenv.RedisClient(t, server.URL()), topic: stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}}
				var seen ledger
				var counted atomic.Bool
				struck := make(chan struct{})
				var inHand atomic.Int32
				cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
					if m, _ := consumergroup.MetadataFrom(ctx); m.Attempt != 1 {
						counted.Store(true)
					}
					seen.add(e.ID)
					inHand.Add(1)
					select { // in hand while the fault strikes
					case <-struck:
					case <-ctx.Done():
					}
					return nil
				}))
				cfg.Ordered, cfg.ShutdownTimeout = ordered, time.Second
				f.run(cfg)
				before := f.publish(40)
				require.Eventually(t, func() bool { return inHand.Load() >= 4 }, patience, time.Millisecond)
				require.Eventually(t, func() bool { return f.rdb.HExists(t.Context(), f.keys(0).Hash, "checkpoint").Val() }, patience, time.Millisecond)
				fault.strike(t, f)
				close(struck)
				require.False(t, wait(t, time.Second))
				if fault.heal != nil {
					fault.heal(t, f)
				}
				after := f.publish(40)
				seen.eventually(t, after, 1)
				if !fault.lost {
					seen.eventually(t, before, 1)
				}
				f.atRest()
				for _, e := range before {
					require.True(t, fault.lost || seen.count(e.ID) == 1, "the fault took an event from a live consumer")
				}
				require.False(t, counted.Load(), "the fault counted as an attempt")
				require.Zero(t, f.rdb.XLen(t.Context(), f.keys(0).Dead).Val(), "the fault filled the letters")
			})
		}
	}
}

func TestEntryTrimmedWhileItsHandlerRunsIsStillSettled(t *testing.T) {
	t.Parallel()
	for kind, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1)
			events := make([]stream.Event, 3)
			for i := range events {
				events[i] = orderPlaced.Event(strconv.Itoa(i), order{N: i})
			}
			release := make(chan struct{})
			var inHand atomic.Int32
			var runs ledger
			cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
				run := runs.add(e.ID)
				if run == 1 {
					inHand.Add(1)
					select {
					case <-release:
					case <-ctx.Done():
					}
				}
				switch {
				case e.ID == events[0].ID, e.ID == events[1].ID && run > 1:
					return nil
				case e.ID == events[1].ID:
					return errors.New("once more")
				}
				return consumergroup.Permanent(errors.New("never"))
			}))
			cfg.Ordered = ordered
			obs := &observer{}
			cfg.Observer = obs
			f.run(cfg)
			p, err := stream.NewPublisher(f.rdb, stream.PublisherConfig{})
			require.NoError(t, err)
			_, err = p.PublishBatch(t.Context(), f.topic, events)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return inHand.Load() == 3 }, patience, time.Millisecond)
			require.NoError(t, f.rdb.XTrimMaxLen(t.Context(), f.topic.StreamKey(0), 0).Err())
			close(release)
			runs.eventually(t, events[:2], 1)
			runs.eventually(t, events[1:2], 2)
			f.atRest()
			require.Equal(t, 1, runs.count(events[0].ID), "its success acks quietly")
			q, err := dlq.Open(f.rdb, f.topic, "billing")
			require.NoError(t, err)
			page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
			require.NoError(t, err)
			require.Len(t, page.Letters, 1)
			require.Equal(t, dlq.ReasonPermanent, page.Letters[0].Reason)
			require.Equal(t, events[2].ID, page.Letters[0].Entry.Event.ID, "with its body, though it was gone from the stream")
			require.Equal(t, 1, obs.count(consumergroup.Retried))
		})
	}
}
