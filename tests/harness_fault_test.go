package tests

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
)

// fault is something that happens while 16 writers write and a relay relays.
type fault struct {
	name   string
	stops  outbox.Reason // what an operator has to decide afterwards, or ""
	strike func(*harness)
}

// survive strikes one fault after the other, and verifies after each.
func (h *harness) survive(faults []fault) {
	h.t.Helper()
	h.employ()
	h.whileWriting(func() { h.progress(100) })
	h.verify("")
	for _, f := range faults {
		h.t.Log(f.name)
		start := time.Now()
		h.whileWriting(func() { f.strike(h) })
		struck := time.Since(start)
		h.verify(f.stops)
		h.t.Logf("%6d events, struck %4.1f s, verified after %4.1f s", len(h.committed()), struck.Seconds(), time.Since(start).Seconds())
	}
	h.relay.retire() // so that nothing comes after the verdict
	h.verify("")
}

// shortly returns some of the faults where long tests are not wanted.
func shortly(faults []fault, n int) []fault {
	if testenv.IsLong() {
		return faults
	}
	return faults[:n]
}

func TestRelayThatDiesOrHangsAnywhereLosesRepeatsAndReordersNothing(t *testing.T) {
	newHarness(t).survive(append(deaths(), shortly(hangs(), 1)...))
}

func TestFaultsOfRedisLoseRepeatAndReorderNothing(t *testing.T) {
	newHarness(t, ownRedis).survive(redisFaults())
}

func TestFaultsOfPostgresLoseRepeatAndReorderNothing(t *testing.T) {
	newHarness(t, ownPostgres).survive(postgresFaults())
}

// Each kind of fault finds what the others left behind.
func TestFaultsOfAllKindsInAnyOrderLoseRepeatAndReorderNothing(t *testing.T) {
	testenv.Long(t)
	h := newHarness(t, ownRedis, ownPostgres)
	all := append(append(append(deaths(), hangs()...), redisFaults()...), postgresFaults()...)
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	h.survive(all)
}

// deaths are relays that are killed in the middle of their work.
func deaths() (faults []fault) {
	for _, p := range points {
		faults = append(faults, fault{name: "killed " + string(p), strike: func(h *harness) {
			h.instead(func() { h.child(p, syscall.SIGKILL, shortLease).died() })
			h.progress(50)
		}})
	}
	return faults
}

// hangs are relays that stand still past their leases in the middle of their work, and then go on.
func hangs() (faults []fault) {
	for _, p := range []point{withinAdd, afterFreeze, beforeAdd, betweenPages, afterLastAdd} {
		faults = append(faults, fault{name: "stopped " + string(p), strike: func(h *harness) {
			var former *child
			h.instead(func() {
				former = h.child(p, syscall.SIGSTOP, shortLease)
				former.stopped()
			})
			h.progress(burstOfKey * accounts) // by its successor
			former.goOn()
			h.progress(50)
			former.retire() // it had stepped down, and ends as it should
		}})
	}
	return faults
}

func redisFaults() []fault {
	return []fault{
		{"Redis killed, the end of its file lost", "", func(h *harness) {
			file := h.appendOnlyFile()
			written := size(h.t, file)
			h.progress(200)
			require.NoError(h.t, h.redis.Kill())
			// As a machine that loses its power: what was not flushed is not in the file.
			require.NoError(h.t, os.Truncate(file, (written+size(h.t, file))/2))
			require.NoError(h.t, h.redis.Start(h.t.Context()))
			h.progress(50)
		}},
		{"lagging replica promoted", "", func(h *harness) {
			replica := h.laggingReplica()
			h.progress(200)
			h.promote(replica)
			h.progress(250)
		}},
		{"lagging replica promoted in the middle of a batch", "", func(h *harness) {
			var former *child
			h.instead(func() {
				replica := h.laggingReplica()
				former = h.child(betweenPages, syscall.SIGSTOP, longLease)
				former.stopped()
				h.promote(replica)
				former.goOn()
				h.progress(burstOfKey * accounts)
			})
			former.retire()
			h.progress(50)
		}},
		{"Redis flushed", outbox.ReasonLoss, func(h *harness) {
			require.NoError(h.t, h.rdb.FlushAll(h.t.Context()).Err())
			h.until("a shard stands still", func() bool { return len(h.stops()) > 0 })
		}},
		{"one stream cannot be written", outbox.ReasonRefused, oneStreamCannotBeWritten},
	}
}

func postgresFaults() []fault {
	return []fault{
		{"Postgres stopped at once", "", func(h *harness) {
			for range 2 {
				require.NoError(h.t, h.postgres.StopImmediate())
				require.NoError(h.t, h.postgres.Start(h.t.Context()))
				h.progress(100)
			}
		}},
		{"an older Postgres restored", outbox.ReasonAhead, func(h *harness) {
			restore := h.backup()
			h.progress(300)
			restore()
			h.until("a shard stands still", func() bool { return len(h.stops()) > 0 })
		}},
		{"one restored that lacks batches of rows it has", outbox.ReasonAhead, func(h *harness) {
			require.NoError(h.t, h.relay.cmd.Process.Signal(syscall.SIGSTOP))
			commits := len(h.committed())
			h.until("rows are committed", func() bool { return len(h.committed()) > commits+30 })
			restore := h.backup()
			h.relay.goOn()
			h.progress(100)
			restore()
			h.until("a shard stands still", func() bool { return len(h.stops()) > 0 })
		}},
	}
}

// appendOnlyFile returns where Redis writes what comes.
func (h *harness) appendOnlyFile() string {
	h.t.Helper()
	dir, err := h.rdb.ConfigGet(h.t.Context(), "dir").Result()
	require.NoError(h.t, err)
	files, err := filepath.Glob(filepath.Join(dir["dir"], "appendonlydir", "*.incr.aof"))
	require.NoError(h.t, err)
	require.Len(h.t, files, 1)
	return files[0]
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	require.NoError(t, err)
	return info.Size()
}

// laggingReplica returns a replica that has what there was until now, and gets nothing more.
func (h *harness) laggingReplica() *servers.Redis {
	h.t.Helper()
	replica := testenv.PrivateRedis(h.t, servers.RedisConfig{Dir: h.t.TempDir(), AppendOnly: true, ReplicaOf: h.redis.Addr()})
	rdb := testenv.RedisClient(h.t, replica.URL())
	h.until("the replica has its first copy", func() bool {
		info := rdb.Info(h.t.Context(), "replication").Val()
		return strings.Contains(info, "master_link_status:up")
	})
	require.NoError(h.t, rdb.ReplicaOf(h.t.Context(), "NO", "ONE").Err())
	require.NoError(h.t, rdb.ConfigRewrite(h.t.Context()).Err()) // or else it would be a replica again after a start
	return replica
}

func (h *harness) promote(replica *servers.Redis) {
	h.t.Helper()
	require.NoError(h.t, h.redis.Kill())
	h.redis = replica
	h.door.lead(replica.Addr())
}

// backup copies the Postgres as it is now, and returns what puts the copy in its place.
func (h *harness) backup() (restore func()) {
	h.t.Helper()
	var data string
	require.NoError(h.t, h.pool.QueryRow(h.t.Context(), "SHOW data_directory").Scan(&data))
	replace := func(from, to string) {
		require.NoError(h.t, os.RemoveAll(to))
		output, err := exec.Command("cp", "-a", from, to).CombinedOutput()
		require.NoError(h.t, err, "%s", output)
		require.NoError(h.t, h.postgres.Start(h.t.Context()))
	}
	require.NoError(h.t, h.postgres.Stop())
	replace(data, data+".copy")
	return func() {
		require.NoError(h.t, h.postgres.StopImmediate())
		replace(data+".copy", data)
	}
}

// oneStreamCannotBeWritten puts something else in a stream's place: the other shards go on, and it does when that was mended.
func oneStreamCannotBeWritten(h *harness) {
	ctx, broken := h.t.Context(), h.topic.StreamKey(0)
	swap := func(move func(redis.Pipeliner)) {
		_, err := h.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
			move(p)
			return nil
		})
		require.NoError(h.t, err)
	}
	swap(func(p redis.Pipeliner) {
		p.Rename(ctx, broken, broken+":away")
		p.Set(ctx, broken, "x", 0)
	})
	h.until("its shard stands still", func() bool { return len(h.stops()) > 0 })
	for _, other := range h.topic.StreamKeys()[1:] {
		before := h.rdb.XLen(ctx, other).Val()
		h.until(other+" goes on", func() bool { return h.rdb.XLen(ctx, other).Val() > before+20 })
	}
	stops := h.stops()
	require.Len(h.t, stops, 1, "the others go on")
	require.Equal(h.t, outbox.ReasonRefused, stops[0].Reason)
	h.operate(outbox.ReasonRefused)
	swap(func(p redis.Pipeliner) { p.Rename(ctx, broken+":away", broken) })
}
