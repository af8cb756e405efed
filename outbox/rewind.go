package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/stream"
)

// loss is what Redis lacks of a shard's streams.
type loss struct {
	targets []*target
	from    map[*target]stream.Position // what each stream still holds
	known   map[*target]stream.Position // what it should
	batches []int64                     // to be read again, ascending
	missing bool                        // rows that would be needed are not kept any more
	age     time.Duration               // since the first of them was frozen, by the database's clock
	unknown *target                     // one that Redis knows nothing of
}

// rewind publishes again what Redis lost of the shard's streams before the batch b, by itself if that was frozen within
// RewindMax, else when an operator has said so. Rows of b itself are published again by the caller.
func (s *shard) rewind(ctx context.Context, b *batch, f *fault) error {
	var lost loss
	err := s.insist(ctx, "looking for what Redis lost failed", func() (err error) {
		lost, err = s.findLoss(ctx, b)
		return err
	})
	if err != nil || len(lost.targets) == 0 { // the connection had been to another server, maybe
		return err
	}
	if lost.missing || lost.unknown != nil || lost.age > s.relay.config.RewindMax {
		decided, err := s.askAboutLoss(ctx, b, f, lost)
		if err != nil || decided != decisionRepublish {
			return err
		}
	}
	return s.republish(ctx, lost)
}

// republish adds the rows that Redis lost behind what the streams hold, with the positions that they had.
func (s *shard) republish(ctx context.Context, lost loss) error {
	start := time.Now()
	only := map[*target]bool{}
	for _, t := range lost.targets {
		only[t] = true
		t.known, t.held = lost.from[t], lost.from[t]
	}
	var at progress
	for _, number := range lost.batches {
		b, err := s.readBatch(ctx, number)
		if err != nil {
			return err
		}
		at.after, at.only, at.lacking = 0, only, nil
		for attempt := 0; ; attempt++ {
			err := s.publishFrom(ctx, &b, &at)
			if err == nil {
				break
			}
			var f *fault
			if errors.As(err, &f) && (f.kind == faultGap || f.kind == faultUnknown) {
				return nil // lost again: the caller's batch finds it
			}
			if err := s.overcome(ctx, &b, &at, err, attempt); err != nil {
				return err
			}
		}
	}
	s.relay.log.Info(ctx, "Redis had lost rows, and has them again", "shard", s.number, "streams", len(lost.targets),
		"batches", len(lost.batches), "rows", at.rows)
	s.relay.observe(ctx, Observation{Moment: Rewound, Shard: s.number, Stream: lost.targets[0].stream, Rows: at.rows, Bytes: at.bytes, Took: time.Since(start)})
	return nil
}

// findLoss compares what Redis holds of each of the shard's streams with what this relay knows, and looks up in the log
// which batches hold the difference.
func (s *shard) findLoss(ctx context.Context, b *batch) (loss, error) {
	lost := loss{from: map[*target]stream.Position{}, known: map[*target]stream.Position{}}
	known, err := s.knownBefore(ctx, b.number)
	if err != nil {
		return lost, err
	}
	all, err := s.relay.positions(ctx, s.liveTargets())
	if err != nil {
		return lost, err
	}
	for t, held := range all {
		if held.Compare(t.known) >= 0 {
			continue
		}
		if held.Compare(known[t.name]) >= 0 { // what is missing is of b itself
			t.known, t.held = known[t.name], held.Position
			continue
		}
		lost.targets = append(lost.targets, t)
		lost.from[t], lost.known[t] = held.Position, known[t.name]
		if held.IsZero() {
			lost.unknown = t
		}
	}
	if len(lost.targets) == 0 {
		return lost, nil
	}
	slices.SortFunc(lost.targets, func(a, b *target) int { return lost.from[a].Compare(lost.from[b]) })
	return lost, s.findBatches(ctx, b, &lost)
}

// liveTargets returns the streams that should hold something.
func (s *shard) liveTargets() []*target {
	var live []*target
	for _, t := range s.targets {
		if t.stream != "" && !t.known.IsZero() {
			live = append(live, t)
		}
	}
	return live
}

// knownBefore returns the positions that the log has for the moment before a batch.
func (s *shard) knownBefore(ctx context.Context, number int64) (map[string]stream.Position, error) {
	c, err := s.relay.loadChain(ctx, s.number)
	if err != nil {
		return nil, err
	}
	if c.last.number != number {
		return nil, errLeaseLost // somebody has gone on
	}
	return c.known, nil
}

const (
	// The batch after one tells which streams that one touched; a row that holds all positions tells it too.
	touchedSQL = `
SELECT DISTINCT p.key, p.value FROM {schema}.relay_batch b, jsonb_each_text(b.prev) p
WHERE b.shard = $1::smallint AND b.batch > $2::bigint AND b.batch <= $3::bigint AND p.key = ANY ($4::text[])`

	// In place of a batch that is not in the log stands the one before it, if there is one.
	keptSQL = `
SELECT DISTINCT b.batch FROM unnest($2::bigint[]) AS n(number)
CROSS JOIN LATERAL (SELECT batch FROM {schema}.relay_batch WHERE shard = $1::smallint AND batch <= n.number ORDER BY batch DESC LIMIT 1) b
ORDER BY 1`

	ageSQL = `
SELECT (extract(epoch FROM clock_timestamp() - frozen_at) * 1000000)::bigint FROM {schema}.relay_batch
WHERE shard = $1::smallint AND batch = $2::bigint`

	batchSQL = `SELECT ` + batchColumns + ` FROM {schema}.relay_batch WHERE shard = $1::smallint AND batch = $2::bigint`
)

// findBatches looks up which batches before b hold what the streams lack.
func (s *shard) findBatches(ctx context.Context, b *batch, lost *loss) error {
	names := make([]string, len(lost.targets))
	first := lost.from[lost.targets[0]].Batch
	for i, t := range lost.targets {
		names[i] = t.name
	}
	rows, err := s.relay.db.Query(ctx, touchedSQL, s.number, first, b.number, names)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	var numbers []int64
	var name, text string
	_, err = pgx.ForEachRow(rows, []any{&name, &text}, func() error {
		p, err := stream.ParsePosition(text)
		if err == nil && p.Compare(lost.from[s.targets[name]]) > 0 {
			numbers = append(numbers, p.Batch)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	// A position that a resync took over is of a batch that this database never had. The one in hand at that time may have
	// rows that the stream already had: the log tells of the resync's position instead of that batch's.
	if rows, err = s.relay.db.Query(ctx, keptSQL, s.number, numbers); err == nil {
		lost.batches, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	lost.missing = slices.ContainsFunc(numbers, func(n int64) bool {
		_, kept := slices.BinarySearch(lost.batches, n)
		return !kept
	})
	if len(lost.batches) == 0 {
		return nil
	}
	var micros int64
	if err := s.relay.db.QueryRow(ctx, ageSQL, s.number, lost.batches[0]).Scan(&micros); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	lost.age = time.Duration(micros) * time.Microsecond
	lost.missing = lost.missing || lost.age > s.relay.config.Retention // rows may be dropped before their batches
	return nil
}

func (s *shard) readBatch(ctx context.Context, number int64) (b batch, err error) {
	err = s.insist(ctx, "reading the log failed", func() error {
		found, err := scanBatches(s.relay.db.Query(ctx, batchSQL, s.number, number))
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		if len(found) == 0 {
			return fmt.Errorf("batch %d is not in the log any more", number)
		}
		b = found[0]
		return s.loadAsideRows(ctx, number)
	})
	return b, err
}

// held is what Redis has of a stream: the last row, and the tag of its batch.
type held struct {
	stream.Position
	tag string
}

// positions asks Redis what the streams hold. A stream that is gone holds nothing, whatever its position says.
func (r *Relay) positions(ctx context.Context, targets []*target) (map[*target]held, error) {
	pipe := r.rdb.Pipeline()
	positions := make([]*redis.SliceCmd, len(targets))
	exist := make([]*redis.IntCmd, len(targets))
	for i, t := range targets {
		positions[i] = pipe.HMGet(ctx, t.relay, "batch", "row", "tag")
		exist[i] = pipe.Exists(ctx, t.stream)
	}
	if len(targets) > 0 {
		if _, err := pipe.Exec(ctx); err != nil {
			return nil, fmt.Errorf("read positions: %w", err)
		}
	}
	found := make(map[*target]held, len(targets))
	for i, t := range targets {
		found[t] = held{}
		number, _ := positions[i].Val()[0].(string)
		row, _ := positions[i].Val()[1].(string)
		tag, _ := positions[i].Val()[2].(string)
		if exist[i].Val() == 0 || number == "" {
			continue
		}
		p, err := stream.ParsePosition(number + "-" + row)
		if err != nil {
			return nil, fmt.Errorf("position of %s: %w", t.stream, err)
		}
		found[t] = held{p, tag}
	}
	return found, nil
}
