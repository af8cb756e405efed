package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/pel"
)

// Progress is the state of things during a run.
type Progress struct {
	Elapsed time.Duration
	// Transactions ended, Published entries in the streams, and handled effects in the ledger.
	Transactions, Published, Handled int64
	// Unpublished rows, entries that no group's consumer got yet, deliveries in hand or abandoned.
	Unpublished, Lag, Pending int64
	// LagKnown is false while Redis cannot tell.
	LagKnown bool
	// Retries wait for their time or their turn, Letters for a person.
	Retries, Letters int64
	// Sagas by state.
	Running, Completed, Aborting, Compensated, Parked int64
	// Away says that a server cannot be asked.
	Away bool
}

// String is the state in one line.
func (p Progress) String() string {
	seconds := max(p.Elapsed.Seconds(), 0.1)
	if p.Away {
		return fmt.Sprintf("%5.1fs  a server is away", seconds)
	}
	lag := "?"
	if p.LagKnown {
		lag = fmt.Sprint(p.Lag)
	}
	return fmt.Sprintf("%5.1fs  committed %d  published %d  handled %d (%.0f/s)  unpublished %d  lag %s  pending %d  retries %d  letters %d  sagas %d open, %d done, %d undone",
		seconds, p.Transactions, p.Published, p.Handled, float64(p.Handled)/seconds, p.Unpublished, lag, p.Pending, p.Retries, p.Letters,
		p.Running+p.Aborting, p.Completed, p.Compensated)
}

// quiet reports whether nothing is left to do but what waits for a person.
func (p Progress) quiet() bool {
	return !p.Away && p.Unpublished == 0 && p.LagKnown && p.Lag == 0 && p.Pending == 0 && p.Retries == 0 && p.Running+p.Aborting == 0
}

// work is what changes as long as work is done.
func (p Progress) work() Progress {
	p.Elapsed = 0
	return p
}

const countWork = `SELECT
	(SELECT count(*) FROM demo.effect) + (SELECT count(*) FROM streamkeel.saga_step WHERE op = 'action'),
	(SELECT coalesce(sum(cnt) FILTER (WHERE state = 'running'), 0) FROM s),
	(SELECT coalesce(sum(cnt) FILTER (WHERE state = 'completed'), 0) FROM s),
	(SELECT coalesce(sum(cnt) FILTER (WHERE state = 'aborting'), 0) FROM s),
	(SELECT coalesce(sum(cnt) FILTER (WHERE state = 'compensated'), 0) FROM s),
	(SELECT coalesce(sum(cnt) FILTER (WHERE state = 'parked'), 0) FROM s)`

// look reads the state of things from Postgres and Redis.
func (d *Demo) look(ctx context.Context) (Progress, error) {
	p := Progress{Elapsed: time.Since(d.began), Transactions: d.producer.done.Load(), LagKnown: true}
	err := d.pool.QueryRow(ctx, `WITH s AS (SELECT state, count(*) AS cnt FROM streamkeel.saga GROUP BY state) `+countWork).
		Scan(&p.Handled, &p.Running, &p.Completed, &p.Aborting, &p.Compensated, &p.Parked)
	if err != nil {
		return p, fmt.Errorf("demo: %w", err)
	}
	if p.Unpublished, err = d.unpublished(ctx); err != nil {
		return p, err
	}
	lengths := map[string]int64{}
	for _, g := range d.groups() {
		totals, err := d.totals(ctx, g)
		if redisx.IsUnavailable(err) {
			p.Away = true
			return p, nil
		}
		if err != nil {
			return p, err
		}
		p.Lag += totals.Lag
		p.LagKnown = p.LagKnown && totals.LagKnown && totals.Missing == 0
		p.Pending += totals.Pending
		p.Retries += totals.Retry + totals.Due
		p.Letters += totals.Letters
		lengths[g.topic.Name] = totals.Length
	}
	for _, n := range lengths {
		p.Published += n
	}
	return p, nil
}

func (d *Demo) keys(g group) (keys []pel.Keys) {
	for _, key := range g.topic.StreamKeys() {
		keys = append(keys, pel.KeysOf(key, g.name))
	}
	return keys
}

// totals sums up what a group has open.
func (d *Demo) totals(ctx context.Context, g group) (pel.Totals, error) {
	each, err := pel.Inspect(ctx, d.rdb, d.keys(g)...)
	if err != nil {
		return pel.Totals{}, err
	}
	sum := pel.Sum(each...)
	return sum, sum.Err
}

// unpublished counts committed rows that are not in Redis, and at least one for each batch that
// is under way.
func (d *Demo) unpublished(ctx context.Context) (n int64, err error) {
	if d.cfg.Break == BreakRelayBySeq { // it says so of what it will never see
		return 0, nil
	}
	status, err := outbox.ReadStatus(ctx, d.pool)
	for _, s := range status.Shards {
		if n += s.Unpublished; s.Published < s.Batch {
			n++
		}
	}
	return n + status.Delayed, err
}

// watch reports progress about once a second, until stop is called.
func (d *Demo) watch(ctx context.Context, progress func(Progress)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for redisx.Pause(ctx, time.Second) {
			if p, err := d.look(ctx); err == nil {
				progress(p)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// members lists the consumers of the groups that read with names of their own.
func (d *Demo) members(ctx context.Context) (all []pel.Member, err error) {
	for _, g := range d.groups() {
		for _, k := range d.keys(g) {
			members, err := pel.Members(ctx, d.rdb, k)
			if err != nil {
				return nil, err
			}
			all = append(all, members...)
		}
	}
	return all, nil
}

// inHandOf counts the deliveries in the hands of a worker's consumers.
func (d *Demo) inHandOf(ctx context.Context, worker string) (held int64, err error) {
	members, err := d.members(ctx)
	for _, m := range members {
		if strings.HasPrefix(m.Name, worker) {
			held += m.Pending
		}
	}
	return held, err
}

// names lists the consumer names that Redis remembers.
func (d *Demo) names(ctx context.Context) (names []string, err error) {
	members, err := d.members(ctx)
	for _, m := range members {
		names = append(names, m.Name)
	}
	return names, err
}
