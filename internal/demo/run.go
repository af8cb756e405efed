package demo

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/migrations"
	"github.com/streamkeel/streamkeel/stream"
)

//go:embed schema.sql
var schema string

// Demo is a run.
type Demo struct {
	cfg    Config
	say    func(format string, args ...any)
	site   *site
	pool   *pgxpool.Pool
	rdb    *redis.Client
	topics topics
	dice   dice

	producer *producer
	children *children
	began    time.Time
}

// Run runs the demo from its servers' start to their end, and returns what it proved. say
// gets a line of text for each thing that happens; progress gets the state of things about once a second. An error
// says that the demo could not be carried out; a proof that failed is in the report.
func Run(ctx context.Context, cfg Config, say func(format string, args ...any), progress func(Progress)) (_ Report, err error) {
	if err := cfg.Validate(); err != nil {
		return Report{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.Timeout, fmt.Errorf("demo: not at rest after %s", cfg.Timeout))
	defer cancel()
	d := &Demo{cfg: cfg, say: say, dice: dice(cfg.Seed), began: time.Now()}
	if d.site, err = openSite(ctx, cfg, say); err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, d.site.close()) }()
	if err := d.setUp(ctx); err != nil {
		return Report{}, err
	}
	defer d.pool.Close()
	defer func() { _ = d.rdb.Close() }()
	d.children = newChildren(d)
	defer func() { err = errors.Join(err, d.children.close()) }()
	report, err := d.run(ctx, progress)
	if err != nil && ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	return report, err
}

func (d *Demo) setUp(ctx context.Context) error {
	d.topics = topicsIn(d.site.namespace)
	opts, err := redis.ParseURL(d.site.redisURL)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	opts.ReadTimeout = 30 * time.Second // the run keeps its machine busy
	d.rdb = redis.NewClient(opts)
	if d.pool, err = openPool(ctx, d.site.postgresURL, 16); err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(d.pool)
	defer func(db *sql.DB) { _ = db.Close() }(db) // the pool stays
	if err := migrations.Up(ctx, db); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if _, err := d.pool.Exec(ctx, schema); err != nil {
		return fmt.Errorf("demo: make its tables: %w", err)
	}
	if d.producer, err = newProducer(d.pool, d.cfg, d.topics); err != nil {
		return err
	}
	// What a daemon without a registry would wait for.
	return stream.Declare(ctx, d.rdb, d.topics.webhooks, d.topics.orders)
}

func openPool(ctx context.Context, url string, conns int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	config.MaxConns = conns
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	return pool, nil
}

// run is the course of events.
func (d *Demo) run(ctx context.Context, progress func(Progress)) (Report, error) {
	if err := d.children.startAll(ctx); err != nil {
		return Report{}, err
	}
	stopWatch := d.watch(ctx, progress)
	defer stopWatch()

	faults := &faults{d: d}
	d.say("publish %d webhook deliveries and %d orders, each in a transaction", d.cfg.Events, d.cfg.Orders)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.producer.run(gctx) })
	g.Go(func() error { return faults.run(gctx) })
	if err := g.Wait(); err != nil {
		return Report{}, err
	}
	d.say("everything is committed; wait until all of it is handled, or is a dead letter")
	if err := d.untilQuiet(ctx); err != nil {
		return Report{}, err
	}

	letters, err := d.letters(ctx)
	if err != nil {
		return Report{}, err
	}
	redriven, err := d.redrive(ctx, letters)
	if err != nil {
		return Report{}, err
	}
	if err := d.untilQuiet(ctx); err != nil {
		return Report{}, err
	}
	d.say("stop the workers, and check Postgres and Redis")
	if err := d.children.stopWorkers(); err != nil {
		return Report{}, err
	}
	stopWatch()
	if err := d.untilNoNames(ctx); err != nil {
		return Report{}, err
	}
	c := &checker{d: d, letters: letters}
	report, err := c.check(ctx)
	report.Redriven = redriven
	report.Seconds = float64(time.Since(d.began).Round(100*time.Millisecond)) / float64(time.Second)
	report.judge(faults)
	if !report.Passed() && d.cfg.Break == BreakNothing {
		d.say("%s", d.children.logs())
	}
	return report, err
}

// redrive removes the fault that made events poison, and gives their letters back.
func (d *Demo) redrive(ctx context.Context, letters []dlq.Letter) (int, error) {
	d.say("%d dead letters; remove the fault and redrive them", len(letters))
	if _, err := d.pool.Exec(ctx, `UPDATE demo.fault SET removed = true`); err != nil {
		return 0, fmt.Errorf("demo: %w", err)
	}
	queue, err := dlq.Open(d.rdb, d.topics.webhooks, groupNotify)
	if err != nil {
		return 0, err
	}
	refs := make([]dlq.Ref, len(letters))
	for i, l := range letters {
		refs[i] = dlq.Ref{Partition: l.Partition, ID: l.ID}
	}
	return queue.Redrive(ctx, refs...)
}

// letters lists the dead letters of all groups.
func (d *Demo) letters(ctx context.Context) ([]dlq.Letter, error) {
	var all []dlq.Letter
	for _, g := range d.groups() {
		queue, err := dlq.Open(d.rdb, g.topic, g.name)
		if err != nil {
			return nil, err
		}
		for next := ""; ; {
			page, err := queue.List(ctx, dlq.Filter{}, next, 1000)
			if err != nil {
				return nil, err
			}
			all = append(all, page.Letters...)
			if next = page.Next; next == "" {
				break
			}
		}
	}
	return all, nil
}

type group struct {
	topic stream.Topic
	name  string
}

func (d *Demo) groups() []group {
	return []group{{d.topics.webhooks, groupNotify}, {d.topics.webhooks, groupActivity}, {d.topics.orders, groupShop}}
}

// standstill is longer than any fault holds things up: what has not moved for so long does not move.
func (c Config) standstill() time.Duration { return 4*time.Second + 2*max(c.MinIdle, c.LeaseTTL) }

// untilQuiet returns when nothing is left to do, or nothing has been done for so long that
// the rest is lost: the checks say what.
func (d *Demo) untilQuiet(ctx context.Context) error {
	var last Progress
	moved := time.Now()
	for {
		p, err := d.look(ctx)
		if err != nil {
			return err
		}
		if p.quiet() {
			return nil
		}
		if p.work() != last.work() {
			last, moved = p, time.Now()
		}
		if time.Since(moved) > d.cfg.standstill() {
			d.say("nothing moves any more, though not all is done")
			return nil
		}
		if !redisx.Pause(ctx, 500*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// untilNoNames waits until the reclaimer has deleted the names of those that were killed;
// where it does not, the checks say so.
func (d *Demo) untilNoNames(ctx context.Context) error {
	deadline := time.Now().Add(2*d.cfg.MinIdle + d.cfg.standstill())
	for time.Now().Before(deadline) {
		names, err := d.names(ctx)
		if err != nil || len(names) == 0 {
			return err
		}
		if !redisx.Pause(ctx, 200*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	return nil
}
