package projection_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/projection"
)

func TestEmptyStreamIsWaitedFor(t *testing.T) {
	w := newWorld(t, 1)
	r := w.runner()
	require.Zero(t, w.drain(r))
	require.Equal(t, "0-0", w.group(0).LastDeliveredID, "the group is there before the first event, and holds retention")

	w.addDirect(0, "e1", "e2")
	require.Equal(t, projection.Result{Events: 2}, w.drain(r))
	require.Equal(t, []string{"e1", "e2"}, w.ledger())
}

func TestFirstStartOnTrimmedStreamIsAnError(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, numbered("e", 1, 5)...)
	w.rdb.XTrimMaxLen(t.Context(), w.topic.StreamKey(0), 2)

	_, err := w.runner().RunOnce(t.Context())
	require.ErrorIs(t, err, projection.ErrTrimmedUnread)
	require.ErrorContains(t, err, "2 entries of the 5")

	partial := w.runner(func(c *projection.Config) { c.AllowPartial = true })
	w.drain(partial)
	require.Equal(t, []string{"e4", "e5"}, w.ledger())
	require.EqualValues(t, 5, w.checkpoint(0).EntriesRead)
	require.EqualValues(t, 0, w.group(0).Lag)
	w.addDirect(0, "e6")
	w.drain(w.runner())
	require.Equal(t, []string{"e4", "e5", "e6"}, w.ledger())
}

func TestFirstStartOnEmptiedStreamIsAllowedPartially(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, numbered("e", 1, 5)...)
	w.rdb.XTrimMaxLen(t.Context(), w.topic.StreamKey(0), 0)
	_, err := w.runner().RunOnce(t.Context())
	require.ErrorIs(t, err, projection.ErrTrimmedUnread)
	r := w.runner(func(c *projection.Config) { c.AllowPartial = true })
	w.drain(r)
	w.addDirect(0, "e6")
	w.drain(r)
	w.drain(w.runner())
	require.Equal(t, []string{"e6"}, w.ledger())
}

// Every runner compares anew; the same must hold for one that is connected all the while.
func forFreshAndConnected(t *testing.T, test func(t *testing.T, w *world, next func() *projection.Runner)) {
	for _, fresh := range []bool{true, false} {
		name := map[bool]string{true: "restarted", false: "connected"}[fresh]
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			connected := w.runner()
			test(t, w, func() *projection.Runner {
				if fresh {
					return w.runner()
				}
				return connected
			})
		})
	}
}

func TestTrimmingWhatWasAppliedIsFine(t *testing.T) {
	t.Parallel()
	forFreshAndConnected(t, func(t *testing.T, w *world, next func() *projection.Runner) {
		key := w.topic.StreamKey(0)
		ids := w.addDirect(0, numbered("e", 1, 5)...)
		w.drain(next())

		w.rdb.XTrimMinID(t.Context(), key, ids[4]) // all but the last
		w.drain(next())
		w.addDirect(0, "e6")
		w.drain(next())
		w.rdb.XTrimMaxLen(t.Context(), key, 0)
		w.drain(next())
		w.addDirect(0, "e7", "e8")
		w.drain(next())
		require.Equal(t, numbered("e", 1, 8), w.ledger())
	})
}

func TestTrimmingPastTheReaderIsFound(t *testing.T) {
	t.Parallel()
	for name, keep := range map[string]int64{"some are left": 2, "nothing is left": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forFreshAndConnected(t, func(t *testing.T, w *world, next func() *projection.Runner) {
				w.addDirect(0, numbered("e", 1, 3)...)
				w.drain(next())
				w.addDirect(0, numbered("e", 4, 8)...)
				w.rdb.XTrimMaxLen(t.Context(), w.topic.StreamKey(0), keep)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				require.ErrorIs(t, next().Run(ctx), projection.ErrTrimmedUnread)
				require.Equal(t, numbered("e", 1, 3), w.ledger(), "nothing beyond the gap was applied")
			})
		})
	}
}

func TestDeletingBehindTheReaderIsFine(t *testing.T) {
	t.Parallel()
	forFreshAndConnected(t, func(t *testing.T, w *world, next func() *projection.Runner) {
		key := w.topic.StreamKey(0)
		ids := w.addDirect(0, numbered("e", 1, 5)...)
		w.drain(next())
		w.rdb.XDel(t.Context(), key, ids[2])
		w.drain(next())
		w.rdb.XDel(t.Context(), key, ids[4]) // the very entry of the checkpoint
		w.addDirect(0, "e6")
		w.drain(next())
		require.Equal(t, numbered("e", 1, 6), w.ledger())
	})
}

func TestDeletingAheadOfTheReaderIsFound(t *testing.T) {
	t.Parallel()
	for name, deleted := range map[string]int{"next": 3, "in the middle": 4, "last": 6} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forFreshAndConnected(t, func(t *testing.T, w *world, next func() *projection.Runner) {
				ids := w.addDirect(0, numbered("e", 1, 3)...)
				w.drain(next())
				ids = append(ids, w.addDirect(0, numbered("e", 4, 7)...)...)
				w.rdb.XDel(t.Context(), w.topic.StreamKey(0), ids[deleted])
				_, err := drain(t.Context(), next())
				if deleted == 6 && err == nil { // the stream has nothing new: the next regular look finds it
					_, err = drain(t.Context(), w.runner())
				}
				require.ErrorIs(t, err, projection.ErrTrimmedUnread)
				require.Equal(t, numbered("e", 1, 3), w.ledger())
			})
		})
	}
}

// Deletions that were there at the first start hide the mark of a later one before them; it
// is counted all the same.
func TestDeletingAheadAmongOldDeletionsIsFoundAtTheTail(t *testing.T) {
	w := newWorld(t, 1)
	ids := w.addDirect(0, numbered("e", 1, 6)...)
	w.rdb.XDel(t.Context(), w.topic.StreamKey(0), ids[4])
	r := w.runner(func(c *projection.Config) { c.AllowPartial, c.BatchSize = true, 1 })
	_, err := r.RunOnce(t.Context())
	require.NoError(t, err)
	w.rdb.XDel(t.Context(), w.topic.StreamKey(0), ids[2])
	_, err = drain(t.Context(), r)
	if err == nil {
		_, err = w.runner().RunOnce(t.Context())
	}
	require.ErrorIs(t, err, projection.ErrTrimmedUnread)
}

func TestRecreatedStreamIsReadAgainByItsSequence(t *testing.T) {
	t.Parallel()
	for name, refill := range map[string]int{"shorter": 2, "as long": 5, "longer": 9} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forFreshAndConnected(t, func(t *testing.T, w *world, next func() *projection.Runner) {
				w.addRelayed(0, numbered("e", 1, 5)...)
				w.drain(next())
				w.rdb.Del(t.Context(), w.topic.StreamKey(0))
				for i := 1; i <= refill; i++ { // as the relay would after a rewind
					w.add(0, at(direct(numbered("e", i, i)[0]), int64(i)))
				}
				w.drain(next())
				w.drain(next())
				require.Equal(t, numbered("e", 1, max(5, refill)), w.ledger())
				require.EqualValues(t, 0, w.group(0).Lag)
			})
		})
	}
}

func TestRecreatedStreamWithoutSequencesIsAnError(t *testing.T) {
	t.Parallel()
	for name, refill := range map[string]int{"gone": 0, "shorter": 2, "as long": 5, "longer": 9} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forFreshAndConnected(t, func(t *testing.T, w *world, next func() *projection.Runner) {
				w.addDirect(0, numbered("e", 1, 5)...)
				w.drain(next())
				w.rdb.Del(t.Context(), w.topic.StreamKey(0))
				w.addDirect(0, numbered("new", 1, refill)...)
				r := next()
				_, err := drain(t.Context(), r)
				if refill == 0 && err == nil {
					_, err = drain(t.Context(), w.runner())
				}
				require.ErrorIs(t, err, projection.ErrRewound)
				require.Equal(t, numbered("e", 1, 5), w.ledger())

				require.NoError(t, r.Accept(t.Context(), w.topic.StreamKey(0)))
				w.drain(next())
				require.Equal(t, append(numbered("e", 1, 5), numbered("new", 1, refill)...), w.ledger())
			})
		})
	}
}

func TestRecreatedStreamWithTheSameIDsIsFound(t *testing.T) {
	t.Parallel()
	forFreshAndConnected(t, func(t *testing.T, w *world, next func() *projection.Runner) {
		for _, id := range []string{"1-1", "2-1", "3-1"} {
			w.addTo(w.rdb, 0, id, direct("old "+id))
		}
		w.drain(next())
		w.rdb.Del(t.Context(), w.topic.StreamKey(0))
		for _, id := range []string{"1-1", "2-1", "3-1", "4-1"} {
			w.addTo(w.rdb, 0, id, direct("new "+id))
		}
		_, err := drain(t.Context(), next())
		require.ErrorIs(t, err, projection.ErrRewound)
		require.Len(t, w.ledger(), 3)
	})
}

func TestAcceptGoesOnWithoutWhatWasTrimmed(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, numbered("e", 1, 3)...)
	w.drain(w.runner())
	ids := w.addDirect(0, numbered("e", 4, 8)...)
	w.rdb.XDel(t.Context(), w.topic.StreamKey(0), ids[1])
	r := w.runner()
	_, err := r.RunOnce(t.Context())
	require.ErrorIs(t, err, projection.ErrTrimmedUnread)
	require.NoError(t, r.Accept(t.Context(), w.topic.StreamKey(0)))
	w.drain(w.runner())
	require.Equal(t, []string{"e1", "e2", "e3", "e4", "e6", "e7", "e8"}, w.ledger())

	w.rdb.XTrimMaxLen(t.Context(), w.topic.StreamKey(0), 0)
	w.addDirect(0, "e9")
	w.drain(w.runner())
	require.EqualValues(t, 9, w.checkpoint(0).EntriesRead, "the count is learnt again")
	require.EqualValues(t, 0, w.group(0).Lag)
	require.ErrorIs(t, r.Accept(t.Context(), "another"), projection.ErrInvalid)
}

func TestMixedStreamIsGuardedByIDsToo(t *testing.T) {
	w := newWorld(t, 1)
	w.addRelayed(0, "r1")
	w.addDirect(0, "d1")
	w.addRelayed(0, "r2")
	dump := w.rdb.Dump(t.Context(), w.topic.StreamKey(0)).Val()
	w.addRelayed(0, "r3")
	w.drain(w.runner())

	// The tail is lost: r3 is published again, with another ID.
	require.NoError(t, w.rdb.RestoreReplace(t.Context(), w.topic.StreamKey(0), 0, dump).Err())
	w.add(0, at(direct("r3"), 3))
	w.addDirect(0, "d2")
	result := w.drain(w.runner())
	require.Equal(t, []string{"r1", "d1", "r2", "r3", "d2"}, w.ledger())
	require.Equal(t, projection.Result{Events: 1, Skipped: 4}, result)
}

func TestRestartWithAppendOnlyFileIsNoRewind(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{
		// By default Redis puts off a write while the disk is busy, and a kill loses it.
		"as written": {"appendfsync": "always"},
		"rewritten":  {"appendfsync": "always", "aof-use-rdb-preamble": "no"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testenv.PrivateRedis(t, servers.RedisConfig{AppendOnly: true, Settings: settings})
			rdb := testenv.RedisClient(t, server.URL())
			w := worldOn(t, rdb, 2)
			seen := &moments{}
			r := w.runner(func(c *projection.Config) { c.Observer = seen })
			ids := w.addDirect(0, numbered("a", 1, 5)...)
			w.addRelayed(1, numbered("b", 1, 5)...)
			w.drain(r)
			w.rdb.XDel(t.Context(), w.topic.StreamKey(0), ids[1])
			w.rdb.XTrimMaxLen(t.Context(), w.topic.StreamKey(1), 1)
			if name == "rewritten" {
				require.NoError(t, rdb.BgRewriteAOF(t.Context()).Err())
				require.Eventually(t, func() bool {
					info := rdb.InfoMap(t.Context(), "persistence").Val()["Persistence"]
					return info["aof_rewrite_in_progress"] == "0" && info["aof_last_bgrewrite_status"] == "ok" && info["aof_rewrites"] != "0"
				}, 30*time.Second, 10*time.Millisecond)
			}
			require.NoError(t, server.Kill())
			require.NoError(t, server.Start(t.Context()))
			w.addDirect(0, "a6")
			w.addRelayed(1, "b6")
			w.drain(w.runner(func(c *projection.Config) { c.Observer = seen }))
			require.ElementsMatch(t, append(numbered("a", 1, 6), numbered("b", 1, 6)...), w.ledger())
			require.Zero(t, seen.count(projection.Rewound))
		})
	}
}
