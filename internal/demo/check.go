package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// Report is what a run proved.
type Report struct {
	Committed        int64    `json:"committed"`         // events of committed transactions
	Published        int64    `json:"published"`         // entries in the streams
	Handled          int64    `json:"handled"`           // effects in the ledgers of all groups
	Redelivered      int64    `json:"redelivered"`       // handler runs that were not an event's first hand-over
	Retried          int64    `json:"retried"`           // handler runs after one that failed
	Reclaimed        int64    `json:"reclaimed"`         // handler runs after a hand-over to a process that died
	DeadLettered     int64    `json:"dead_lettered"`     // letters when all was quiet
	Redriven         int      `json:"redriven"`          // letters that went back to their group
	SagasCompleted   int64    `json:"sagas_completed"`   // orders that were confirmed
	SagasCompensated int64    `json:"sagas_compensated"` // orders that were undone
	Lost             int64    `json:"lost"`              // committed events that a stream or a group lacks
	Duplicated       int64    `json:"duplicated"`        // entries and effects that are there more than once, or of no committed event
	OutOfOrder       int64    `json:"out_of_order"`      // events that the projection saw before one of the same key that was earlier
	ChecksFailed     int      `json:"checks_failed"`     // of Checks
	Seconds          float64  `json:"seconds"`
	Invalid          []string `json:"invalid"` // faults that did not bite: such a run proves nothing
	Checks           []Check  `json:"checks"`
	PostgresBytes    int64    `json:"postgres_bytes"`
	RedisBytes       int64    `json:"redis_bytes"`
	AppendOnlyBytes  int64    `json:"append_only_bytes"`
}

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Passed reports whether the run is valid and every check held.
func (r Report) Passed() bool { return r.ChecksFailed == 0 && len(r.Invalid) == 0 }

// judge says which faults did not bite.
func (r *Report) judge(f *faults) {
	r.Invalid = []string{}
	for _, fault := range []struct {
		bit  bool
		what string
	}{
		{f.heldByVictim > 0, "no worker was killed with deliveries in hand"},
		{f.shardsOrphand > 0 && f.takenOver, "no relay was killed whose shards another one took over"},
		{f.redisDied || f.d.site.redis == nil, "Redis was not restarted"},
		{r.Redelivered > 0, "nothing was redelivered"},
		{r.Retried > 0, "nothing was retried"},
		{r.Reclaimed > 0, "nothing was reclaimed"},
		{r.DeadLettered > 0, "nothing was dead-lettered"},
		{r.Redriven > 0, "nothing was redriven"},
		{r.SagasCompensated > 0, "no saga was compensated"},
		{len(f.d.producer.rolledBack) > 0, "no transaction was rolled back"},
	} {
		if !fault.bit {
			r.Invalid = append(r.Invalid, fault.what)
		}
	}
}

// checker compares what is in Postgres and Redis with what was committed. It trusts no counter of
// the run; that a transaction was rolled back is all that it is told.
type checker struct {
	d       *Demo
	letters []dlq.Letter // before they were redriven
	report  Report
}

func (c *checker) check(ctx context.Context) (Report, error) {
	for _, step := range []func(context.Context) error{
		c.streams, c.ledgers, c.rolledBack, c.order, c.projection, c.deadLetters, c.sagas, c.rest, c.counts,
	} {
		if err := step(ctx); err != nil {
			return c.report, fmt.Errorf("demo: check: %w", err)
		}
	}
	return c.report, nil
}

func (c *checker) say(ok bool, name, format string, args ...any) {
	c.report.Checks = append(c.report.Checks, Check{name, ok, fmt.Sprintf(format, args...)})
	if !ok {
		c.report.ChecksFailed++
	}
}

// query reads one row of numbers.
func (c *checker) query(ctx context.Context, sql string, args []any, into ...any) error {
	return c.d.pool.QueryRow(ctx, sql, args...).Scan(into...)
}

func (c *checker) ids(ctx context.Context, sql string, args ...any) (map[string]bool, error) {
	rows, err := c.d.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	ids := map[string]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids[id] = true
	}
	return ids, rows.Err()
}

// streams: what was committed is in the streams, each event once, and nothing else.
func (c *checker) streams(ctx context.Context) error {
	for _, t := range []struct {
		topic stream.Topic
		sql   string
	}{
		{c.d.topics.webhooks, `SELECT event_id FROM demo.delivery`},
		// The events that steps emitted are committed with the step's barrier row.
		{c.d.topics.orders, `SELECT event_id FROM demo.orders UNION ALL SELECT event_id FROM streamkeel.outbox
			WHERE topic = 'orders' AND type <> 'order.placed'`},
	} {
		committed, err := c.ids(ctx, t.sql)
		if err != nil {
			return err
		}
		seen, others, entries := make(map[string]bool, len(committed)), 0, 0
		versions, unordered := map[string]int64{}, 0
		reader, err := stream.NewReader(c.d.rdb, stream.ReaderConfig{Topic: t.topic})
		if err != nil {
			return err
		}
		for entry, err := range reader.Entries(ctx) {
			if err != nil {
				return err
			}
			entries++
			e := entry.Event
			if v := e.Attributes["version"]; v != "" {
				version, err := strconv.ParseInt(v, 10, 64)
				if err != nil || version <= versions[e.Key] {
					unordered++
				}
				versions[e.Key] = version
			}
			if !committed[e.ID] || seen[e.ID] {
				others++
			}
			seen[e.ID] = true
		}
		missing := 0
		for id := range committed {
			if !seen[id] {
				missing++
			}
		}
		c.report.Committed += int64(len(committed))
		c.report.Published += int64(entries)
		c.report.Lost += int64(missing)
		c.report.Duplicated += int64(others)
		c.say(missing == 0 && others == 0 && unordered == 0, "stream "+t.topic.Name+": what was committed, once, in order",
			"%d committed, %d entries: %d missing, %d repeated or never committed, %d out of order", len(committed), entries, missing, others, unordered)
	}
	return nil
}

const checkLedger = `
WITH done AS (SELECT event_id, count(*) AS n FROM demo.effect WHERE grp = $1 GROUP BY event_id)
SELECT (SELECT count(*) FROM demo.delivery d WHERE NOT EXISTS (SELECT FROM done WHERE done.event_id = d.event_id)),
	(SELECT coalesce(sum(n - 1), 0) FROM done),
	(SELECT count(*) FROM done WHERE NOT EXISTS (SELECT FROM demo.delivery d WHERE d.event_id = done.event_id)),
	(SELECT coalesce(sum(n), 0) FROM done)`

// The shop's ledger is the sagas' barrier rows; that a step had its effect once shows in the
// balances.
const checkShop = `
WITH committed AS (
	SELECT event_id, id AS saga FROM demo.orders
	UNION SELECT event_id, correlation_id FROM streamkeel.outbox WHERE topic = 'orders' AND type IN ('order.stock_reserved', 'order.charged')
)
SELECT (SELECT count(*) FROM committed c WHERE NOT EXISTS (SELECT FROM streamkeel.saga_step s WHERE s.saga_id = c.saga AND s.event_id = c.event_id AND s.op = 'action')),
	(SELECT count(*) FROM streamkeel.saga_step s WHERE s.op = 'action' AND NOT EXISTS (SELECT FROM committed c WHERE c.event_id = s.event_id)),
	(SELECT count(*) FROM streamkeel.saga_step s WHERE s.op = 'action')`

// ledgers: every group had its effect for every committed event, once.
func (c *checker) ledgers(ctx context.Context) error {
	for _, g := range []string{groupNotify, groupActivity} {
		var missing, repeated, foreign, all int64
		if err := c.query(ctx, checkLedger, []any{g}, &missing, &repeated, &foreign, &all); err != nil {
			return err
		}
		c.ledger(g, missing, repeated, foreign, all)
	}
	var missing, foreign, all int64
	if err := c.query(ctx, checkShop, nil, &missing, &foreign, &all); err != nil {
		return err
	}
	c.ledger(groupShop, missing, 0, foreign, all)
	return nil
}

func (c *checker) ledger(group string, missing, repeated, foreign, all int64) {
	c.report.Lost += missing
	c.report.Duplicated += repeated + foreign
	c.report.Handled += all
	c.say(missing == 0 && repeated == 0 && foreign == 0, "group "+group+": every committed event had its effect, once",
		"%d effects: %d missing, %d repeated, %d of events never committed", all, missing, repeated, foreign)
}

const checkRolledBack = `SELECT (SELECT count(*) FROM streamkeel.outbox WHERE event_id = ANY ($1))
	+ (SELECT count(*) FROM demo.effect WHERE event_id = ANY ($1)) + (SELECT count(*) FROM streamkeel.saga_step WHERE event_id = ANY ($1))`

// rolledBack: transactions that were rolled back published nothing.
func (c *checker) rolledBack(ctx context.Context) error {
	ids := c.d.producer.rolledBack
	var traces int64
	if err := c.query(ctx, checkRolledBack, []any{ids}, &traces); err != nil {
		return err
	}
	c.say(traces == 0, "transactions that were rolled back published nothing", "%d rolled back on purpose, %d traces of them", len(ids), traces)
	return nil
}

// order: the projection saw each key's events in the order of their commits.
func (c *checker) order(ctx context.Context) error {
	var keys int64
	if err := c.query(ctx, `SELECT count(*), coalesce(sum(violations), 0) FROM demo.key_seen`, nil, &keys, &c.report.OutOfOrder); err != nil {
		return err
	}
	c.say(c.report.OutOfOrder == 0, "projection: each key in the order of its commits", "%d keys, %d events out of order", keys, c.report.OutOfOrder)
	return nil
}

const checkProjection = `
SELECT count(*) FILTER (WHERE a.n IS DISTINCT FROM s.n), count(*)
FROM demo.activity a
FULL JOIN (SELECT repository, type, count(*) AS n FROM demo.delivery GROUP BY repository, type) s USING (repository, type)`

// projection: the read model equals a recount from the source.
func (c *checker) projection(ctx context.Context) error {
	var wrong, all int64
	if err := c.query(ctx, checkProjection, nil, &wrong, &all); err != nil {
		return err
	}
	c.say(wrong == 0 && all > 0, "projection: equals a recount of the source", "%d counts by repository and type, %d of them wrong", all, wrong)
	return nil
}

// deadLetters: the letters were the poison, and nothing else; after the redrive there are none.
func (c *checker) deadLetters(ctx context.Context) error {
	rows, err := c.d.pool.Query(ctx, `SELECT event_id, n FROM demo.delivery`)
	if err != nil {
		return err
	}
	defer rows.Close()
	poison := map[string]bool{}
	for rows.Next() {
		var id string
		var n int
		if err := rows.Scan(&id, &n); err != nil {
			return err
		}
		if c.d.dice.poison(n) {
			poison[id] = true
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	found, innocent := map[string]bool{}, 0
	for _, l := range c.letters {
		id := l.Entry.Event.ID
		if !poison[id] || found[id] || l.Group != groupNotify || l.Reason != dlq.ReasonAttempts {
			innocent++
		}
		found[id] = true
	}
	missing := 0
	for id := range poison {
		if !found[id] {
			missing++
		}
	}
	c.report.DeadLettered = int64(len(c.letters))
	c.say(missing == 0 && innocent == 0, "dead letters: exactly the poison", "%d poison events, %d letters: %d missing, %d that do not belong there",
		len(poison), len(c.letters), missing, innocent)
	left, err := c.d.letters(ctx)
	if err != nil {
		return err
	}
	c.say(len(left) == 0, "dead letters: a redrive without the fault empties them", "%d left", len(left))
	return nil
}

const checkSagas = `
SELECT count(*) FILTER (WHERE s.state = 'completed' AND o.state = 'confirmed'),
	count(*) FILTER (WHERE s.state = 'compensated' AND o.state = 'cancelled'), count(*)
FROM demo.orders o LEFT JOIN streamkeel.saga s ON s.flow = $1 AND s.saga_id = o.id`

const checkBalance = `
SELECT (SELECT count(*) FROM demo.stock s WHERE quantity <> 1000000
		- (SELECT coalesce(sum(quantity), 0) FROM demo.orders o WHERE o.sku = s.sku AND o.id = ANY ($1))),
	(SELECT count(*) FROM demo.account a WHERE cents <> 100000000
		- (SELECT coalesce(sum(cents), 0) FROM demo.orders o WHERE o.customer = a.customer AND o.id = ANY ($1)))
	+ (SELECT count(*) FROM demo.till t WHERE cents <>
		(SELECT coalesce(sum(cents), 0) FROM demo.orders o WHERE o.sku = t.sku AND o.id = ANY ($1))),
	(SELECT coalesce(sum(cents), 0) FROM demo.till), (SELECT count(*) FROM streamkeel.saga_timer)`

// sagas: every order was confirmed or undone, as its fate says; stock and money balance with the
// orders that were to be confirmed, whatever the sagas say of themselves.
func (c *checker) sagas(ctx context.Context) error {
	var confirmed, undone, all int64
	if err := c.query(ctx, checkSagas, []any{flowName}, &confirmed, &undone, &all); err != nil {
		return err
	}
	rows, err := c.d.pool.Query(ctx, `SELECT id, n FROM demo.orders`)
	if err != nil {
		return err
	}
	defer rows.Close()
	good := []string{}
	for rows.Next() {
		var id string
		var n int
		if err := rows.Scan(&id, &n); err != nil {
			return err
		}
		if !c.d.dice.declined(n) && !c.d.dice.undeliverable(n) {
			good = append(good, id)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	c.report.SagasCompleted, c.report.SagasCompensated = confirmed, undone
	c.say(confirmed == int64(len(good)) && confirmed+undone == all, "sagas: every one completed or compensated",
		"%d orders: %d confirmed (%d were to be), %d undone, %d in between", all, confirmed, len(good), undone, all-confirmed-undone)
	var stock, money, till, timers int64
	if err := c.query(ctx, checkBalance, []any{good}, &stock, &money, &till, &timers); err != nil {
		return err
	}
	c.say(stock == 0, "sagas: stock balances", "%d of 50 items differ", stock)
	c.say(money == 0, "sagas: money balances", "%d.%02d taken, %d of 250 accounts and tills differ", till/100, till%100, money)
	c.say(timers == 0, "sagas: no timer is left", "%d left", timers)
	return nil
}

// rest: nothing is pending, waits, or is left behind.
func (c *checker) rest(ctx context.Context) error {
	unpublished, err := c.d.unpublished(ctx)
	if err != nil {
		return err
	}
	status, err := outbox.ReadStatus(ctx, c.d.pool)
	if err != nil {
		return err
	}
	c.say(unpublished == 0 && status.Failed == 0, "outbox: nothing is unpublished", "%d rows, %d refused", unpublished, status.Failed)
	for _, g := range c.d.groups() {
		t, err := c.d.totals(ctx, g)
		if err != nil {
			return err
		}
		c.say(t.Pending == 0 && t.Retry == 0 && t.Due == 0 && t.LagKnown && t.Lag == 0 && t.Missing == 0, "group "+g.name+": nothing is left to do",
			"lag %d, pending %d, retry streams %d, due sets %d", t.Lag, t.Pending, t.Retry, t.Due)
	}
	names, err := c.d.names(ctx)
	if err != nil {
		return err
	}
	slices.Sort(names)
	c.say(len(names) == 0, "no consumer name is left behind", "%d left %v", len(names), slices.Compact(names))
	return nil
}

const countReruns = `SELECT count(*) FILTER (WHERE deliveries > 1), count(*) FILTER (WHERE attempt > 1),
	count(*) FILTER (WHERE deliveries > attempt), pg_database_size(current_database()) FROM demo.rerun`

// counts: what happened on the way, and what the run occupies.
func (c *checker) counts(ctx context.Context) error {
	r := &c.report
	if err := c.query(ctx, countReruns, nil, &r.Redelivered, &r.Retried, &r.Reclaimed, &r.PostgresBytes); err != nil {
		return err
	}
	info, err := c.d.rdb.InfoMap(ctx, "memory").Result()
	if err != nil {
		return err
	}
	r.RedisBytes, _ = strconv.ParseInt(info["Memory"]["used_memory"], 10, 64) // 0 where a server does not tell
	if c.d.site.redis != nil {
		dir, err := c.d.rdb.ConfigGet(ctx, "dir").Result()
		if err != nil {
			return err
		}
		r.AppendOnlyBytes, err = sizeOf(dir["dir"])
		if err != nil {
			return err
		}
	}
	return nil
}

func sizeOf(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}
