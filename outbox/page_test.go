package outbox

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestPageTakesLittleMoreMemoryThanItsRows(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, 8 << 10, 100 << 10, 1 << 20} {
		values := make([][]byte, 17)
		values[0], values[3], values[16] = make([]byte, 8), make([]byte, 4), make([]byte, size)
		p, made := &page{}, 0
		for !p.full() {
			before := cap(p.arena) - len(p.arena)
			if p.add(values); before < size+12 {
				made += cap(p.arena)
			}
		}
		require.LessOrEqual(t, made, p.bytes+pageBytes/4, "rows of %d bytes", size)
	}
}

// A page that was not sent is read again: until then nothing of it is known to be aside.
func TestKeyIsParkedOnlyByARowThatWentAside(t *testing.T) {
	s := &shard{relay: &Relay{config: RelayConfig{OnRefused: ParkKey}}, aside: aside{parked: map[parkedKey]stream.Position{}}}
	rowOf := func(id int64, key string) *row {
		return &row{id: id, event: stream.Event{Key: key, Sequence: stream.Position{Batch: 1, Row: id}}}
	}
	s.setAside(rowOf(1, "before"), "too large")
	s.aside.pending = nil // it was written
	for id, key := range []string{"before", "a", "a", ""} {
		s.setAside(rowOf(int64(id+2), key), "too large")
	}
	require.Len(t, s.aside.parked, 2)
	s.dropPending()
	require.Equal(t, map[parkedKey]stream.Position{{key: "before"}: {Batch: 1, Row: 1}}, s.aside.parked)
	require.Empty(t, s.aside.pending)
}

// A server with no room for temporary files sorts what the relay's memory holds; what is larger waits until there is room.
func TestLargeBatchIsSortedInTheRelaysMemoryAndWaitsForRoomBeyondIt(t *testing.T) {
	t.Parallel()
	server := testenv.PrivatePostgres(t, servers.PostgresConfig{Settings: map[string]string{"work_mem": "64kB", "temp_file_limit": "0"}})
	testenv.Migrate(t, server.URL())
	w := worldOn(t, testenv.Pool(t, server.URL()), testenv.Redis(t), 1)
	large := func(n int) {
		batch := make([]stream.Event, n)
		for i := range batch {
			batch[i] = event("k", uuid.NewString())
			batch[i].Data = make([]byte, 1<<10)
		}
		w.publish(batch...)
	}
	seen := &recorder{}
	start(t, w.relay(func(c *RelayConfig) { c.Observer = seen }))
	large(5000)
	require.Eventually(t, func() bool { return w.length() == 5000 }, patience, 10*time.Millisecond)
	require.Empty(t, seen.of(Waiting))
	large(20_000)
	seen.eventually(t, Waiting)
	require.ErrorContains(t, seen.of(Waiting)[0].Err, "temp_file_limit")
	require.EqualValues(t, 5000, w.length())
	for _, sql := range []string{`ALTER SYSTEM SET temp_file_limit = -1`, `SELECT pg_reload_conf()`} {
		_, err := w.pool.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return w.length() == 25_000 }, patience, 10*time.Millisecond)
}

func TestSettingsForALargeBatchEndWithItAndLowerNothing(t *testing.T) {
	t.Parallel()
	conn, err := testenv.Postgres(t).Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	settings := func(first string) []string {
		var queries pgconn.Batch
		queries.ExecParams(first, nil, nil, nil, nil)
		queries.ExecParams(`SELECT current_setting('work_mem'), current_setting('jit')`, nil, nil, nil, nil)
		results, err := conn.Conn().PgConn().ExecBatch(t.Context(), &queries).ReadAll()
		require.NoError(t, err)
		values := results[1].Rows[0]
		return []string{string(values[0]), string(values[1])}
	}
	for own, during := range map[string]string{"64kB": "16MB", "1GB": "1GB"} {
		before := settings(`SET work_mem = '` + own + `'`)
		require.Equal(t, own, before[0])
		require.Equal(t, []string{during, "off"}, settings(sortSQL))
		require.Equal(t, before, settings(`SELECT`))
	}
}
