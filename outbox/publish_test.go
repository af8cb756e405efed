package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

func TestCommittedEventsReachTheirStreamsAndRolledBackOnesLeaveNoTrace(t *testing.T) {
	w := newWorld(t, 4)
	start(t, w.relay())
	w.publish(events("a", "a1", "a2")...)
	err := InTx(t.Context(), w.pool, func(tx pgx.Tx) error {
		require.NoError(t, Publish(t.Context(), tx, w.topic, events("a", "never")...))
		return context.Canceled
	})
	require.ErrorIs(t, err, context.Canceled)
	w.publish(events("b", "b1")...)
	w.publish(events("a", "a3")...)
	w.eventually(4)
	require.ElementsMatch(t, []string{"a1", "a2", "a3", "b1"}, w.ids())
	p := w.topic.PartitionOf("a")
	var got []string
	for _, en := range w.entries(p) {
		if en.Event.Key == "a" {
			got = append(got, en.Event.ID)
		}
	}
	require.Equal(t, []string{"a1", "a2", "a3"}, got)
}

func TestRelayedEntryHasTheFieldsThatAPublisherWrites(t *testing.T) {
	w := newWorld(t, 1)
	full := event("k\"ey é", "full")
	full.Source, full.Schema, full.CorrelationID, full.CausationID = "shop", "v2", "corr", "cause"
	full.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	full.Time = time.Date(2026, 2, 3, 4, 5, 6, 789000, time.FixedZone("x", 3600))
	full.Expires = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	full.Attributes = map[string]string{"tenant": "t<1>&", "empty": ""}
	full.Data = []byte{0, 255, '\\', '\n'}
	bare := stream.Event{ID: "bare", Type: "t"}
	old := event("k", "old")
	old.Time = time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)
	all := []stream.Event{full, bare, old}

	direct := w.topic
	direct.Name = "direct"
	direct.Source = w.topic.Name
	publisher, err := stream.NewPublisher(w.rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	_, err = publisher.PublishBatch(t.Context(), direct, all)
	require.NoError(t, err)

	w.publish(all...)    // in one statement
	w.publish(bare)      // and alone
	w.publish(full, old) // and in another batch
	start(t, w.relay())
	w.eventually(6)

	fields := func(key string) (out []map[string]any) {
		messages, err := w.rdb.XRange(t.Context(), key, "-", "+").Result()
		require.NoError(t, err)
		for _, m := range messages {
			_, err := stream.ParsePosition(fmt.Sprint(m.Values["sequence"]))
			require.Equal(t, strings.Contains(key, "orders"), err == nil, "a relayed entry has a sequence")
			delete(m.Values, "sequence")
			out = append(out, m.Values)
		}
		return out
	}
	want, got := fields(direct.StreamKey(0)), fields(w.topic.StreamKey(0))
	require.Equal(t, want, got[:3])
	require.Equal(t, []map[string]any{want[1], want[0], want[2]}, got[3:])
}

func TestFaultyEventsWriteNothing(t *testing.T) {
	w := newWorld(t, 2)
	long := event("k", strings.Repeat("x", 201))
	err := InTx(t.Context(), w.pool, func(tx pgx.Tx) error {
		return Publish(t.Context(), tx, w.topic, event("k", "fine"), long, stream.Event{ID: "no type"})
	})
	require.ErrorIs(t, err, stream.ErrInvalid)
	require.ErrorContains(t, err, "id has 201 bytes")
	require.ErrorContains(t, err, "type is empty")
	require.ErrorIs(t, Publish(t.Context(), w.pool, stream.Topic{Name: "a b"}, event("k", "x")), stream.ErrInvalid)
	require.NoError(t, Publish(t.Context(), w.pool, w.topic), "nothing to publish")
	require.Zero(t, w.rows("outbox"))
	require.Zero(t, w.rows("topic"))
}

// rows counts the rows of a table.
func (w *world) rows(table string) (n int) {
	w.t.Helper()
	require.NoError(w.t, w.pool.QueryRow(w.t.Context(), query("SELECT count(*) FROM {schema}."+table)).Scan(&n))
	return n
}

func TestTopicIsDeclaredByItsFirstUseAndKeepsItsPartitions(t *testing.T) {
	w := newWorld(t, 4)
	w.publish(event("k", "1"))
	other := w.topic
	other.Partitions = 8
	for _, err := range []error{
		Publish(t.Context(), w.pool, other, event("k", "2")),
		Publish(t.Context(), w.pool, other, events("k", "2", "3")...),
		Declare(t.Context(), w.pool, other),
		Declare(t.Context(), w.pool, stream.Topic{Name: w.topic.Name, Namespace: w.topic.Namespace, Stream: "elsewhere"}),
	} {
		require.ErrorIs(t, err, stream.ErrPartitionMismatch)
	}
	require.NoError(t, Declare(t.Context(), w.pool, w.topic))
	require.Equal(t, 1, w.rows("outbox"))
}

func TestFirstUseInARolledBackTransactionDeclaresNothing(t *testing.T) {
	w := newWorld(t, 4)
	_ = InTx(t.Context(), w.pool, func(tx pgx.Tx) error {
		require.NoError(t, Publish(t.Context(), tx, w.topic, event("k", "1")))
		return context.Canceled
	})
	require.Zero(t, w.rows("topic"))
	w.publish(event("k", "1"))
	require.Equal(t, 1, w.rows("topic"))
}

func TestConcurrentFirstUsesOfATopicAllSucceed(t *testing.T) {
	w := newWorld(t, 4)
	errs := make(chan error, 8)
	for i := range 8 {
		go func() {
			errs <- InTx(t.Context(), w.pool, func(tx pgx.Tx) error {
				return Publish(t.Context(), tx, w.topic, event("k", fmt.Sprint(i)))
			})
		}()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
	require.Equal(t, 8, w.rows("outbox"))
}

func TestLargeBatchesAreSplitAndKeepTheirOrder(t *testing.T) {
	w := newWorld(t, 1)
	var all []stream.Event
	for i := range 2500 {
		all = append(all, event("k", fmt.Sprintf("%05d", i)))
	}
	big := event("k", "big")
	big.Data = make([]byte, stream.MaxData)
	for i := range 6 {
		big.ID = fmt.Sprintf("big%d", i)
		all = append(all, big)
	}
	w.publish(all...)
	start(t, w.relay())
	w.eventually(len(all))
	for i, id := range w.ids() {
		require.Equal(t, all[i].ID, id)
	}
}

// A batch that is copied leaves the rows that statements write, but for what each row draws for itself.
func TestCopiedEventsBecomeTheRowsThatStatementsWrite(t *testing.T) {
	w := newWorld(t, 16)
	ctx := stream.WithCause(t.Context(), stream.Event{ID: "cause", CorrelationID: "conversation"})
	all := make([]stream.Event, insertEvents+1)
	for i := range all {
		all[i] = event(fmt.Sprint("key ", i), fmt.Sprintf("%05d", i))
	}
	all[1].Key = ""
	all[2].Attributes = map[string]string{"tenant": "t<1>&", "empty": ""}
	all[3].Data, all[3].ContentType = nil, ""
	all[4].Source, all[4].Schema, all[4].Data = "shop", "v2", []byte{0, 255, '\\', '\n'}
	all[4].TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	all[5].Expires = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	all[6].Time = time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)

	written := func(publish func(*copyingTx) error) (rows []string) {
		begun, err := w.pool.Begin(ctx)
		require.NoError(t, err)
		tx := &copyingTx{Tx: begun}
		defer tx.Rollback(ctx)
		require.NoError(t, publish(tx))
		result, err := tx.Query(ctx, query(`
SELECT (to_jsonb(o) - '{id,created_at}'::text[] || jsonb_build_object('xid', xid = pg_current_xact_id(), 'now', created_at > now()))::text
FROM {schema}.outbox o ORDER BY id`))
		require.NoError(t, err)
		rows, err = pgx.CollectRows(result, pgx.RowTo[string])
		require.NoError(t, err)
		return rows
	}
	copied := written(func(tx *copyingTx) error {
		err := Publish(ctx, tx, w.topic, all...)
		require.EqualValues(t, len(all), tx.rows)
		return err
	})
	inserted := written(func(tx *copyingTx) error {
		err := Publish(ctx, struct{ Tx }{tx}, w.topic, all...) // which cannot copy
		require.Zero(t, tx.rows)
		return err
	})
	require.Len(t, copied, len(all))
	require.Equal(t, inserted, copied)

	require.NoError(t, Declare(ctx, w.pool, w.topic))
	other := w.topic
	other.Partitions = 8
	require.ErrorIs(t, Publish(ctx, w.pool, other, all...), stream.ErrPartitionMismatch)
	_, err := w.pool.Exec(ctx, query(`ALTER TABLE {schema}.outbox_row ADD CONSTRAINT refused CHECK (event_id <> '00900')`))
	require.NoError(t, err)
	require.ErrorContains(t, Publish(ctx, w.pool, w.topic, all...), "refused")
	require.Zero(t, w.rows("outbox"), "none without the other")
}

// copyingTx counts the rows that were copied.
type copyingTx struct {
	pgx.Tx
	rows int64
}

func (tx *copyingTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (n int64, err error) {
	n, err = tx.Tx.CopyFrom(ctx, table, columns, rows)
	tx.rows += n
	return n, err
}

func TestEventsTakeTheirCauseFromTheContext(t *testing.T) {
	w := newWorld(t, 1)
	ctx := stream.WithCause(t.Context(), stream.Event{ID: "cause", CorrelationID: "conversation"})
	require.NoError(t, Publish(ctx, w.pool, w.topic, event("k", "1")))
	var causation, correlation, source string
	require.NoError(t, w.pool.QueryRow(ctx, query(`SELECT causation_id, correlation_id, source FROM {schema}.outbox`)).Scan(&causation, &correlation, &source))
	require.Equal(t, []string{"cause", "conversation", "orders"}, []string{causation, correlation, source})
}

func TestDatabaseSQLTransactionsPublishToo(t *testing.T) {
	w := newWorld(t, 2)
	db, err := sql.Open("pgx", testenv.PostgresURL(t))
	require.NoError(t, err)
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, Lock(t.Context(), SQLTx(tx), w.topic, "k", "l"))
	e := event("k", "1")
	e.Attributes = map[string]string{"a": "b"}
	require.NoError(t, Publish(t.Context(), SQLTx(tx), w.topic, e, event("", "2")))
	require.NoError(t, PublishAfter(t.Context(), SQLTx(tx), w.topic, time.Hour, event("k", "3")))
	require.NoError(t, tx.Commit())
	require.Equal(t, 2, w.rows("outbox"))
	require.Equal(t, 1, w.rows("outbox_delayed"))
}

func TestPlainSQLPublishes(t *testing.T) {
	w := newWorld(t, 8)
	ctx := t.Context()
	_, err := w.pool.Exec(ctx, `SELECT streamkeel.declare_topic($1, 8, $2)`, w.topic.Name, w.topic.Namespace)
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `SELECT streamkeel.declare_topic($1, 4, $2)`, w.topic.Name, w.topic.Namespace)
	require.ErrorContains(t, err, "declared differently")
	insert := `INSERT INTO streamkeel.outbox (namespace, topic, key, type, data) VALUES ($1, $2, $3, $4, $5)`
	keys := []string{"alpha", "beta", "gamma", "ключ", ""}
	for _, key := range keys {
		_, err := w.pool.Exec(ctx, insert, w.topic.Namespace, w.topic.Name, key, "order.placed", []byte(`{"n":1}`))
		require.NoError(t, err)
	}
	start(t, w.relay())
	w.eventually(len(keys))
	seen := 0
	for p := range w.topic.Count() {
		for _, en := range w.entries(p) {
			seen++
			require.Equal(t, p, w.topic.Partition(&en.Event), "SQL and Go place key %q alike", en.Event.Key)
			require.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, en.Event.ID)
		}
	}
	require.Equal(t, len(keys), seen)

	for name, bad := range map[string][]any{
		"event_name":       {w.topic.Namespace, w.topic.Name, "k", "", []byte("x")},
		"event_key":        {w.topic.Namespace, w.topic.Name, strings.Repeat("k", 1025), "t", []byte("x")},
		"event_data":       {w.topic.Namespace, w.topic.Name, "k", "t", make([]byte, stream.MaxData+1)},
		"is not declared":  {w.topic.Namespace, "unknown", "k", "t", []byte("x")},
		"invalid byte seq": {w.topic.Namespace, w.topic.Name, "k", "t\x00", []byte("x")},
	} {
		_, err := w.pool.Exec(ctx, insert, bad...)
		require.ErrorContains(t, err, name)
	}
	for _, attributes := range []string{`[]`, `"x"`, `{"a":1}`, `{"A":"x"}`, `{"":"x"}`, `{"x":"` + strings.Repeat("y", 4097) + `"}`} {
		_, err := w.pool.Exec(ctx, `INSERT INTO streamkeel.outbox (namespace, topic, type, attributes) VALUES ($1, $2, 't', $3::text::jsonb)`,
			w.topic.Namespace, w.topic.Name, attributes)
		require.ErrorContains(t, err, "event_attributes", attributes)
	}
}

func TestPartitionsOfATopicSpreadOverTheShards(t *testing.T) {
	w := newWorld(t, 16)
	for i := range 400 {
		w.publish(event(fmt.Sprint(i), fmt.Sprint(i)))
	}
	rows, err := w.pool.Query(t.Context(), `SELECT shard, count(DISTINCT partition) FROM streamkeel.outbox GROUP BY shard`)
	require.NoError(t, err)
	n := 0
	var shard, partitions int
	_, err = pgx.ForEachRow(rows, []any{&shard, &partitions}, func() error {
		n++
		require.Equal(t, 2, partitions)
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 8, n)
}

func TestLockMakesTransactionsOfAKeyTakeTurns(t *testing.T) {
	w := newWorld(t, 1)
	ctx := t.Context()
	first, err := w.pool.Begin(ctx)
	require.NoError(t, err)
	defer first.Rollback(ctx)
	require.NoError(t, Lock(ctx, first, w.topic, "a", "b"))

	locked := make(chan error, 1)
	go func() {
		locked <- InTx(ctx, w.pool, func(tx pgx.Tx) error {
			if err := Lock(ctx, tx, w.topic, "b", "a", "a"); err != nil {
				return err
			}
			return Publish(ctx, tx, w.topic, event("a", "second"))
		})
	}()
	require.NoError(t, InTx(ctx, w.pool, func(tx pgx.Tx) error { return Lock(ctx, tx, w.topic, "c") }), "another key is free")
	require.Eventually(t, func() bool {
		var waiting int
		require.NoError(t, w.pool.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&waiting))
		return waiting == 1
	}, patience, 5*time.Millisecond)
	require.NoError(t, Publish(ctx, first, w.topic, event("a", "first")))
	require.NoError(t, first.Commit(ctx))
	require.NoError(t, <-locked)
	start(t, w.relay())
	w.eventually(2)
	require.Equal(t, []string{"first", "second"}, w.ids())
}

// statements counts what a connection is asked.
type statements struct{ n atomic.Int64 }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.n.Add(1)
	return ctx
}

func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestConnectionRemembersOnlyTopicsThatAreCommitted(t *testing.T) {
	w := newWorld(t, 4)
	ctx := t.Context()
	config := w.pool.Config().ConnConfig.Copy()
	seen := &statements{}
	config.Tracer = seen
	conn, err := pgx.ConnectConfig(ctx, config)
	require.NoError(t, err)
	defer conn.Close(ctx)
	publish := func(topic stream.Topic) (asked int64) {
		before := seen.n.Load()
		require.NoError(t, InTx(ctx, conn, func(tx pgx.Tx) error { return Publish(ctx, tx, topic, event("k", "x")) }))
		return seen.n.Load() - before - 2 // BEGIN and COMMIT
	}

	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	for range 3 { // the second finds what the first has declared
		require.NoError(t, Publish(ctx, tx, w.topic, event("k", "x")))
	}
	require.NoError(t, tx.Rollback(ctx))
	require.EqualValues(t, 4, publish(w.topic), "it looks, declares, looks and inserts")
	require.EqualValues(t, 1, w.rows("topic"))
	require.EqualValues(t, 2, publish(w.topic), "it looks and inserts")
	require.EqualValues(t, 1, publish(w.topic))
	require.EqualValues(t, 1, publish(w.topic))
	require.ErrorIs(t, Publish(ctx, tx, w.topic, event("k", "x")), pgx.ErrTxClosed)

	other := w.topic
	other.Partitions = 8
	require.ErrorIs(t, InTx(ctx, conn, func(tx pgx.Tx) error { return Publish(ctx, tx, other, event("k", "x")) }), stream.ErrPartitionMismatch)

	memory := conn.PgConn().CustomData()[memoryKey].(map[topicAsSaid]remembered)
	for said, m := range memory {
		m.until = time.Now()
		memory[said] = m
	}
	require.EqualValues(t, 2, publish(w.topic), "after a while it looks again")
	for i := range rememberTopics {
		memory[topicAsSaid{stream: fmt.Sprint(i)}] = remembered{}
	}
	publish(stream.Topic{Name: "another", Namespace: w.topic.Namespace})
	memory = conn.PgConn().CustomData()[memoryKey].(map[topicAsSaid]remembered)
	require.Less(t, len(memory), 2, "it does not grow without end")
}

// A role needs no more than docs/outbox.md says, and one that uses plain SQL cannot pass the checks by.
func TestRolesPublishWithTheRightsThatTheyNeed(t *testing.T) {
	w := newWorld(t, 4)
	ctx := t.Context()
	require.NoError(t, Declare(ctx, w.pool, w.topic))
	as := func(rights string, fn func(tx pgx.Tx) error) error {
		tx, err := w.pool.Begin(ctx)
		require.NoError(t, err)
		defer func() { require.NoError(t, tx.Rollback(ctx)) }() // the role too
		role := "streamkeel_test_" + strings.ToLower(w.topic.Namespace)
		_, err = tx.Exec(ctx, query(strings.ReplaceAll("CREATE ROLE $; GRANT USAGE ON SCHEMA {schema} TO $;"+rights+"; SET LOCAL ROLE $", "$", role)))
		require.NoError(t, err)
		return fn(tx)
	}
	plain := func(table string) func(pgx.Tx) error {
		return func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, query(`INSERT INTO {schema}.`+table+` (namespace, topic, key, type) VALUES ($1, $2, 'k', 't')`), w.topic.Namespace, w.topic.Name)
			return err
		}
	}
	const door = "GRANT INSERT ON {schema}.outbox TO $"
	require.NoError(t, as(door, plain("outbox")))
	require.ErrorContains(t, as(door, plain("outbox_row")), "permission denied")
	require.ErrorContains(t, as("CREATE SCHEMA own AUTHORIZATION $; GRANT SELECT ON {schema}.outbox_row TO $", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, query(`CREATE VIEW own.door AS SELECT * FROM {schema}.outbox_row;
			CREATE TRIGGER pass INSTEAD OF INSERT ON own.door FOR EACH ROW EXECUTE FUNCTION {schema}.outbox_place()`))
		return err
	}), "permission denied for function ")

	topics := []stream.Topic{w.topic, {Name: "first-use", Namespace: w.topic.Namespace}}
	for _, topic := range topics {
		require.NoError(t, as(`GRANT INSERT ON {schema}.outbox_row TO $; GRANT SELECT, INSERT ON {schema}.topic TO $; GRANT USAGE ON SEQUENCE {schema}.outbox_id TO $`,
			func(tx pgx.Tx) error { return Publish(ctx, tx, topic, event("k", "x"), event("k", "y")) }))
		require.NoError(t, as(`GRANT INSERT ON {schema}.outbox_delayed TO $; GRANT SELECT, INSERT ON {schema}.topic TO $; GRANT USAGE ON SEQUENCE {schema}.outbox_id TO $`,
			func(tx pgx.Tx) error { return PublishAfter(ctx, tx, topic, time.Hour, event("k", "x")) }))
	}
}
