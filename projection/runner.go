package projection

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// Runner keeps one projection up to date. Several of the same name, in any number of
// processes, are safe and serve as stand-by: the checkpoint's version is the fence, so that
// of two that read the same entries one commits, and the other changes nothing, waits, and
// takes over where the first falls silent.
type Runner struct {
	pool   *pgxpool.Pool
	rdb    redis.UniversalClient
	config Config
	schema pgschema.Name
	log    *quiet.Log
	lanes  []*lane

	busy     sync.Mutex // held by Run and RunOnce
	declared time.Time  // when the registry was last written; guarded by busy

	applying sync.Mutex // held for a transaction: on a Cluster, several lanes have some
}

// NewRunner returns a runner; nothing is sent before Run. The error has every fault of the
// config. The caller keeps pool and rdb and closes them after Run has returned.
func NewRunner(pool *pgxpool.Pool, rdb redis.UniversalClient, config Config) (*Runner, error) {
	config = config.withDefaults()
	schema, err := config.validate(pool, rdb)
	if err != nil {
		return nil, err
	}
	if config.Mux != nil {
		config.Apply = config.Mux.Apply
	}
	r := &Runner{pool: pool, rdb: rdb, config: config, schema: schema, log: quiet.New(config.Logger.With("projection", config.Name))}
	// One read serves all streams of one server; on a Cluster one read keeps to one slot.
	var all []*partition
	for _, t := range config.Topics {
		for _, key := range t.StreamKeys() {
			all = append(all, &partition{topic: t, key: key})
		}
	}
	if !redisx.IsCluster(rdb) {
		r.lanes = []*lane{{r: r, partitions: all}}
		return r, nil
	}
	for _, p := range all {
		r.lanes = append(r.lanes, &lane{r: r, partitions: []*partition{p}})
	}
	return r, nil
}

// Run applies what is there and what comes, until ctx ends; then the batch in work is
// finished, and Run returns nil. While Postgres or Redis is away it waits and goes on by
// itself, for as long as that lasts.
//
// It returns an error where waiting cannot help: an [EventError] for an event that cannot
// be applied, ErrRewound or ErrTrimmedUnread for a stream that does not continue its
// checkpoint, missing tables or permissions, a topic that was declared differently, a
// server that is too old or evicts. What was applied before stays, and a later Run goes on
// from there.
func (r *Runner) Run(ctx context.Context) error {
	if !r.busy.TryLock() {
		return fmt.Errorf("projection: %s: %w", r.config.Name, ErrRunning)
	}
	defer r.busy.Unlock()
	work, end := r.workContext(ctx)
	defer end()
	if err := r.patiently(ctx, r.prepare); err != nil {
		return r.halt(ctx, err)
	}
	g, fetch := errgroup.WithContext(ctx)
	for _, l := range r.lanes {
		l.resumed = false
		g.Go(func() error {
			return r.patiently(fetch, func(ctx context.Context) error {
				for ctx.Err() == nil {
					if _, err := l.runOnce(ctx, work, true); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	g.Go(func() error { return r.redeclare(fetch) })
	return r.halt(ctx, g.Wait())
}

// Result counts what was done.
type Result struct {
	// Events were applied, Skipped had been applied before, Malformed were passed by
	// Config.OnMalformed.
	Events, Skipped, Malformed int
}

func (r *Result) add(more Result) {
	r.Events += more.Events
	r.Skipped += more.Skipped
	r.Malformed += more.Malformed
}

// RunOnce makes one pass: of every partition it applies up to a batch of what is there now,
// and returns, so that zeros mean that everything was applied, or that an event failed and
// is not due yet. Unlike Run it returns errors of an outage as they are.
func (r *Runner) RunOnce(ctx context.Context) (Result, error) {
	if !r.busy.TryLock() {
		return Result{}, fmt.Errorf("projection: %s: %w", r.config.Name, ErrRunning)
	}
	defer r.busy.Unlock()
	if time.Since(r.declared) > redeclareEvery {
		if err := r.prepare(ctx); err != nil {
			return Result{}, err
		}
	}
	var total Result
	for _, l := range r.lanes {
		result, err := l.runOnce(ctx, ctx, false)
		total.add(result)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// workContext returns the context of transactions: it outlives ctx by ShutdownTimeout.
func (r *Runner) workContext(ctx context.Context) (context.Context, func()) {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		if redisx.Pause(work, r.config.ShutdownTimeout) {
			cancel(ErrStopped)
		}
	})
	return work, func() {
		cancel(nil)
		if !stop() {
			<-ended
		}
	}
}

// halt reports what ended a run, unless it was the end of ctx.
func (r *Runner) halt(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return nil
	}
	r.log.Error(ctx, "projection halted", "", err)
	r.observe(ctx, Observation{Moment: Halted, Err: err})
	return err
}

// outage marks an error of Postgres or Redis that waiting may mend.
type outage struct{ err error }

func (o outage) Error() string { return o.err.Error() }
func (o outage) Unwrap() error { return o.err }

// isOutage reports whether waiting may mend err.
func isOutage(err error) bool {
	var o outage
	return errors.As(err, &o)
}

// redisError wraps an error of a command with what was being done.
func (r *Runner) redisError(what string, err error) error {
	wrapped := fmt.Errorf("projection: %s: %s: %w", r.config.Name, what, err)
	if redisx.IsUnavailable(err) {
		return outage{wrapped}
	}
	return wrapped
}

// postgresError is redisError for a statement.
func (r *Runner) postgresError(what string, err error) error {
	wrapped := fmt.Errorf("projection: %s: %s: %w", r.config.Name, what, err)
	if pgerr.IsUnavailable(err) || pgerr.IsConflict(err) {
		return outage{wrapped}
	}
	return wrapped
}

const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// patiently runs fn until it returns nil or an error that waiting cannot mend.
func (r *Runner) patiently(ctx context.Context, fn func(context.Context) error) error {
	pause := minPause
	for {
		started := time.Now()
		err := fn(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && (isOutage(err) || errors.Is(err, errMoved)):
			return ctx.Err()
		case errors.Is(err, errMoved):
			if err := r.standBy(ctx); err != nil {
				return err
			}
			continue
		case !isOutage(err):
			return err
		}
		if time.Since(started) > maxPause {
			pause = minPause // it worked for a while
		}
		r.log.Error(ctx, "waiting for Postgres or Redis", "", err)
		r.observe(ctx, Observation{Moment: Waiting, Err: err})
		if !redisx.Pause(ctx, pause/2+rand.N(pause/2+1)) {
			return ctx.Err()
		}
		pause = min(2*pause, maxPause)
	}
}

// standBy returns when no checkpoint has moved for a while: until then another runner of
// this projection is at work.
func (r *Runner) standBy(ctx context.Context) error {
	for last := int64(-1); ; {
		all, err := checkpoints(ctx, r.pool, r.schema, r.config.Name)
		if err != nil {
			return nil //nolint:nilerr // the lane meets the same, and knows how to wait
		}
		moves := int64(0)
		for _, c := range all {
			moves += c.version
		}
		if moves == last {
			return nil
		}
		last = moves
		r.log.Warn(ctx, "another runner of the projection is at work, standing by", "")
		if !redisx.Pause(ctx, time.Second+rand.N(time.Second)) {
			return ctx.Err()
		}
	}
}

const redeclareEvery = time.Minute

// prepare checks the server and writes the registry.
func (r *Runner) prepare(ctx context.Context) error {
	var keys []string
	for _, t := range r.config.Topics {
		keys = append(keys, t.StreamKeys()...)
	}
	if err := stream.CheckServer(ctx, r.rdb, r.config.AllowEviction, keys...); err != nil {
		return r.redisError("check the server", err)
	}
	if err := r.checkPool(ctx); err != nil {
		return err
	}
	return r.declare(ctx)
}

// checkPool refuses a pool whose every connection would sit in a blocking read.
func (r *Runner) checkPool(ctx context.Context) error {
	reads := map[string]int{} // by server
	for _, l := range r.lanes {
		node, err := redisx.NodeFor(ctx, r.rdb, l.partitions[0].key)
		if err != nil {
			return r.redisError("find the server", err)
		}
		addr := ""
		if client, ok := node.(*redis.Client); ok {
			addr = client.Options().Addr
		}
		reads[addr]++
	}
	for addr, n := range reads {
		if size := redisx.PoolSize(r.rdb); size > 0 && size < n+1 {
			return fmt.Errorf("projection: %s: %w client: PoolSize %d must be at least %d: %d blocking reads of %s hold a connection each",
				r.config.Name, ErrInvalid, size, n+1, n, addr)
		}
	}
	return nil
}

// declare writes the topics and the projection, as a group that holds retention.
func (r *Runner) declare(ctx context.Context) error {
	if err := stream.Declare(ctx, r.rdb, r.config.Topics...); err != nil {
		return r.redisError("declare topics", err)
	}
	for _, t := range r.config.Topics {
		group := stream.Group{Name: r.config.Name, Kind: stream.GroupProjection}
		if err := stream.DeclareGroup(ctx, r.rdb, t, group); err != nil {
			return r.redisError("declare group", err)
		}
	}
	r.declared = time.Now()
	return nil
}

// redeclare writes the registry again every minute, so that a flushed Redis heals.
func (r *Runner) redeclare(ctx context.Context) error {
	for redisx.Pause(ctx, redeclareEvery/2+rand.N(redeclareEvery/2)) {
		if err := r.declare(ctx); err != nil && ctx.Err() == nil {
			if !isOutage(err) {
				return err
			}
			r.log.Error(ctx, "registry not written", "", err)
		}
	}
	return nil
}
