package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver that migrations are applied with
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/migrations"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// From the outbox to the stream: draining rows with a payload of 256 bytes, and, at 500 transactions a second, from the
// commit to the handler.
const (
	relayRows   = 200_000
	commitEvery = 2 * time.Millisecond
	commitPools = 4 // writers
)

// What the hand-written loop reaches on an idle machine with 2 cores, in rows a second.
const idleRelay = 67_000

const postgresVar = "STREAMKEEL_TEST_POSTGRES_URL"

// withDatabase calls fn with an empty outbox, in a database of its own.
func withDatabase(ctx context.Context, fn func(*pgxpool.Pool) (float64, error)) (v float64, err error) {
	server := os.Getenv(postgresVar)
	if server == "" {
		return 0, errors.New(postgresVar + " is not set: run `make bench`, which starts a server")
	}
	address, err := url.Parse(server)
	if err != nil {
		return 0, fmt.Errorf("%s: it is no URL", postgresVar)
	}
	admin, err := pgx.Connect(ctx, server)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, admin.Close(ctx)) }()
	name := "bench_" + uuid.NewString()[:8]
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return 0, err
	}
	defer func() {
		_, dropErr := admin.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
		err = errors.Join(err, dropErr)
	}()
	address.Path = "/" + name
	db, err := sql.Open("pgx", address.String())
	if err != nil {
		return 0, err
	}
	if err := errors.Join(migrations.Up(ctx, db), db.Close()); err != nil {
		return 0, err
	}
	config, err := pgxpool.ParseConfig(address.String())
	if err != nil {
		return 0, err
	}
	config.MaxConns = 12
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, handTable); err != nil {
		return 0, err
	}
	return fn(pool)
}

// running runs a loop until stop is called.
func running(ctx context.Context, run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	return func() error {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}

// published counts what a relay tells.
type published struct {
	rows, want int64
	all        chan struct{}
}

func (p *published) Observe(_ context.Context, o outbox.Observation) {
	if o.Moment == outbox.Published && atomic.AddInt64(&p.rows, o.Rows) == p.want {
		close(p.all)
	}
}

func relayOn(pool *pgxpool.Pool, e *env, observer outbox.Observer) (*outbox.Relay, error) {
	return outbox.NewRelay(pool, e.rdb, outbox.RelayConfig{Observer: observer, Logger: slog.New(slog.DiscardHandler), DisableUpkeep: true})
}

func ourRelay(ctx context.Context, e *env) (float64, error) {
	return withDatabase(ctx, func(pool *pgxpool.Pool) (float64, error) {
		topic, n := e.topic(), e.n(relayRows)
		for batch := range slices.Chunk(e.events[:n], 1000) {
			if err := outbox.Publish(ctx, pool, topic, batch...); err != nil {
				return 0, err
			}
		}
		if _, err := pool.Exec(ctx, `ANALYZE streamkeel.outbox_row`); err != nil {
			return 0, err
		}
		seen := &published{want: int64(n), all: make(chan struct{})}
		relay, err := relayOn(pool, e, seen)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		stop := running(ctx, relay.Run)
		select {
		case <-seen.all:
		case <-time.After(5 * time.Minute):
			return 0, errors.Join(errors.New("not every row was published within 5 minutes"), stop())
		}
		return rate(n, began), stop()
	})
}

// The relay that a good engineer writes: rows are taken by deleting them, published in one pipeline, and the transaction
// commits.
const (
	handTable = `
CREATE TABLE hand_outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, stream text NOT NULL, key text NOT NULL, event_id text NOT NULL,
	type text NOT NULL, source text NOT NULL, time timestamptz NOT NULL, content_type text NOT NULL, correlation text NOT NULL, causation text NOT NULL, data bytea NOT NULL)`

	handInsert = `
INSERT INTO hand_outbox (stream, key, event_id, type, source, time, content_type, correlation, causation, data)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`

	handTake = `
DELETE FROM hand_outbox WHERE id = ANY (ARRAY(SELECT id FROM hand_outbox ORDER BY id LIMIT 500 FOR UPDATE SKIP LOCKED))
RETURNING id, stream, key, event_id, type, source, time, content_type, correlation, causation, data`
)

type handRow struct {
	id     int64
	stream string
	event  stream.Event
}

// handRelayOnce publishes up to 500 rows, and returns how many.
func handRelayOnce(ctx context.Context, pool *pgxpool.Pool, e *env) (n int, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, handTake)
		if err != nil {
			return err
		}
		taken, err := pgx.AppendRows(make([]handRow, 0, 500), rows, func(row pgx.CollectableRow) (r handRow, err error) {
			ev := &r.event
			err = row.Scan(&r.id, &r.stream, &ev.Key, &ev.ID, &ev.Type, &ev.Source, &ev.Time, &ev.ContentType, &ev.CorrelationID, &ev.CausationID, &ev.Data)
			return r, err
		})
		if n = len(taken); err != nil || n == 0 {
			return err
		}
		slices.SortFunc(taken, func(a, b handRow) int { return int(a.id - b.id) })
		pipe := e.rdb.Pipeline()
		for i := range taken {
			pipe.XAdd(ctx, handXAdd(taken[i].stream, &taken[i].event))
		}
		_, err = pipe.Exec(ctx)
		return err
	})
	return n, err
}

func handRelay(ctx context.Context, e *env) (float64, error) {
	return withDatabase(ctx, func(pool *pgxpool.Pool) (float64, error) {
		key, n := e.topic().StreamKey(0), e.n(relayRows)
		rows := pgx.CopyFromSlice(n, func(i int) ([]any, error) {
			ev := &e.events[i]
			return []any{key, ev.Key, ev.ID, ev.Type, ev.Source, ev.Time, ev.ContentType, ev.CorrelationID, ev.CausationID, ev.Data}, nil
		})
		columns := []string{"stream", "key", "event_id", "type", "source", "time", "content_type", "correlation", "causation", "data"}
		if _, err := pool.CopyFrom(ctx, pgx.Identifier{"hand_outbox"}, columns, rows); err != nil {
			return 0, err
		}
		if _, err := pool.Exec(ctx, `ANALYZE hand_outbox`); err != nil {
			return 0, err
		}
		began := time.Now()
		for done := 0; done < n; {
			m, err := handRelayOnce(ctx, pool, e)
			if err != nil {
				return 0, err
			}
			done += m
		}
		return rate(n, began), nil
	})
}

// watermillRelay forwards rows by watermill's forwarder, from watermill-sql to watermill-redisstream.
func watermillRelay(ctx context.Context, e *env) (float64, error) {
	return withDatabase(ctx, func(pool *pgxpool.Pool) (v float64, err error) {
		const outboxTopic = "outbox"
		key, n := e.topic().StreamKey(0), e.n(relayRows/peerShare)
		db := wsql.BeginnerFromPgx(pool)
		in, err := wsql.NewPublisher(db, wsql.PublisherConfig{SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, AutoInitializeSchema: true}, nil)
		if err != nil {
			return 0, err
		}
		wrapped := forwarder.NewPublisher(in, forwarder.PublisherConfig{ForwarderTopic: outboxTopic})
		messages := make([]*message.Message, n)
		for i := range messages {
			messages[i] = watermillMessage(&e.events[i])
		}
		for batch := range slices.Chunk(messages, batchSize) {
			if err := wrapped.Publish(key, batch...); err != nil {
				return 0, err
			}
		}
		rows, err := wsql.NewSubscriber(db, wsql.SubscriberConfig{
			ConsumerGroup: "g", SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
		}, watermill.NopLogger{})
		if err != nil {
			return 0, err
		}
		out, err := e.watermillPublisher()
		if err != nil {
			return 0, err
		}
		forward, err := forwarder.NewForwarder(rows, out, watermill.NopLogger{}, forwarder.Config{ForwarderTopic: outboxTopic})
		if err != nil {
			return 0, err
		}
		began := time.Now()
		stop := running(ctx, forward.Run)
		for int(e.rdb.XLen(ctx, key).Val()) < n && err == nil {
			err = sleep(ctx, 5*time.Millisecond)
		}
		v = rate(n, began)
		return v, errors.Join(err, stop(), rows.Close(), out.Close(), in.Close())
	})
}

// commits commits an event in a transaction of its own, each when it is its time, and returns the percentile of how
// long they take to the handler.
func (e *env) commits(ctx context.Context, topic stream.Topic, p int, write func(pgx.Tx, stream.Event) error, pool *pgxpool.Pool, committed func()) (float64, error) {
	l := newLatencies(e.n(latencyEvents))
	stop, err := e.consumer(ctx, topic, consumergroup.Config{}, func(event stream.Event) { l.arrived(event.Key) })
	if err != nil {
		return 0, err
	}
	began := time.Now()
	g, writing := errgroup.WithContext(ctx)
	for w := range commitPools {
		g.Go(func() error {
			for i := w; i < len(l.sent); i += commitPools {
				if err := sleep(writing, time.Until(began.Add(time.Duration(i)*commitEvery))); err != nil {
					return err
				}
				event := e.events[i]
				event.Key = strconv.Itoa(i)
				err := pgx.BeginFunc(writing, pool, func(tx pgx.Tx) error {
					if err := write(tx, event); err != nil {
						return err
					}
					l.mu.Lock()
					defer l.mu.Unlock()
					l.sent[i] = time.Now() // all that is left is the commit
					return nil
				})
				if err != nil {
					return err
				}
				committed()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, errors.Join(err, stop())
	}
	select {
	case <-l.all:
	case <-time.After(time.Minute):
		err = errors.New("not every event arrived within a minute")
	}
	if err = errors.Join(err, stop()); err != nil {
		return 0, err
	}
	return l.percentile(p), nil
}

// ourCommit measures a relay that polls, or one that is woken after each commit.
func ourCommit(p int, committed func()) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		return withDatabase(ctx, func(pool *pgxpool.Pool) (float64, error) {
			topic := e.topic()
			if err := outbox.Declare(ctx, pool, topic); err != nil {
				return 0, err
			}
			relay, err := relayOn(pool, e, nil)
			if err != nil {
				return 0, err
			}
			stop := running(ctx, relay.Run)
			v, err := e.commits(ctx, topic, p, func(tx pgx.Tx, event stream.Event) error { return outbox.Publish(ctx, tx, topic, event) }, pool, committed)
			return v, errors.Join(err, stop())
		})
	}
}

// handPoll is how long the hand-written loop waits when there was nothing.
const handPoll = 5 * time.Millisecond

func handCommit(p int) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		return withDatabase(ctx, func(pool *pgxpool.Pool) (float64, error) {
			topic := e.topic()
			key := topic.StreamKey(0)
			stop := running(ctx, func(ctx context.Context) error {
				for {
					n, err := handRelayOnce(ctx, pool, e)
					if err == nil && n == 0 {
						err = sleep(ctx, handPoll)
					}
					if err != nil {
						return err
					}
				}
			})
			v, err := e.commits(ctx, topic, p, func(tx pgx.Tx, ev stream.Event) error {
				_, err := tx.Exec(ctx, handInsert, key, ev.Key, ev.ID, ev.Type, ev.Source, ev.Time, ev.ContentType, ev.CorrelationID, ev.CausationID, ev.Data)
				return err
			}, pool, noWake)
			return v, errors.Join(err, stop())
		})
	}
}

func noWake() {}
