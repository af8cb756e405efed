package tests

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

const (
	patience   = 60 * time.Second
	tick       = 10 * time.Millisecond
	partitions = 3
)

// harness is what the crash tests strike at: accounts that writers change, an outbox, the streams, and a projection that
// keeps a ledger of what it was told, place by place. After every fault the streams and the ledger must have each
// committed version of each account once, in order.
type harness struct {
	t      *testing.T
	topic  stream.Topic
	pool   *pgxpool.Pool
	rdb    *redis.Client
	slow   time.Duration // how long a slow transaction is open at the most
	serial atomic.Uint64 // makes ids unique

	postgres *servers.Postgres // where it is the test's own
	redis    *servers.Redis    // where it is the test's own: the master
	door     *door             // where its address stays the same

	postgresURL, redisURL string

	relay   *child                // the one that is always there, but for faults that need another
	decided map[outbox.Reason]int // what the operator decided
	ghosts  map[string]bool       // what the operator was told that Postgres lost
}

// newHarness returns a harness with its projection, without a relay. The servers are those that all tests share, or
// the test's own.
func newHarness(t *testing.T, own ...func(*harness)) *harness {
	t.Helper()
	t.Parallel()
	h := &harness{
		t: t, slow: 500 * time.Millisecond, decided: map[outbox.Reason]int{}, ghosts: map[string]bool{},
		topic: stream.Topic{Name: "bank", Namespace: testenv.Namespace(t), Partitions: partitions},
	}
	if testenv.IsLong() {
		h.slow = 5 * time.Second
	}
	for _, start := range own {
		start(h)
	}
	if h.postgresURL == "" {
		h.postgresURL = testenv.PostgresURL(t)
	}
	if h.redisURL == "" {
		h.redisURL = testenv.RedisURL(t)
	}
	h.pool = testenv.Pool(t, h.postgresURL, func(c *pgxpool.Config) { c.MaxConns = writers + 8 })
	h.rdb = testenv.RedisClient(t, h.redisURL)
	h.createTables()
	h.keepLedger()
	return h
}

func ownPostgres(h *harness) {
	h.postgres = testenv.PrivatePostgres(h.t, servers.PostgresConfig{})
	h.postgresURL = h.postgres.URL()
	testenv.Migrate(h.t, h.postgresURL)
}

func ownRedis(h *harness) {
	h.redis = testenv.PrivateRedis(h.t, servers.RedisConfig{Dir: h.t.TempDir(), AppendOnly: true})
	h.door = newDoor(h.t, h.redis.Addr())
	h.redisURL = "redis://" + h.door.addr()
}

// keepLedger runs the projection until the test ends. What it halts at passes, and it is started again.
func (h *harness) keepLedger() {
	runner, err := projection.NewRunner(h.pool, h.rdb, projection.Config{
		Name: "ledger", Topics: []stream.Topic{h.topic}, Logger: h.log("ledger"),
		Apply: func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
			var ids, keys, versions []string
			for _, e := range events {
				ids, keys, versions = append(ids, e.ID), append(keys, e.Key), append(versions, string(e.Data))
			}
			_, err := tx.Exec(ctx, `
INSERT INTO ledger (id, key, version) SELECT id, key, version::int
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS e(id, key, version, place) ORDER BY place`, ids, keys, versions)
			return err
		},
	})
	require.NoError(h.t, err)
	ctx, cancel := context.WithCancel(h.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := runner.Run(ctx); err != nil {
				pause(ctx, 100*time.Millisecond)
			}
		}
	}()
	h.t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// log returns a logger that says nothing, unless STREAMKEEL_TEST_VERBOSE is set.
func (h *harness) log(who string) *slog.Logger {
	if os.Getenv("STREAMKEEL_TEST_VERBOSE") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("who", who, "test", h.t.Name())
}

// inStreams returns what the topic's streams hold, partition by partition.
func (h *harness) inStreams() []said { return h.entries(h.topic.StreamKeys()...) }

func (h *harness) entries(streams ...string) (all []said) {
	h.t.Helper()
	for _, key := range streams {
		entries, err := h.rdb.XRange(h.t.Context(), key, "-", "+").Result()
		require.NoError(h.t, err)
		for _, en := range entries {
			text := func(name string) string { s, _ := en.Values[name].(string); return s }
			version, err := strconv.Atoi(text("data"))
			require.NoError(h.t, err, "entry %s of %s", en.ID, key)
			all = append(all, said{text("id"), text("subject"), version})
		}
	}
	return all
}

// length returns how many entries the streams hold, and -1 while Redis is away.
func (h *harness) length() int {
	n := 0
	for _, key := range h.topic.StreamKeys() {
		one, err := h.rdb.XLen(h.t.Context(), key).Result()
		if err != nil {
			return -1
		}
		n += int(one)
	}
	return n
}

// progress waits until the streams have n entries more than now.
func (h *harness) progress(n int) {
	h.t.Helper()
	before := -1
	h.until("the streams can be read", func() bool { before = h.length(); return before >= 0 })
	h.until(fmt.Sprintf("%d entries more", n), func() bool { return h.length() >= before+n })
}

// until waits for a condition.
func (h *harness) until(what string, holds func() bool) {
	h.t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		require.True(h.t, time.Now().Before(deadline), "not within %s: %s", patience, what)
		pause(h.t.Context(), tick)
	}
}

// verify waits until the streams and the ledger have everything that was committed, while an operator decides what
// has to be decided, and requires that they have it once, in order, and nothing else that the operator was not told of. Only
// for the given reason may a shard have stood still.
func (h *harness) verify(stops outbox.Reason) {
	h.t.Helper()
	committed := h.committed()
	var streams, ledger verdict
	deadline := time.Now().Add(patience)
	for {
		h.operate(stops)
		late := time.Now().After(deadline)
		if late || h.length() >= len(committed) {
			streams, ledger = judge(committed, h.inStreams()), judge(committed, h.inLedger())
			if late || streams.lost == 0 && ledger.lost == 0 {
				break
			}
		}
		pause(h.t.Context(), 10*tick)
	}
	for where, v := range map[string]verdict{"streams": streams, "ledger": ledger} {
		for _, id := range v.ghosts {
			require.True(h.t, h.ghosts[id], "%s: %s was never committed", where, id)
		}
		v.ghosts = nil
		require.Equal(h.t, verdict{committed: len(committed)}, v, "%s: %s", where, v)
	}
	for _, s := range committed {
		require.False(h.t, h.ghosts[s.id], "%s was committed, and is called a ghost", s.id)
	}
	if stops != "" {
		require.Positive(h.t, h.decided[stops], "no shard stood still: %s", stops)
	}
	clear(h.decided)
}

// operate does what an operator does about shards that stand still.
func (h *harness) operate(expected outbox.Reason) {
	h.t.Helper()
	for _, stop := range h.stops() {
		require.Equal(h.t, expected, stop.Reason, "shard %d stands still: %s", stop.Shard, stop.Detail)
		if stop.Decision != "" {
			continue
		}
		var err error
		switch stop.Reason {
		case outbox.ReasonLoss:
			err = outbox.RepublishLost(h.t.Context(), h.pool, stop.Shard)
		case outbox.ReasonAhead:
			var ghosts []string
			for en, ghostsErr := range outbox.Ghosts(h.t.Context(), h.pool, h.rdb, stop.Shard) {
				require.NoError(h.t, ghostsErr)
				ghosts = append(ghosts, en.Event.ID)
			}
			if !slices.ContainsFunc(h.stops(), func(s outbox.Stop) bool { return s.Shard == stop.Shard && s.Since.Equal(stop.Since) }) {
				continue // it carried out what was decided before, and what it published then may be among them
			}
			for _, id := range ghosts {
				h.ghosts[id] = true
			}
			err = outbox.Resync(h.t.Context(), h.pool, stop.Shard)
		}
		if err == nil { // or else it went on meanwhile
			h.decided[stop.Reason]++
		}
	}
}

// stops returns the shards that stand still; none while Postgres is away.
func (h *harness) stops() (all []outbox.Stop) {
	status, err := outbox.ReadStatus(h.t.Context(), h.pool)
	if err != nil {
		return nil
	}
	for _, s := range status.Shards {
		if s.Stop != nil {
			all = append(all, *s.Stop)
		}
	}
	return all
}
