package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/inbox"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

func TestEventThatIsDeliveredAgainHasItsEffectOnce(t *testing.T) {
	w := newWorld(t)
	calls := atomic.Int64{}
	w.consume(w.handler(func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
		calls.Add(1)
		return record(ctx, tx, e)
	}))
	same, other := newEvent("same"), newEvent("other")
	elsewhere := same
	elsewhere.Source = "warehouse" // another event
	for _, e := range []stream.Event{same, same, other, same, elsewhere} {
		w.add(e)
	}
	w.settled(5)
	require.Equal(t, 2, w.effects("same"))
	require.Equal(t, 1, w.effects("other"))
	require.EqualValues(t, 3, calls.Load(), "a repeat is acked without a call")
	require.Equal(t, 3, w.rows())
}

func TestGroupsHandleAnEventOnceEach(t *testing.T) {
	w := newWorld(t)
	for _, g := range []string{"billing", "shipping", "billing"} {
		ctx := consumergroup.WithMetadata(t.Context(), consumergroup.Metadata{Group: g})
		require.NoError(t, w.handler(record).Handle(ctx, newEvent("e")))
	}
	require.Equal(t, 2, w.effects("e"))
}

func TestConcurrentDeliveriesHaveOneEffect(t *testing.T) {
	w := newWorld(t)
	calls := atomic.Int64{}
	h := w.handler(func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
		calls.Add(1)
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.05)`); err != nil { // the others come meanwhile
			return err
		}
		return record(ctx, tx, e)
	})
	var wg sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		wg.Go(func() { errs[i] = h.Handle(delivery(t.Context()), newEvent("e")) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.EqualValues(t, 1, calls.Load())
	require.Equal(t, 1, w.effects("e"))
}

func TestWhoWaitsForAnotherDeliveryHandlesTheEventIfThatFails(t *testing.T) {
	w := newWorld(t)
	entered, fail := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- w.handler(func(context.Context, pgx.Tx, stream.Event) error {
			close(entered)
			<-fail
			return errors.New("no luck")
		}).Handle(delivery(t.Context()), newEvent("e"))
	}()
	<-entered
	second := make(chan error, 1)
	go func() { second <- w.handler(record).Handle(delivery(t.Context()), newEvent("e")) }()
	require.Eventually(t, func() bool { return w.count(`SELECT count(*) FROM pg_locks WHERE NOT granted`) > 0 }, patience, 5*time.Millisecond)
	close(fail)
	require.EqualError(t, <-first, "no luck")
	require.NoError(t, <-second)
	require.Equal(t, 1, w.effects("e"))
}

func TestFailedAttemptLeavesNothing(t *testing.T) {
	w := newWorld(t)
	var found []int // what attempts found before they wrote
	w.consume(w.handler(func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
		m, _ := consumergroup.MetadataFrom(ctx)
		found = append(found, w.rows()+w.effects(e.ID)) // as another connection sees it
		if err := record(ctx, tx, e); err != nil {
			return err
		}
		switch m.Attempt {
		case 1:
			return errors.New("no luck")
		case 2:
			panic("no luck at all")
		}
		return nil
	}))
	w.add(newEvent("e"))
	w.settled(1)
	require.Equal(t, []int{0, 0, 0}, found)
	require.Equal(t, 1, w.effects("e"))
	require.Equal(t, 1, w.rows())
	require.Zero(t, w.letters())
}

func TestSwallowedErrorOfAStatementIsNoSuccess(t *testing.T) {
	w := newWorld(t)
	err := w.handler(func(ctx context.Context, tx pgx.Tx, _ stream.Event) error {
		_, _ = tx.Exec(ctx, `SELECT 1/0`)
		return nil
	}).Handle(delivery(t.Context()), newEvent("e"))
	require.ErrorIs(t, err, pgx.ErrTxCommitRollback)
	require.Equal(t, consumergroup.Transient, consumergroup.Classify(err))
	require.Zero(t, w.rows())
}

func TestLostTransactionIsRunAgain(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		id, code    string
		lost, calls int
		ok          bool
	}{
		{"serialization", "40001", 3, 4, true},
		{"deadlock", "40P01", 1, 2, true},
		{"hopeless", "40001", 99, 5, false},
		{"another fault", "22012", 99, 1, false},
	} {
		calls := 0
		err := w.handler(func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
			if calls++; calls <= tt.lost {
				_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE 'lost' USING ERRCODE = '`+tt.code+`'; END $$`)
				return err
			}
			return record(ctx, tx, e)
		}).Handle(delivery(t.Context()), newEvent(tt.id))
		require.Equal(t, tt.ok, err == nil, "%s: %v", tt.id, err)
		require.Equal(t, tt.calls, calls, tt.id)
		require.Equal(t, consumergroup.Transient, consumergroup.Classify(err), tt.id)
	}
}

func TestFailuresOfPostgresAndOfTheHandlerAreToldApart(t *testing.T) {
	w := newWorld(t)
	kill := func(ctx context.Context, tx pgx.Tx) error {
		_, err := w.pool.Exec(ctx, `SELECT pg_terminate_backend($1)`, tx.Conn().PgConn().PID())
		return err
	}
	for name, tt := range map[string]struct {
		fn   func(context.Context, pgx.Tx, stream.Event) error
		want consumergroup.Class
	}{
		"connection lost before a statement": {func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
			return errors.Join(kill(ctx, tx), record(ctx, tx, e))
		}, consumergroup.UnavailableError},
		"connection lost before the commit": {func(ctx context.Context, tx pgx.Tx, e stream.Event) error {
			return errors.Join(record(ctx, tx, e), kill(ctx, tx))
		}, consumergroup.UnavailableError},
		"a statement takes longer than the handler allows it": {func(ctx context.Context, tx pgx.Tx, _ stream.Event) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			defer cancel()
			_, err := tx.Exec(ctx, `SELECT pg_sleep(60)`)
			return err
		}, consumergroup.Transient},
		"another service is away": {func(context.Context, pgx.Tx, stream.Event) error {
			return &timeoutError{}
		}, consumergroup.Transient},
		"handler gives up": {func(context.Context, pgx.Tx, stream.Event) error {
			return consumergroup.Permanent(errors.New("no such customer"))
		}, consumergroup.PermanentError},
	} {
		err := w.handler(tt.fn).Handle(delivery(t.Context()), newEvent("e"))
		require.Error(t, err, name)
		require.Equal(t, tt.want, consumergroup.Classify(err), "%s: %v", name, err)
	}
	require.Zero(t, w.rows())
}

type timeoutError struct{}

func (*timeoutError) Error() string   { return "i/o timeout" }
func (*timeoutError) Timeout() bool   { return true }
func (*timeoutError) Temporary() bool { return true }

func TestHandlerThatRunsIntoItsTimeoutFails(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(delivery(t.Context()), 3*time.Second)
	defer cancel()
	err := w.handler(func(ctx context.Context, tx pgx.Tx, _ stream.Event) error {
		_, err := tx.Exec(ctx, `SELECT pg_sleep(600)`)
		return err
	}).Handle(ctx, newEvent("e"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, consumergroup.Transient, consumergroup.Classify(err), "the handler's fault, and an attempt")
}

func TestNoConnectionIsAnOutageAndNoAttempt(t *testing.T) {
	t.Parallel()
	w := worldOn(t, testenv.Postgres(t, func(c *pgxpool.Config) { c.MaxConns = 1 }))
	held, err := w.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer held.Release()
	ctx, cancel := context.WithTimeout(delivery(t.Context()), 20*time.Millisecond)
	defer cancel()
	err = w.handler(record).Handle(ctx, newEvent("e"))
	require.Equal(t, consumergroup.UnavailableError, consumergroup.Classify(err), "%v", err)
}

func TestMissingTableIsAnOutageThatSaysWhatHelps(t *testing.T) {
	w := newWorld(t)
	_, err := w.pool.Exec(t.Context(), `DROP TABLE streamkeel.inbox`)
	require.NoError(t, err)
	err = w.handler(record).Handle(delivery(t.Context()), newEvent("e"))
	require.ErrorContains(t, err, "apply the migrations")
	require.Equal(t, consumergroup.UnavailableError, consumergroup.Classify(err), "no event goes to the dead letters for it")
}

func TestOnceTakesPartInATransactionOfDatabaseSQL(t *testing.T) {
	newWorld(t)
	db, err := sql.Open("pgx", testenv.PostgresURL(t))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	for _, step := range []struct{ commit, first bool }{{false, true}, {true, true}, {true, false}} {
		tx, err := db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		first, err := inbox.Once(t.Context(), outbox.SQLTx(tx), group, newEvent("e"))
		require.NoError(t, err)
		require.Equal(t, step.first, first)
		if step.commit {
			require.NoError(t, tx.Commit())
		} else {
			require.NoError(t, tx.Rollback())
		}
	}
}

func TestOnceRefusesWhatCannotBeToldApart(t *testing.T) {
	w := newWorld(t)
	_, err := inbox.Once(t.Context(), w.pool, "no group", newEvent("e"))
	require.EqualError(t, err, `inbox: group "no group" is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}`)
	_, err = inbox.Once(t.Context(), w.pool, group, newEvent(""))
	require.ErrorIs(t, err, stream.ErrInvalid)
	nowhere := newEvent("e")
	nowhere.Source = ""
	_, err = inbox.Once(t.Context(), w.pool, group, nowhere)
	require.ErrorIs(t, err, stream.ErrInvalid)
	require.ErrorContains(t, err, "source is empty")
	require.ErrorContains(t, w.handler(record).Handle(t.Context(), newEvent("e")), "WithMetadata")
	require.Zero(t, w.rows())
}

func TestEventWithoutSourceHasTheTopicsName(t *testing.T) {
	w := newWorld(t)
	e := newEvent("e")
	e.Source = ""
	require.NoError(t, w.handler(record).Handle(delivery(t.Context()), e))
	require.Equal(t, 1, w.count(`SELECT count(*) FROM streamkeel.inbox WHERE source = 'orders'`))
}

type order struct {
	N int `json:"n"`
}

var orderPlaced = stream.Define[order]("order.placed")

func TestHandleGivesTheDecodedEventAndTheTransaction(t *testing.T) {
	w := newWorld(t)
	mux := consumergroup.NewMux()
	var got []int
	inbox.Handle(mux, w.pool, orderPlaced, func(ctx context.Context, tx pgx.Tx, e stream.Event, o order) error {
		got = append(got, o.N)
		return record(ctx, tx, e)
	})
	w.consume(mux, func(c *consumergroup.Config) { c.Concurrency = 1 })
	bad := newEvent("bad")
	bad.Data = []byte(`{"n":`)
	for _, e := range []stream.Event{newEvent("e"), newEvent("e"), bad} {
		w.add(e)
	}
	w.settled(3)
	require.Equal(t, []int{1}, got)
	require.EqualValues(t, 1, w.letters(), "what cannot be decoded")
	require.Equal(t, 1, w.rows())
}

func TestHandlersWithoutPoolOrFunctionAreRefusedAtTheStart(t *testing.T) {
	w := newWorld(t)
	require.Nil(t, inbox.Handler(w.pool, nil))
	require.Nil(t, inbox.Handler(nil, record))
	mux := consumergroup.NewMux()
	inbox.Handle[order](mux, w.pool, orderPlaced, nil)
	_, err := consumergroup.New(w.rdb, consumergroup.Config{Topics: []stream.Topic{w.topic}, Group: group, Handler: mux})
	require.ErrorContains(t, err, "the handler of order.placed is nil")
}
