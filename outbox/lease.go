package outbox

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// lease is the right to relay a shard. Losing it unnoticed does no harm: the log and the publish script refuse what
// a former owner does. It spares the work that would be refused.
type lease struct {
	epoch int64
	until atomic.Int64 // trusted until then, in nanoseconds since processStart: the monotonic clock
}

var processStart = time.Now()

func (l *lease) held() bool { return time.Since(processStart) < time.Duration(l.until.Load()) }

// extend trusts the lease for d from a moment before it was renewed.
func (l *lease) extend(from time.Time, d time.Duration) {
	l.until.Store(int64(from.Sub(processStart) + d))
}

// A lease in the database is shorter than LeaseTTL by the time until somebody looks, and it is trusted for a
// little less than that.
func (c RelayConfig) leaseTick() time.Duration    { return c.LeaseTTL / 10 }
func (c RelayConfig) leaseLength() time.Duration  { return c.LeaseTTL - c.leaseTick() }
func (c RelayConfig) leaseTrusted() time.Duration { return c.leaseLength() - c.leaseTick()/2 }
func (c RelayConfig) leaseRenewal() time.Duration { return c.LeaseTTL / 3 }

// What is noted as published is never above the log: a database that was restored knows less than this relay published.
const (
	instanceSQL = `
INSERT INTO {schema}.relay_instance AS i (id, lease_until) VALUES ($1::text, clock_timestamp() + $2::bigint * interval '1 microsecond')
ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until`

	forgetSQL = `
DELETE FROM {schema}.relay_instance WHERE id = $1::text OR lease_until < clock_timestamp() - interval '1 minute'`

	renewSQL = `
UPDATE {schema}.relay_lease l
SET lease_until = clock_timestamp() + $2::bigint * interval '1 microsecond', published = greatest(l.published, least(p.published,
	(SELECT coalesce(max(batch), 0) FROM {schema}.relay_batch b WHERE b.shard = l.shard)))
FROM unnest($3::smallint[], $4::bigint[], $5::bigint[]) AS p(shard, epoch, published)
WHERE l.shard = p.shard AND l.epoch = p.epoch AND l.owner = $1::text
RETURNING l.shard`

	lookSQL = `
SELECT (SELECT count(*) FROM {schema}.relay_instance WHERE id <> $1::text AND lease_until > clock_timestamp()),
	(SELECT count(*) FROM {schema}.relay_lease WHERE lease_until <= clock_timestamp() AND shard <> ALL ($2::smallint[]))`

	claimSQL = `
UPDATE {schema}.relay_lease l
SET owner = $1::text, epoch = epoch + 1, lease_until = clock_timestamp() + $2::bigint * interval '1 microsecond'
WHERE shard IN (
	SELECT shard FROM {schema}.relay_lease
	WHERE lease_until <= clock_timestamp() AND shard <> ALL ($3::smallint[])
	ORDER BY shard LIMIT $4::bigint FOR UPDATE SKIP LOCKED)
RETURNING shard, epoch`

	giveUpSQL = `
UPDATE {schema}.relay_lease l SET lease_until = '-infinity', published = greatest(published, least($4::bigint,
	(SELECT coalesce(max(batch), 0) FROM {schema}.relay_batch b WHERE b.shard = l.shard)))
WHERE shard = $1::smallint AND epoch = $2::bigint AND owner = $3::text`
)

// keepLeases claims shards, renews their leases and hands them over, and runs them, until ctx ends. It returns when
// every shard has been given up. Shards publish under work.
func (r *Relay) keepLeases(ctx, work context.Context) {
	ticker := time.NewTicker(r.config.leaseTick())
	defer ticker.Stop()
	var renewed time.Time
	for ctx.Err() == nil {
		if err := r.tend(ctx, work, &renewed); err != nil {
			r.failed(ctx, "tending the leases failed", -1, err)
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	for _, s := range r.held() {
		s.stop()
	}
	for _, s := range r.held() {
		<-s.done
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := r.db.Exec(ctx, forgetSQL, r.id); err != nil {
		r.failed(ctx, "signing off failed", -1, err)
	}
}

// tend does one round: renew what is held, see who else is there, and claim or give up shards so that each
// relay has its part.
func (r *Relay) tend(ctx, work context.Context, renewed *time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, r.config.leaseLength())
	defer cancel()
	r.forgetDone()
	if time.Since(*renewed) >= r.config.leaseRenewal() {
		if err := r.renew(ctx); err != nil {
			return err
		}
		*renewed = time.Now()
	}
	held := r.held()
	var others, free int
	if err := r.db.QueryRow(ctx, lookSQL, r.id, numbersOf(held)).Scan(&others, &free); err != nil {
		return fmt.Errorf("look for other relays: %w", err)
	}
	part := (r.shards + others) / (others + 1) // rounded up
	for i := part; i < len(held); i++ {
		held[i].stop() // it gives its lease up when what it has in hand is published
	}
	if want := min(part-len(held), free); want > 0 {
		return r.claim(ctx, work, want)
	}
	return nil
}

func (r *Relay) renew(ctx context.Context) error {
	start := time.Now()
	micros := r.config.leaseLength().Microseconds()
	if _, err := r.db.Exec(ctx, instanceSQL, r.id, micros); err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	held := r.held()
	if len(held) == 0 {
		return nil
	}
	epochs, published := make([]int64, len(held)), make([]int64, len(held))
	for i, s := range held {
		epochs[i], published[i] = s.lease.epoch, s.published.Load()
	}
	rows, err := r.db.Query(ctx, renewSQL, r.id, micros, numbersOf(held), epochs, published)
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	kept, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	still := map[int]bool{}
	for _, number := range kept {
		still[number] = true
	}
	for _, s := range held {
		if still[s.number] {
			s.lease.extend(start, r.config.leaseTrusted())
		} else {
			s.lease.until.Store(0)
			s.stop()
		}
	}
	return nil
}

func (r *Relay) claim(ctx, work context.Context, n int) error {
	start := time.Now()
	rows, err := r.db.Query(ctx, claimSQL, r.id, r.config.leaseLength().Microseconds(), numbersOf(r.held()), n)
	if err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	var number int
	var epoch int64
	_, err = pgx.ForEachRow(rows, []any{&number, &epoch}, func() error {
		s := newShard(r, number, epoch)
		s.lease.extend(start, r.config.leaseTrusted())
		r.mu.Lock()
		r.owned[number] = s
		r.mu.Unlock()
		s.start(work)
		return nil
	})
	if err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	return nil
}

// giveUp makes the shard's lease free for others.
func (r *Relay) giveUp(ctx context.Context, s *shard) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := r.db.Exec(ctx, giveUpSQL, s.number, s.lease.epoch, r.id, s.published.Load()); err != nil {
		r.failed(ctx, "giving up a lease failed: it runs out", s.number, err)
	}
}

// held returns the shards that this relay runs, lowest first.
func (r *Relay) held() []*shard {
	r.mu.Lock()
	defer r.mu.Unlock()
	shards := make([]*shard, 0, len(r.owned))
	for number := range r.shards {
		if s := r.owned[number]; s != nil {
			shards = append(shards, s)
		}
	}
	return shards
}

// forgetDone lets go of shards that have ended.
func (r *Relay) forgetDone() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for number, s := range r.owned {
		select {
		case <-s.done:
			delete(r.owned, number)
		default:
		}
	}
}

func (r *Relay) countOwned() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.owned)
}

func numbersOf(shards []*shard) []int16 {
	numbers := make([]int16, len(shards))
	for i, s := range shards {
		numbers[i] = int16(s.number) //nolint:gosec // at most maxShards
	}
	return numbers
}
