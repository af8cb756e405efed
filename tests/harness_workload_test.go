package tests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

const (
	writers  = 16
	accounts = 24
)

// truth is what was committed, written in the same transactions as the events: what a Postgres that crashed
// or was restored still has of it, is true.
const workloadTables = `
CREATE TABLE account (key text PRIMARY KEY, version int NOT NULL);
CREATE TABLE truth (id text PRIMARY KEY, key text NOT NULL, version int NOT NULL);
CREATE TABLE scratch (n int);
CREATE TABLE ledger (place bigserial PRIMARY KEY, id text NOT NULL, key text NOT NULL, version int NOT NULL)`

func (h *harness) createTables() {
	_, err := h.pool.Exec(h.t.Context(), workloadTables)
	require.NoError(h.t, err)
	for i := range accounts {
		_, err := h.pool.Exec(h.t.Context(), `INSERT INTO account VALUES ($1, 0)`, account(i))
		require.NoError(h.t, err)
	}
	_, err = h.pool.Exec(h.t.Context(), `INSERT INTO account VALUES ('slow', 0)`)
	require.NoError(h.t, err)
	require.NoError(h.t, outbox.Declare(h.t.Context(), h.pool, h.topic))
}

func account(i int) string { return fmt.Sprintf("account-%02d", i) }

// change moves each account n versions on, which locks it, and publishes an event for every version.
func (h *harness) change(ctx context.Context, tx pgx.Tx, n int, keys ...string) error {
	var ids, subjects []string
	var versions []int
	var events []stream.Event
	for _, key := range keys {
		var last int
		if err := tx.QueryRow(ctx, `UPDATE account SET version = version + $2 WHERE key = $1 RETURNING version`, key, n).Scan(&last); err != nil {
			return err
		}
		for version := last - n + 1; version <= last; version++ {
			e := stream.NewEvent("changed", key, stream.ContentTypeJSON, []byte(strconv.Itoa(version)))
			e.ID = fmt.Sprintf("%s/%d/%d", key, version, h.serial.Add(1)) // a version that was rolled back comes again
			events = append(events, e)
			ids, subjects, versions = append(ids, e.ID), append(subjects, key), append(versions, version)
		}
	}
	if _, err := tx.Exec(ctx, `INSERT INTO truth SELECT * FROM unnest($1::text[], $2::text[], $3::int[])`, ids, subjects, versions); err != nil {
		return err
	}
	return outbox.Publish(ctx, tx, h.topic, events...)
}

// whileWriting runs fn while 16 writers change accounts, and returns when all of them have ended.
func (h *harness) whileWriting(fn func()) {
	ctx, stop := context.WithCancel(h.t.Context())
	var wg sync.WaitGroup
	for n := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), h.serial.Load()))
			write := h.writeOnce
			if n == 0 {
				write = h.writeSlowly
			}
			for ctx.Err() == nil {
				// What is under way is finished: a commit that is cut off may come after somebody looked what there is.
				if err := write(h.t.Context(), random); err != nil && !errors.Is(err, errRollback) { // Postgres is away
					pause(ctx, tick)
				}
			}
		})
	}
	defer wg.Wait()
	defer stop()
	fn()
}

var errRollback = errors.New("rolled back on purpose")

// writeOnce is a business transaction as they come: some write something, and so have their number, long before they lock
// an account; some do not wait for the disk; some are rolled back.
func (h *harness) writeOnce(ctx context.Context, random *rand.Rand) error {
	return pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		if random.IntN(4) == 0 {
			if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
				return err
			}
		}
		if random.IntN(2) == 0 {
			if _, err := tx.Exec(ctx, `INSERT INTO scratch VALUES (1)`); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, random.Float64()/20); err != nil {
			return err
		}
		keys := []string{account(random.IntN(accounts)), account(random.IntN(accounts))}
		slices.Sort(keys) // or two transactions would wait for each other
		if err := h.change(ctx, tx, 1, slices.Compact(keys)...); err != nil {
			return err
		}
		if random.IntN(10) == 0 {
			return errRollback
		}
		return nil
	})
}

// writeSlowly is a transaction that is open for long, with events from its start and from its end.
func (h *harness) writeSlowly(ctx context.Context, random *rand.Rand) error {
	return pgx.BeginFunc(ctx, h.pool, func(tx pgx.Tx) error {
		if err := h.change(ctx, tx, 1, "slow"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, random.Float64()*h.slow.Seconds()); err != nil {
			return err
		}
		return h.change(ctx, tx, 1, "slow")
	})
}

// burst commits, in one transaction, more than one page of events for some partition.
func (h *harness) burst() {
	h.t.Helper()
	keys := make([]string, accounts)
	for i := range keys {
		keys[i] = account(i)
	}
	require.NoError(h.t, pgx.BeginFunc(h.t.Context(), h.pool, func(tx pgx.Tx) error {
		return h.change(h.t.Context(), tx, burstOfKey, keys...)
	}))
}

// A page is 500 rows, and one of the partitions has a third of the accounts or more.
const burstOfKey = 520 * partitions / accounts

func (h *harness) committed() []said { return h.read(`SELECT id, key, version FROM truth`) }
func (h *harness) inLedger() []said {
	return h.read(`SELECT id, key, version FROM ledger ORDER BY place`)
}

func (h *harness) read(query string) []said {
	h.t.Helper()
	rows, err := h.pool.Query(h.t.Context(), query)
	require.NoError(h.t, err)
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s said, err error) {
		err = row.Scan(&s.id, &s.key, &s.version)
		return s, err
	})
	require.NoError(h.t, err)
	return all
}

// pause waits for d, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
