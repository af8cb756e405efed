package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// What the outbox costs the business: clients of pgbench update a row and write an event, one a transaction, into the outbox
// or into a plain table.
const (
	businessClients = 8
	businessTime    = 20 * time.Second

	businessTables = `
CREATE TABLE account (id integer PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 80);
INSERT INTO account SELECT i, 0 FROM generate_series(1, 100000) i;
CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now(),
	namespace text NOT NULL, topic text NOT NULL, partition integer NOT NULL, key text NOT NULL, event_id text NOT NULL,
	type text NOT NULL, source text NOT NULL, time timestamptz, content_type text, schema text,
	correlation_id text, causation_id text, traceparent text, expires timestamptz, attributes jsonb, data bytea NOT NULL);
ANALYZE account`

	// The parameters are those of Publish's statement.
	insertPlain = `
INSERT INTO plain (namespace, topic, partition, key, event_id, type, source, time, content_type, schema, correlation_id, causation_id,
	traceparent, expires, attributes, data)
VALUES ($1::text, $2::text, $4::integer, $6::text, $7::text, $8::text, $9::text, $10::timestamptz, nullif($11::text, ''), nullif($12::text, ''),
	nullif($13::text, ''), nullif($14::text, ''), nullif($15::text, ''), $16::timestamptz, nullif($17::text, '')::jsonb, $18::bytea)`

	keyParameter = "$6"
)

// recorder is a transaction that keeps what Publish would run.
type recorder struct {
	*pgxpool.Pool
	sql  string
	args []any
}

func (r *recorder) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	r.sql, r.args = sql, args
	return pgconn.NewCommandTag("INSERT 0 1"), nil
}

// businessCost runs the transactions, and returns how many a second.
func businessCost(insert string, withRelay bool) func(context.Context, *env) (float64, error) {
	return func(ctx context.Context, e *env) (float64, error) {
		return withDatabase(ctx, func(pool *pgxpool.Pool) (v float64, err error) {
			if _, err := pool.Exec(ctx, businessTables); err != nil {
				return 0, err
			}
			topic := e.topic()
			if err := outbox.Declare(ctx, pool, topic); err != nil {
				return 0, err
			}
			published := recorder{Pool: pool}
			if err := outbox.Publish(ctx, &published, topic, e.events[0]); err != nil {
				return 0, err
			}
			if insert != "" {
				published.sql = insert
			}
			if !withRelay {
				return pgbench(ctx, pool, published, e.scale)
			}
			relay, err := relayOn(pool, e, nil)
			if err != nil {
				return 0, err
			}
			stop := running(ctx, relay.Run)
			v, err = pgbench(ctx, pool, published, e.scale)
			if err == nil {
				err = drained(ctx, pool, e, topic)
			}
			return v, errors.Join(err, stop())
		})
	}
}

// drained waits until the relay has published what there is, and notes how far behind it was when the transactions ended: what it
// did not do meanwhile they did not bear.
func drained(ctx context.Context, pool *pgxpool.Pool, e *env, topic stream.Topic) error {
	var rows int64
	length := func() int64 { return e.rdb.XLen(ctx, topic.StreamKey(0)).Val() }
	entries := length()
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM streamkeel.outbox`).Scan(&rows); err != nil {
		return err
	}
	e.remark = fmt.Sprintf(" (the relay was %d of %d rows behind at the end)", rows-entries, rows)
	for deadline := time.Now().Add(time.Minute); length() < rows; {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d rows were published within a minute", length(), rows)
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

var (
	parameter = regexp.MustCompile(`\$\d+`)
	tps       = regexp.MustCompile(`(?m)^tps = ([\d.]+)`)
)

// pgbench runs an UPDATE and the statement in each transaction, with the key of the row that is updated.
func pgbench(ctx context.Context, pool *pgxpool.Pool, r recorder, scale float64) (float64, error) {
	folder, err := servers.FindPostgres()
	if err != nil {
		return 0, err
	}
	server, err := filepath.EvalSymlinks(filepath.Join(folder, "postgres")) // pgbench may have no link beside it
	if err != nil {
		return 0, err
	}
	program := filepath.Join(filepath.Dir(server), "pgbench")
	if _, err := os.Stat(program); err != nil {
		return 0, fmt.Errorf("business-cost needs pgbench beside %s: install what brings Postgres's client programs, or set POSTGRES_BIN_DIR: %w", server, err)
	}
	seconds := max(1, int(businessTime.Seconds()*scale))
	args := []string{"-n", "-M", "prepared", "-c", strconv.Itoa(businessClients), "-j", "2", "-T", strconv.Itoa(seconds)}
	statement := parameter.ReplaceAllStringFunc(r.sql, func(p string) string {
		if p == keyParameter {
			return ":id"
		}
		n, _ := strconv.Atoi(p[1:])
		text := pgText(r.args[n-1])
		if text == "" { // no value of a variable
			return "''"
		}
		if text == null {
			return null
		}
		args = append(args, "-D", "p"+p[1:]+"="+text)
		return ":p" + p[1:]
	})
	script, err := os.CreateTemp("", "streamkeel-pgbench-*.sql")
	if err != nil {
		return 0, err
	}
	defer os.Remove(script.Name())
	_, err = fmt.Fprintf(script, "\\set id random(1, 100000)\nBEGIN;\nUPDATE account SET balance = balance + 1 WHERE id = :id;\n%s;\nCOMMIT;\n", statement)
	if err = errors.Join(err, script.Close()); err != nil {
		return 0, err
	}
	args = append(args, "-f", script.Name(), pool.Config().ConnString())
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	match := tps.FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("pgbench tells no tps:\n%s", out)
	}
	return strconv.ParseFloat(string(match[1]), 64)
}

const null = "NULL"

// pgText returns a parameter as Postgres reads it.
func pgText(v any) string {
	switch v := v.(type) {
	case *time.Time:
		if v == nil {
			return null
		}
		return v.Format(time.RFC3339Nano)
	case []byte:
		return fmt.Sprintf(`\x%x`, v)
	default:
		return fmt.Sprint(v)
	}
}
