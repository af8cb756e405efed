package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command/commandtest"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// office is a shop with an outbox.
type office struct {
	*shop
	pool *pgxpool.Pool
	t    *testing.T
}

func newOffice(t *testing.T) *office {
	t.Parallel()
	s := newShop(t)
	o := &office{shop: s, pool: testenv.Postgres(t), t: t}
	s.topic.Partitions = 1
	s.topic.Name = "invoices"
	s.env = append(s.env, "STREAMKEEL_POSTGRES_URL="+testenv.PostgresURL(t))
	return o
}

// relay runs a relay until stop is called, or the test ends.
func (o *office) relay(edit ...func(*outbox.RelayConfig)) (stop func()) {
	o.t.Helper()
	config := outbox.RelayConfig{LeaseTTL: time.Second, Logger: slog.New(slog.DiscardHandler)}
	for _, e := range edit {
		e(&config)
	}
	r, err := outbox.NewRelay(o.pool, o.rdb, config)
	require.NoError(o.t, err)
	ctx, cancel := context.WithCancel(o.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); require.NoError(o.t, <-ended) })
	o.t.Cleanup(stop)
	return stop
}

func (o *office) publish(keys ...string) {
	o.t.Helper()
	require.NoError(o.t, outbox.InTx(o.t.Context(), o.pool, func(tx pgx.Tx) error {
		for i, key := range keys {
			if err := outbox.Publish(o.t.Context(), tx, o.topic, orderPlaced.Event(key, order{i})); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (o *office) length() int {
	return int(o.rdb.XLen(o.t.Context(), o.topic.StreamKey(0)).Val())
}

const patience = 30 * time.Second

func (o *office) eventually(n int) {
	o.t.Helper()
	require.Eventually(o.t, func() bool { return o.length() == n }, patience, 10*time.Millisecond)
	// Published is written with the renewals of the lease.
	require.Eventually(o.t, func() bool {
		for _, s := range document[outboxDocument](o.shop, "outbox", "status").Shards {
			if s.Published != s.Batch || s.Unpublished > 0 {
				return false
			}
		}
		return true
	}, patience, 50*time.Millisecond)
}

// stopped waits until the topic's shard stands still.
func (o *office) stopped(reason outbox.Reason) (found shardRow) {
	o.t.Helper()
	require.Eventually(o.t, func() bool {
		for _, s := range document[outboxDocument](o.shop, "outbox", "status").Shards {
			if s.Stop != nil && s.Stop.Reason == string(reason) {
				found = s
				return true
			}
		}
		return false
	}, patience, 50*time.Millisecond)
	return found
}

func (o *office) refused(args string, parts ...string) {
	o.t.Helper()
	commandtest.RequireUnfit(o.t, commandtest.Call(o.t, run, o.env, strings.Fields(args)...), parts...)
}

func (o *office) relayKey() string { return stream.KeyRelay.Key(o.topic.StreamKey(0), "") }

func TestOutboxStatusTellsWhoRelaysAndWhatWaits(t *testing.T) {
	o := newOffice(t)
	o.publish("a", "b", "c")
	status := document[outboxDocument](o.shop, "outbox", "status")
	require.Len(t, status.Shards, 8)
	require.InDelta(t, 7, status.DaysAhead, 1) // a day may end meanwhile
	waiting := 0
	for _, s := range status.Shards {
		waiting += int(s.Unpublished)
		require.Empty(t, s.Owner)
	}
	require.Equal(t, 3, waiting)
	require.Contains(t, o.call("outbox", "status"), "no relay")
	o.relay(func(c *outbox.RelayConfig) { c.Name = "teller" })
	o.eventually(3)
	out := o.call("outbox", "status")
	require.Contains(t, out, "relays 1, delayed rows 0, failed rows 0, row partitions for 7 days ahead")
	require.Contains(t, out, "teller-")
	require.Contains(t, out, "idle")
}

func TestOutboxLossIsDecidedByAPerson(t *testing.T) {
	o := newOffice(t)
	o.refused("outbox republish --lost", "no shard stands still")
	o.relay()
	o.publish("a", "b")
	o.eventually(2)
	lose := func() int {
		require.NoError(t, o.rdb.Del(t.Context(), o.topic.StreamKey(0), o.relayKey()).Err())
		o.publish("c")
		return o.stopped(outbox.ReasonLoss).Shard
	}
	shard := lose()
	out := o.call("outbox", "status")
	require.Contains(t, out, "STOPPED: loss")
	require.Contains(t, out, "publishing again would send 2 rows")
	require.Contains(t, out, "streamkeel outbox republish --lost")

	o.refused(fmt.Sprint("outbox republish --lost --shard ", (shard+1)%8), "does not stand still")
	o.refused("outbox republish --lost --shard 99", "no shard 99")
	o.refused("outbox republish --accept-loss", "--yes")
	o.refused("outbox resync", "no shard stands still")
	dry := document[decidedDocument](o.shop, "outbox", "republish", "--lost", "--dry-run")
	require.Equal(t, shard, dry.Shards[0].Shard)
	require.EqualValues(t, 2, dry.Shards[0].Rows)
	require.Empty(t, o.stopped(outbox.ReasonLoss).Stop.Decision, "it was dry")
	require.Contains(t, o.call("outbox", "republish", "--lost", "--yes"), "republish was decided")
	o.eventually(3)

	lose()
	require.Contains(t, o.call("outbox", "republish", "--accept-loss", "--yes"), "accept-loss was decided")
	o.eventually(1)
}

func TestOutboxRepublishAppendsCopies(t *testing.T) {
	o := newOffice(t)
	stop := o.relay()
	o.publish("a", "b", "a")
	o.eventually(3)
	stop()
	dry := document[copiesDocument](o.shop, "outbox", "republish", "--from", "1h", "--key", "a", "--dry-run")
	require.EqualValues(t, 2, dry.Rows)
	require.Equal(t, 3, o.length())
	o.refused("outbox republish --from 1h", "append copies of 3 rows", "--yes")
	require.Contains(t, o.call("outbox", "republish", "--from", "1h", "--key", "a", "--yes"), "appended copies of 2 rows")
	require.Equal(t, 5, o.length())
	require.Contains(t, o.call("outbox", "republish", "--from", "1h", "--to", "30m", "--yes"), "appended copies of 0 rows")
}

func TestOutboxResyncAndRestamp(t *testing.T) {
	o := newOffice(t)
	stop := o.relay()
	o.publish("a")
	o.eventually(1)
	// Redis holds what the outbox knows nothing of.
	require.NoError(t, o.rdb.HSet(t.Context(), o.relayKey(), "batch", 1000, "row", 1, "tag", "another").Err())
	ghost := orderPlaced.Event("a", order{9})
	ghost.Stamp(t.Context(), o.topic)
	ghost.Sequence = stream.Position{Batch: 1000, Row: 1}
	require.NoError(t, o.rdb.Do(t.Context(), ghost.AppendFields([]any{"xadd", o.topic.StreamKey(0), "*"})...).Err())
	o.publish("b")
	o.stopped(outbox.ReasonAhead)
	dry := document[decidedDocument](o.shop, "outbox", "resync", "--dry-run")
	require.Len(t, dry.Ghosts, 1)
	require.Equal(t, ghost.ID, dry.Ghosts[0].Event)
	require.Contains(t, o.call("outbox", "resync", "--yes"), "entries that Postgres lost")
	o.eventually(3)

	require.NoError(t, o.rdb.HSet(t.Context(), o.relayKey(), "system", "7000000000000000000/5").Err())
	o.publish("c")
	require.Contains(t, o.stopped(outbox.ReasonForeign).Stop.Help, "restamp")
	o.refused("outbox restamp --dry-run", "a relay runs")
	stop()
	plan := document[restampDocument](o.shop, "outbox", "restamp", "--dry-run")
	require.Equal(t, map[string]string{o.topic.StreamKey(0): "7000000000000000000/5"}, plan.Streams)
	o.refused("outbox restamp", "take over 1 streams", "--yes")
	require.Contains(t, o.call("outbox", "restamp", "--yes"), "took over 1 streams")
	o.relay()
	o.eventually(4)
}

func TestOutboxFailedRowsAreListedAndRetried(t *testing.T) {
	o := newOffice(t)
	ctx := t.Context()
	require.NoError(t, outbox.Declare(ctx, o.pool, o.topic))
	require.Contains(t, o.call("outbox", "failed", "list"), "no such rows")
	for i := range 3 {
		_, err := o.pool.Exec(ctx, `
INSERT INTO streamkeel.outbox_row (namespace, topic, key, event_id, type, source, shard, partition, data)
SELECT $1, $2, 'k', $3, 't', 's', first_shard, 9, '{}' FROM streamkeel.topic WHERE namespace = $1 AND name = $2`,
			o.topic.Namespace, o.topic.Name, fmt.Sprint("e", i))
		require.NoError(t, err)
	}
	o.relay(func(c *outbox.RelayConfig) { c.OnRefused = outbox.ParkKey })
	require.Eventually(t, func() bool {
		return len(document[failedDocument](o.shop, "outbox", "failed", "list").Failed) == 3
	}, patience, 50*time.Millisecond)
	page := document[failedDocument](o.shop, "outbox", "failed", "list", "--limit", "2", "--key", "k")
	require.Len(t, page.Failed, 2)
	require.True(t, page.Failed[0].Parked)
	rest := document[failedDocument](o.shop, "outbox", "failed", "list", "--after", fmt.Sprint(page.Next))
	require.Len(t, rest.Failed, 1)
	require.Contains(t, o.call("outbox", "failed", "list"), "partition 9 of topic invoices, which has 1")

	o.refused("outbox failed retry", "--all")
	o.refused("outbox failed retry --all --key k", "--all")
	o.refused("outbox failed list --limit 0", "--limit 0")
	require.EqualValues(t, 3, document[retryDocument](o.shop, "outbox", "failed", "retry", "--all", "--dry-run").Rows)
	_, err := o.pool.Exec(ctx, `UPDATE streamkeel.outbox_failed SET partition = 0`) // the cause is mended
	require.NoError(t, err)
	require.EqualValues(t, 3, document[retryDocument](o.shop, "outbox", "failed", "retry", "--key", "k").Rows)
	o.eventually(3)
	require.Empty(t, document[failedDocument](o.shop, "outbox", "failed", "list").Failed)
}

func TestOutboxBadInput(t *testing.T) {
	o := newOffice(t)
	for args, part := range map[string]string{
		"outbox republish":                           "say one of",
		"outbox republish --lost --accept-loss":      "say one of",
		"outbox republish --lost --from 1h":          "say one of",
		"outbox republish --to 1h":                   "need --from",
		"outbox republish --from 1h --shard 1":       "--shard",
		"outbox republish --from soon --to later":    `--to "later"`,
		"outbox republish --from 1h --to 2h":         "--from does not lie before --to",
		"outbox sttus":                               "failed, republish, restamp, resync, status",
		"outbox status --postgres-url postgres://x@": "--postgres-url",
		"outbox status --schema pg_x":                "--schema: schema \"pg_x\" belongs to Postgres",
	} {
		o.refused(args, part)
	}
}
