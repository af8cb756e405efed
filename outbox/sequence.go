package outbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// sequence looks for rows of the shards that have nothing in hand, and freezes a batch for each that has
// some, until ctx ends. One probe and one insert serve all of them.
func (r *Relay) sequence(ctx context.Context) {
	var idle []*shard
	wait := r.config.PollMin
	var last, woken time.Time
	var pace time.Duration // for how long rows come together
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-r.ready:
			idle = append(idle, s)
			wait = r.config.PollMin
			if woken.After(s.lookedInto) { // perhaps for rows of its
				wait = 0
			}
		case <-r.awake:
			woken = time.Now()
			wait = 0
		case <-timer.C:
		}
		// What comes in quick succession shares a batch.
		if pause := max(wait, pace) - time.Since(last); pause > 0 {
			timer.Reset(pause)
			continue
		}
		idle = slices.DeleteFunc(idle, (*shard).stopping)
		last = time.Now()
		for _, s := range idle {
			s.lookedInto = last
		}
		n, err := r.freezeReady(ctx, &idle)
		switch {
		case err != nil:
			r.failed(ctx, "looking for rows failed", -1, err)
			wait, pace = min(max(wait*2, r.config.PollMax), time.Second), r.config.PollMin
		case n > 0:
			wait, pace = r.config.PollMin, gather(r.recent.Swap(0), r.config.PollMax)
		default:
			wait, pace = min(max(wait*3/2, r.config.PollMin), r.config.PollMax), pace/2
		}
		timer.Reset(wait)
	}
}

// gatherRow is how long a round waits for more rows, for each that was published since the batch before: a batch costs
// as much as the rows of a hundred transactions, and the database has better things to do.
const gatherRow = 250 * time.Microsecond

// gather returns how long after a round the next may begin. Where fewer than one row in gatherRow come, that is less and less.
func gather(rows int64, most time.Duration) time.Duration {
	return time.Duration(min(rows, int64(most/gatherRow))) * gatherRow
}

// restAfter is when a shard that has had no rows for a while gets an empty batch, which says where all its streams are: the
// rows of the batch before it are then no longer needed to know that, and may be dropped.
const restAfter = time.Minute

// startedSQL is when the server began to hand out the transaction numbers that it hands out now. One that recovers
// from a crash of a backend keeps its start time, and hands numbers out again that nobody may have written down; its
// statistics begin anew.
const startedSQL = `greatest(pg_postmaster_start_time(), pg_stat_get_bgwriter_stat_reset_time())`

const probeSQL = `SELECT pg_current_snapshot()::text, {schema}.relay_probe($1::smallint[], $2::text[], $3), ` + startedSQL

// aheadEvery is how often the relay looks for rows in the row partitions of the days to come too: a clock that was set
// back is how they get there.
const aheadEvery = time.Second

// freezeReady does one round: the idle shards that have rows get a batch to publish and leave the list.
func (r *Relay) freezeReady(ctx context.Context, idle *[]*shard) (int, error) {
	if len(*idle) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if n, err := r.retryReady(ctx, idle); n > 0 || err != nil {
		return n, err
	}
	ahead := time.Since(r.lookedAhead) > aheadEvery
	bases := make([]string, len(*idle))
	for i, s := range *idle {
		bases[i] = s.near.text
		if ahead {
			bases[i] = s.base.text
		}
	}
	var at string
	var found []int16
	var server time.Time
	if err := r.db.QueryRow(ctx, probeSQL, numbersOf(*idle), bases, ahead).Scan(&at, &found, &server); err != nil {
		return 0, fmt.Errorf("probe: %w", err)
	}
	present, err := parseSnapshot(at)
	if err != nil {
		return 0, fmt.Errorf("probe: %w", err)
	}
	// The server was started anew, or another one has taken its place: it may be an older one. What is known of
	// transactions that it lacks would hide others, which have their numbers. The log tells where the shards stand.
	*idle = slices.DeleteFunc(*idle, func(s *shard) bool {
		if s.server.Equal(server) {
			return false
		}
		s.work <- batch{}
		return true
	})
	var batches []frozen
	for _, s := range *idle {
		switch {
		case slices.Contains(found, int16(s.number)): //nolint:gosec // at most maxShards
			batches = append(batches, s.next())
		case len(s.touched) > 0 && time.Since(s.publishedAt) > r.restAfter:
			s.since = completeEvery
			batches = append(batches, s.next())
		default: // nothing lies between
			s.near = present
			if ahead {
				s.base = present
			}
		}
	}
	if ahead {
		r.lookedAhead = time.Now()
	}
	if len(batches) == 0 {
		return 0, nil
	}
	done, err := r.freeze(ctx, batches)
	for _, f := range batches {
		b, ok := done[f.shard.number]
		if !ok {
			// The lease is lost, or the batch was frozen and the reply is lost: the log tells.
			f.shard.work <- batch{}
			continue
		}
		f.shard.work <- b
	}
	*idle = slices.DeleteFunc(*idle, func(s *shard) bool {
		return slices.ContainsFunc(batches, func(f frozen) bool { return f.shard == s })
	})
	return len(done), err
}

// retryEvery is how often the relay looks for refused rows that are wanted again.
const retryEvery = time.Second

// retryReady gives idle shards whose refused rows are wanted again a batch of these.
func (r *Relay) retryReady(ctx context.Context, idle *[]*shard) (int, error) {
	look := slices.DeleteFunc(slices.Clone(*idle), func(s *shard) bool { return time.Since(s.lookedAt) < retryEvery })
	for _, s := range look {
		s.lookedAt = time.Now()
	}
	done, err := r.freezeRetries(ctx, look)
	*idle = slices.DeleteFunc(*idle, func(s *shard) bool { return slices.Contains(done, s) })
	return len(done), err
}

// next returns the batch that comes after the last one.
func (s *shard) next() frozen {
	f := frozen{shard: s, number: max(s.last.number+1, s.above), tag: newTag(), from: s.base}
	if f.complete = s.since+1 >= completeEvery; f.complete {
		all := make(map[string]stream.Position, len(s.targets))
		for name, t := range s.targets {
			if !t.known.IsZero() {
				all[name] = t.known
			}
		}
		f.prev = texts(all)
		return f
	}
	touched := make(map[string]stream.Position, len(s.touched))
	for _, t := range s.touched {
		touched[t.name] = t.known
	}
	f.prev = texts(touched)
	return f
}

func newTag() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
