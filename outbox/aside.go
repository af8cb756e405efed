package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// refusal says why a row can never be published.
type refusal struct{ error }

// aside is what a shard knows of rows that were refused. Only the shard's owner moves rows to outbox_failed and back, so
// that between two batches this is all there is.
type aside struct {
	rows    map[int64]bool                // of the batch in hand: they are in outbox_failed
	present map[rowEvent]bool             // they are in their stream, though its position does not tell
	refused map[int64]string              // of the batch in hand: they go there, and why
	streams map[*target]string            // of the batch in hand: all rows of the stream go there
	parked  map[parkedKey]stream.Position // rows of these keys behind this position follow
	pending []asideRow                    // to be written with the page in hand
}

type parkedKey struct {
	topic topicName
	key   string
}

type asideRow struct {
	row    *row
	reason string
	parked bool
	again  bool      // it is wanted again at once
	parks  parkedKey // its key, where it is the first that is parked
}

const (
	parkedSQL = `
SELECT DISTINCT ON (namespace, topic, key) namespace, topic, key, batch, id FROM {schema}.outbox_failed
WHERE shard = $1::smallint AND parked AND retry_batch IS NULL ORDER BY namespace, topic, key, batch, id`

	asideRowsSQL = `SELECT id FROM {schema}.outbox_failed WHERE shard = $1::smallint AND batch = $2::bigint`

	setAsideSQL = `
INSERT INTO {schema}.outbox_failed (shard, batch, id, parked, reason, retry_wanted, ` + eventColumns + `)
SELECT l.shard, $3::bigint, $4::bigint, $5::boolean, $6::text, $23::boolean, $7::text, $8::text, $9::integer, $10::text, $11::text,
	$12::text, $13::text, $14::timestamptz, nullif($15::text, ''), nullif($16::text, ''), nullif($17::text, ''),
	nullif($18::text, ''), nullif($19::text, ''), $20::timestamptz, nullif($21::text, '')::jsonb, $22::bytea
FROM {schema}.relay_lease l WHERE l.shard = $1::smallint AND l.epoch = $2::bigint
ON CONFLICT DO NOTHING`
)

// loadAside reads what the shard's former owner has set aside.
func (s *shard) loadAside(ctx context.Context) error {
	rows, err := s.relay.db.Query(ctx, parkedSQL, s.number)
	if err != nil {
		return fmt.Errorf("read parked keys: %w", err)
	}
	s.aside.parked = map[parkedKey]stream.Position{}
	var k parkedKey
	var from stream.Position
	_, err = pgx.ForEachRow(rows, []any{&k.topic.namespace, &k.topic.name, &k.key, &from.Batch, &from.Row}, func() error {
		s.aside.parked[k] = from
		return nil
	})
	if err != nil {
		return fmt.Errorf("read parked keys: %w", err)
	}
	return s.relay.db.QueryRow(ctx, haltedSQL, s.number).Scan(&s.halted)
}

// loadAsideRows reads which rows of a batch were set aside; they are not published with it again.
func (s *shard) loadAsideRows(ctx context.Context, number int64) error {
	rows, err := s.relay.db.Query(ctx, asideRowsSQL, s.number, number)
	if err != nil {
		return fmt.Errorf("read rows set aside: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("read rows set aside: %w", err)
	}
	s.forgetAside()
	for _, id := range ids {
		s.aside.rows[id] = true
	}
	return nil
}

// forgetAside forgets the rows of the batch that was in hand.
func (s *shard) forgetAside() {
	s.aside.rows, s.aside.present = map[int64]bool{}, map[rowEvent]bool{}
	s.aside.refused, s.aside.streams = map[int64]string{}, map[*target]string{}
	s.dropPending()
}

// dropPending forgets the rows that were to go aside, and did not: their page is read again.
func (s *shard) dropPending() {
	for _, a := range s.aside.pending {
		delete(s.aside.parked, a.parks)
	}
	s.aside.pending = nil
}

// place returns where a row goes; nil if it is set aside.
func (s *shard) place(ctx context.Context, b *batch, w *row) (*target, error) {
	if s.aside.rows[w.id] || s.aside.present[rowEvent{w.id, w.event.ID}] {
		return nil, nil
	}
	t, err := s.target(ctx, w)
	if err == nil && w.err != nil {
		err = refusal{w.err}
	}
	if err == nil && t.stream == "" {
		err = refusal{fmt.Errorf("topic %s is not declared any more", w.topic.name)}
	}
	if err == nil {
		if reason, ok := s.asideReason(w, t); ok {
			s.setAside(w, reason)
			return nil, nil
		}
		return t, nil
	}
	var r refusal
	if !errors.As(err, &r) {
		return nil, err
	}
	if s.relay.config.OnRefused == Halt {
		return nil, &fault{kind: faultRefused, detail: r.Error(), row: w.clone(), err: r}
	}
	s.setAside(w, r.Error())
	return nil, nil
}

// asideReason returns why a row that has a place goes aside, if it does.
func (s *shard) asideReason(w *row, t *target) (string, bool) {
	if reason, ok := s.aside.refused[w.id]; ok {
		return reason, true
	}
	if reason, ok := s.aside.streams[t]; ok {
		return reason, true
	}
	if len(s.aside.parked) > 0 && w.event.Key != "" {
		from, parked := s.aside.parked[parkedKey{w.topic, w.event.Key}]
		if parked && w.event.Sequence.Compare(from) > 0 {
			return "an earlier row of its key was refused", true
		}
	}
	return "", false
}

// setAside notes a row for outbox_failed.
func (s *shard) setAside(w *row, reason string) {
	again := reason == reasonResync
	park := (s.relay.config.OnRefused == ParkKey || again) && w.event.Key != ""
	key, parks := parkedKey{w.topic, w.event.Key}, parkedKey{}
	if _, known := s.aside.parked[key]; park && !known {
		parks = parkedKey{topicName{strings.Clone(key.topic.namespace), strings.Clone(key.topic.name)}, strings.Clone(key.key)}
		s.aside.parked[parks] = w.event.Sequence
	}
	s.aside.pending = append(s.aside.pending, asideRow{row: w, reason: reason, parked: park, again: again, parks: parks})
}

// writeAside moves the page's rows that go aside to outbox_failed, in their order, if the shard is still this
// relay's.
func (s *shard) writeAside(ctx context.Context, b *batch) error {
	pending := s.aside.pending
	if len(pending) == 0 {
		return nil
	}
	statements := &pgx.Batch{}
	for _, a := range pending {
		e := &a.row.event
		attributes, err := attributesOf(e)
		if err != nil {
			return err
		}
		statements.Queue(s.relay.db.schema.SQL(setAsideSQL), s.number, s.lease.epoch, b.number, a.row.id, a.parked, a.reason, a.row.topic.namespace,
			a.row.topic.name, a.row.partition, e.Key, e.ID, e.Type, e.Source, nullTime(e.Time), e.ContentType, e.Schema,
			e.CorrelationID, e.CausationID, e.TraceParent, nullTime(e.Expires), attributes, notNil(e.Data), a.again)
	}
	if err := s.relay.db.pool.SendBatch(ctx, statements).Close(); err != nil {
		return fmt.Errorf("set rows aside: %w", err)
	}
	if err := s.checkLease(ctx); err != nil { // else they were left out
		return err
	}
	s.aside.pending = nil
	for _, a := range pending {
		s.aside.rows[a.row.id] = true
		s.relay.log.Warn(ctx, "a row was refused, and is in outbox_failed", a.reason, "shard", s.number, "id", a.row.event.ID, "topic", a.row.topic.name)
		s.relay.observe(ctx, Observation{Moment: Refused, Shard: s.number, Batch: b.number, Event: a.row.clone().event, Err: errors.New(a.reason)})
	}
	return nil
}

// refuse does with a row that Redis refused what the config says.
func (s *shard) refuse(ctx context.Context, b *batch, f *fault) error {
	if s.relay.config.OnRefused == Halt || f.row == nil || f.target == nil {
		return s.halt(ctx, b, stopOf(f))
	}
	if redisx.IsWrongType(f.err) || redisx.IsNoPerm(f.err) || strings.HasPrefix(f.detail, "WRONGTYPE") || strings.HasPrefix(f.detail, "NOPERM") {
		s.aside.streams[f.target] = f.detail // no row will do better
	} else {
		s.aside.refused[f.row.id] = f.detail
	}
	return nil
}

// clone returns a copy that shares no memory with the page.
func (w *row) clone() *row {
	e := w.event
	for _, text := range []*string{&e.ID, &e.Type, &e.Source, &e.Key, &e.ContentType, &e.Schema, &e.CorrelationID, &e.CausationID, &e.TraceParent} {
		*text = strings.Clone(*text)
	}
	e.Data = append([]byte(nil), e.Data...)
	return &row{id: w.id, topic: topicName{strings.Clone(w.topic.namespace), strings.Clone(w.topic.name)}, partition: w.partition, event: e, err: w.err}
}
