package outbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/streamkeel/streamkeel/stream"
)

// What a page holds at the most. A shard has three in hand: one that is read, one whose calls are made, and one that is on its way.
const (
	pageRows  = 500
	pageBytes = 2 << 20
)

// row is an outbox row. Its event shares memory with its page.
type row struct {
	id        int64
	topic     topicName
	partition int
	event     stream.Event
	err       error // why it is no event
}

// page is some rows of a batch, in order. Its memory is used again for other pages.
type page struct {
	rows  []row
	arena []byte
	bytes int
}

var pages = sync.Pool{New: func() any { return &page{rows: make([]row, 0, pageRows)} }}

func newPage() *page { return pages.Get().(*page) }

func (p *page) free() {
	clear(p.rows)
	p.rows, p.arena, p.bytes = p.rows[:0], p.arena[:0], 0
	pages.Put(p)
}

// behind returns a copy of the first row of a call that its stream does not hold.
func (p *page) behind(c *call, held stream.Position) *row {
	for i := range p.rows {
		w := &p.rows[i]
		if w.event.Sequence.Compare(held) > 0 && slices.Contains(c.ids, w.id) {
			return w.clone()
		}
	}
	return nil
}

func (p *page) full() bool { return len(p.rows) >= pageRows || p.bytes >= pageBytes }

// A batch is a range of transactions, and apart from it the few that were running at its start and are over at its end.
// Where these are not far off, one range of the index has them all, and what was published before is left out;
// it is the planning of the query, over all row partitions, that a small batch costs. The numbers are parameters of an
// unnamed statement, and so constants for the planner: each row partition is looked up by its index. One query, sorted
// once, serves a whole batch; its rows are consumed page by page.
//
// A batch has no rows on a server whose log lacks it: its snapshots were made by another one, and mean other transactions
// there.
const (
	rowColumns = `id, ` + eventColumns

	inLog = ` AND EXISTS (SELECT FROM {schema}.relay_batch WHERE shard = $1::smallint AND batch = $2::bigint AND tag = $3::text)`

	readRange = `
SELECT ` + rowColumns + ` FROM {schema}.outbox_row
WHERE shard = $1::smallint AND id > $4::bigint AND xid >= $5::xid8 AND xid < $6::xid8
	AND pg_visible_in_snapshot(xid, $7::pg_snapshot)` + inLog

	notBefore = ` AND NOT pg_visible_in_snapshot(xid, $8::pg_snapshot)`

	readLate = `
UNION ALL
SELECT ` + rowColumns + ` FROM {schema}.outbox_row
WHERE shard = $1::smallint AND id > $4::bigint AND xid = ANY ($8::xid8[])` + inLog
)

const (
	readRangeSQL = readRange + ` ORDER BY id`
	readNearSQL  = readRange + notBefore + ` ORDER BY id`
	readBothSQL  = readRange + readLate + ` ORDER BY id`
	readRetrySQL = `
SELECT seq, ` + eventColumns + ` FROM {schema}.outbox_failed
WHERE shard = $1::smallint AND retry_batch = $2::bigint AND seq > $4::bigint` + inLog + ` ORDER BY seq`
)

// A large batch is sorted on disk. With this much memory its rows are written there once and read once; and code that the server
// compiles for each row partition costs it more than it gains. Both hold for the transaction. More memory sorts no faster.
const sortSQL = `
SELECT set_config('jit', 'off', true),
	set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 16 << 20) / 1024 || 'kB', true)`

// nearBy is how many transactions are looked at again rather than looked up one by one.
const nearBy = 1000

// statement returns the query for the batch's rows behind a row, and its parameters as text.
func (b *batch) statement(shard int, after int64) (string, [][]byte) {
	args := params(itoa(shard), itoa(b.number), b.tag, itoa(after))
	if b.retry {
		return readRetrySQL, args
	}
	first, late := b.from.xmax, b.from.finished(b.to)
	near := len(late) > 0 && first-late[0] <= nearBy
	if near {
		first = late[0]
	}
	args = append(args, params(strconv.FormatUint(first, 10), strconv.FormatUint(b.to.xmax, 10), b.to.text)...)
	switch {
	case len(late) == 0:
		return readRangeSQL, args
	case near:
		return readNearSQL, append(args, []byte(b.from.text))
	}
	list := make([]string, len(late))
	for i, xid := range late {
		list[i] = strconv.FormatUint(xid, 10)
	}
	return readBothSQL, append(args, []byte("{"+strings.Join(list, ",")+"}"))
}

// eachPage calls fn for the pages of the batch behind a row, in order, until it fails. The next page is read while
// fn has one. fn frees the page.
func (r *Relay) eachPage(ctx context.Context, shard int, b *batch, after int64, fn func(*page) error) (err error) {
	ctx, stopReading := context.WithCancel(ctx)
	defer stopReading()
	pages, failed := make(chan *page), make(chan error, 1)
	go func() {
		defer close(pages)
		failed <- r.readPages(ctx, shard, b, after, pages)
	}()
	for p := range pages {
		if err != nil {
			p.free()
		} else if err = fn(p); err != nil {
			stopReading()
		}
	}
	if readErr := <-failed; err == nil {
		err = readErr
	}
	return err
}

// readPages reads the batch's rows behind a row and hands them over page by page. It returns when the last one was
// taken. The caller frees the pages.
func (r *Relay) readPages(ctx context.Context, shard int, b *batch, after int64, out chan<- *page) error {
	conn, err := r.db.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("read batch %d: %w", b.number, err)
	}
	defer conn.Release()
	text, args := b.statement(shard, after)
	var queries pgconn.Batch // in one transaction, and one round trip
	queries.ExecParams(sortSQL, nil, nil, nil, nil)
	queries.ExecParams(r.db.schema.SQL(text), args, nil, nil, binary1)
	results := conn.Conn().PgConn().ExecBatch(ctx, &queries)
	if results.NextResult() {
		_, _ = results.ResultReader().Close() // an error is results' too
	}
	p := newPage()
	for results.NextResult() {
		for rows := results.ResultReader(); rows.NextRow(); {
			if p.add(rows.Values()); !p.full() {
				continue
			}
			select {
			case out <- p:
				p = newPage()
			case <-ctx.Done():
				p.free()
				return errors.Join(ctx.Err(), results.Close())
			}
		}
	}
	if err := results.Close(); err != nil {
		p.free()
		return fmt.Errorf("read batch %d: %w", b.number, err)
	}
	if len(p.rows) == 0 {
		p.free()
		return nil
	}
	select {
	case out <- p:
		return nil
	case <-ctx.Done():
		p.free()
		return ctx.Err()
	}
}

var binary1 = []int16{1} // all columns in binary

func params(values ...string) [][]byte {
	out := make([][]byte, len(values))
	for i, v := range values {
		out[i] = []byte(v)
	}
	return out
}

func itoa[T int | int64](n T) string { return strconv.FormatInt(int64(n), 10) }

// add takes over a row of rowColumns.
func (p *page) add(values [][]byte) {
	size := 0
	for _, v := range values {
		size += len(v)
	}
	if cap(p.arena)-len(p.arena) < size { // rows that are there keep the old memory; no more than the page can use is made
		p.arena = make([]byte, 0, max(64<<10, size, min(2*cap(p.arena), pageBytes-p.bytes+64<<10)))
	}
	column := func(i int) []byte {
		start := len(p.arena)
		p.arena = append(p.arena, values[i]...)
		return p.arena[start:len(p.arena):len(p.arena)]
	}
	text := func(i int) string { return asString(column(i)) }

	p.rows = append(p.rows, row{})
	w := &p.rows[len(p.rows)-1]
	w.id = int64(binary.BigEndian.Uint64(values[0])) //nolint:gosec // a bigint
	w.topic = topicName{text(1), text(2)}
	w.partition = int(int32(binary.BigEndian.Uint32(values[3]))) //nolint:gosec // an integer
	e := &w.event
	e.Key, e.ID, e.Type, e.Source = text(4), text(5), text(6), text(7)
	e.Time = timeOf(values[8])
	e.ContentType, e.Schema, e.CorrelationID, e.CausationID, e.TraceParent = text(9), text(10), text(11), text(12), text(13)
	e.Expires = timeOf(values[14])
	if a := values[15]; a != nil {
		if err := json.Unmarshal(a[1:], &e.Attributes); err != nil { // jsonb is a version and the text
			w.err = fmt.Errorf("attributes: %w", err)
		}
	}
	e.Data = column(16)
	p.bytes += size
}

// timeOf reads a timestamptz: microseconds since 2000. NULL is the zero time.
func timeOf(value []byte) time.Time {
	if value == nil {
		return time.Time{}
	}
	micros := int64(binary.BigEndian.Uint64(value)) //nolint:gosec // signed in the protocol
	return time.UnixMicro(micros + epoch2000).UTC()
}

const epoch2000 = 946_684_800_000_000

// asString returns the bytes as a string without copying; they must not change.
func asString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
