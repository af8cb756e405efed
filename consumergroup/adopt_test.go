package consumergroup_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/stream"
)

func TestAdoptedEntryIsOneEventThroughRetryDeathAndRedrive(t *testing.T) {
	t.Parallel()
	for kind, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1)
			key := f.topic.StreamKey(0)
			f.topic.Adopt = stream.Adopt(func(fields map[string]string) (stream.Event, error) {
				if fields["page"] == "" {
					panic("no page")
				}
				return stream.NewEvent("page.clicked", fields["user"], "text/plain", []byte(fields["page"])), nil
			})
			add := func(fields ...string) string {
				return f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: fields}).Val()
			}
			// The first is in the hands of a consumer that is dead.
			stranded := key + "/" + add("user", "ann", "page", "stranded")
			require.NoError(t, f.rdb.XGroupCreate(t.Context(), key, "billing", "0").Err())
			require.NoError(t, f.rdb.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "billing", Consumer: "dead", Streams: []string{key, ">"}}).Err())
			failing := key + "/" + add("user", "bob", "page", "failing")
			add("user", "eve")

			var mu sync.Mutex
			seen := map[string][]string{}
			cfg := f.config(consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
				m, _ := consumergroup.MetadataFrom(ctx)
				mu.Lock()
				defer mu.Unlock()
				seen[string(e.Data)] = append(seen[string(e.Data)], e.Source+" "+e.ID)
				require.Equal(t, e.ID, dlq.Origin(m.Stream, m.ID))
				switch {
				case string(e.Data) == "stranded" || len(seen["failing"]) > 2:
					return nil
				case m.Attempt > 1:
					return consumergroup.Permanent(errors.New("never"))
				}
				return errors.New("once more")
			}))
			cfg.Ordered = ordered
			f.run(cfg)
			q, err := dlq.Open(f.rdb, f.topic, "billing")
			require.NoError(t, err)
			letters := map[dlq.Reason]dlq.Letter{}
			require.Eventually(t, func() bool {
				page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
				for _, l := range page.Letters {
					letters[l.Reason] = l
				}
				return err == nil && len(letters) == 2
			}, patience, 10*time.Millisecond)
			refused, died := letters[dlq.ReasonUndecodable], letters[dlq.ReasonPermanent]
			require.Equal(t, []string{"user", "eve"}, refused.Fields())
			require.Zero(t, refused.Attempts)
			require.Contains(t, refused.Error, "panicked: no page")
			require.Equal(t, []string{"user", "bob", "page", "failing"}, died.Fields(), "raw")

			n, err := q.Redrive(t.Context(), dlq.Ref{ID: died.ID}, dlq.Ref{ID: refused.ID})
			require.NoError(t, err)
			require.Equal(t, 2, n)
			require.Eventually(t, func() bool {
				page, err := q.List(t.Context(), dlq.Filter{}, "", 0)
				return err == nil && len(page.Letters) == 1 && page.Letters[0].Redrives == 1
			}, patience, 10*time.Millisecond)
			f.atRest()
			mu.Lock()
			defer mu.Unlock()
			one := "orders " + failing
			require.Equal(t, map[string][]string{"stranded": {"orders " + stranded}, "failing": {one, one, one}}, seen)
		})
	}
}
