package pel

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// Tenure says who may work on a partition of a group: one owner where the group is ordered.
type Tenure struct {
	// Owner leases the partition, for Left yet; Left is negative where the lease ran out.
	// Generation is that of the latest lease.
	Owner      string
	Generation int64
	Left       time.Duration
	// Paused says that the group is paused here.
	Paused bool
	// Members are the consumers that were heard of, and for how long they were silent.
	Members map[string]time.Duration
}

// Held reports whether the lease lasts.
func (t Tenure) Held() bool { return t.Owner != "" && t.Left > 0 }

// Tenures returns the tenure of each of the keys, in their order. It only reads, in pipelines.
func Tenures(ctx context.Context, rdb redis.UniversalClient, keys ...Keys) ([]Tenure, error) {
	all := make([]Tenure, 0, len(keys))
	clocks := clocks{rdb: rdb, now: map[redis.UniversalClient]time.Time{}}
	for len(keys) > 0 {
		n := min(len(keys), 4*inspectKeys)
		hashes, members := make([]*redis.SliceCmd, n), make([]*redis.ZSliceCmd, n)
		pipe := rdb.Pipeline()
		for i, k := range keys[:n] {
			hashes[i] = pipe.HMGet(ctx, k.Hash, "lease-owner", "lease-generation", "lease-until", "paused")
			members[i] = pipe.ZRangeWithScores(ctx, k.Members, 0, -1)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return nil, fmt.Errorf("pel: tenures of group %s: %w", keys[0].Group, err)
		}
		for i, k := range keys[:n] {
			now, err := clocks.of(ctx, k.Stream)
			if err != nil {
				return nil, fmt.Errorf("pel: tenures of group %s: %w", k.Group, err)
			}
			t := Tenure{Members: map[string]time.Duration{}}
			values := hashes[i].Val()
			if len(values) != 4 {
				return nil, fmt.Errorf("pel: tenures of group %s: %w", k.Group, redisx.ErrReply)
			}
			text := func(i int) string { s, _ := values[i].(string); return s }
			t.Owner = text(0)
			t.Generation, _ = strconv.ParseInt(text(1), 10, 64)
			t.Left = time.UnixMilli(int64(count(text(2)))).Sub(now)
			t.Paused = text(3) != ""
			for _, m := range members[i].Val() {
				if name, ok := m.Member.(string); ok && m.Score > 0 {
					t.Members[name] = since(now, uint64(m.Score))
				}
			}
			all = append(all, t)
		}
		keys = keys[n:]
	}
	return all, nil
}
