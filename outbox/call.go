package outbox

import (
	"context"
	_ "embed"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

//go:embed lua/publish.lua
var publishText string

var publishScript = redisx.NewEntriesScript(publishText)

// What one call of the script adds at the most: about a millisecond of the server's time.
const (
	callRows  = 100
	callBytes = 256 << 10
)

// call is one call of the publish script: rows of a batch for one stream.
type call struct {
	target *target
	prev   stream.Position // the row that must be in the stream
	last   stream.Position
	head   []any
	ids    []int64
	size   int
	cmd    *redis.Cmd

	entries redisx.Entries
	fields  []any // of the last row

	undone error // why the rows are not on as many servers and disks as they should be
}

// newCall begins a call that follows what was called for the target before.
func newCall(system string, b *batch, t *target) *call {
	c := &call{target: t, prev: later(t.known, t.sent)}
	t.open = c
	c.head = []any{system, b.number, b.tag, c.prev.Batch, c.prev.Row}
	return c
}

func (c *call) full() bool { return len(c.ids) >= callRows || c.size >= callBytes }

// add adds a row. Its page must not be freed before the call was sent.
func (c *call) add(w *row) {
	c.fields = w.event.AppendFields(c.fields[:0])
	c.entries.Add(c.fields)
	c.ids = append(c.ids, w.id)
	c.last, c.target.sent = w.event.Sequence, w.event.Sequence
	c.size += len(w.event.Data) + 256
}

// appendArgs appends what the script gets.
func (c *call) appendArgs(args []any) []any {
	args = slices.Grow(args, len(c.head)+1+8*len(c.ids)) // about
	args = append(append(args, c.head...), len(c.ids))
	for i := range c.ids {
		args = append(args, &c.ids[i])
	}
	return c.entries.AppendTo(args)
}

// exec sends the calls, in one pipeline to each server. Every call has its own reply or error; the error is that of a
// context that ended before.
func (r *Relay) exec(ctx context.Context, calls []*call) error {
	if err := ctx.Err(); err != nil || len(calls) == 0 {
		return err
	}
	// What is sent is finished, also if the shard is stopped meanwhile: the client's timeouts bound it.
	ctx = context.WithoutCancel(ctx)
	if !r.config.durable() || !redisx.IsCluster(r.rdb) {
		r.execOn(ctx, r.rdb, calls)
		return nil
	}
	// go-redis would send a WAIT, which names no key, anywhere.
	byNode := map[redis.UniversalClient][]*call{}
	for _, c := range calls {
		node, err := redisx.NodeFor(ctx, r.rdb, c.target.stream)
		if err != nil {
			return err
		}
		byNode[node] = append(byNode[node], c)
	}
	for node, calls := range byNode {
		r.execOn(ctx, node, calls)
	}
	return nil
}

// execOn sends the calls to one server, or Cluster. Where that does not know the script they are sent again with its text: a
// call that was carried out changes nothing then.
func (r *Relay) execOn(ctx context.Context, node redis.UniversalClient, calls []*call) {
	r.callOn(ctx, node, calls, false)
	if slices.ContainsFunc(calls, func(c *call) bool { return redisx.IsNoScript(c.cmd.Err()) }) {
		r.callOn(ctx, node, calls, true)
	}
}

func (r *Relay) callOn(ctx context.Context, node redis.UniversalClient, calls []*call, text bool) {
	pipe := node.Pipeline()
	for _, c := range calls {
		var wrapped redis.Cmder
		wrapped, c.cmd = publishScript.NewLateCmd(ctx, text, []string{c.target.stream, c.target.relay}, c.appendArgs)
		_ = pipe.Process(ctx, wrapped) // only queues
	}
	var durable *redis.Cmd
	if r.config.durable() {
		args := []any{"wait", r.config.Replicas, r.config.DurableTimeout.Milliseconds()}
		if r.config.Fsync {
			args = []any{"waitaof", 1, r.config.Replicas, r.config.DurableTimeout.Milliseconds()}
		}
		var wrapped redis.Cmder
		wrapped, durable = redisx.NewCmd(ctx, args...)
		_ = pipe.Process(ctx, wrapped)
	}
	_, _ = pipe.Exec(ctx) // each call has its own error
	if durable != nil {
		err := r.unconfirmed(durable)
		for _, c := range calls {
			c.undone = err
		}
	}
}

// unconfirmed returns what the reply to WAIT or WAITAOF lacks, or nil. The script writes a stream's position also where all rows
// are there already, so that a repeated call waits for them too.
func (r *Relay) unconfirmed(reply *redis.Cmd) error {
	disks, replicas := int64(1), int64(0)
	var err error
	if r.config.Fsync {
		var counts []int64
		if counts, err = reply.Int64Slice(); err == nil && len(counts) == 2 {
			disks, replicas = counts[0], counts[1]
		}
	} else {
		replicas, err = reply.Int64()
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", stream.ErrNotDurable, err)
	case disks < 1:
		return fmt.Errorf("%w: not on the primary's disk within %s", stream.ErrNotDurable, r.config.DurableTimeout)
	case replicas < int64(r.config.Replicas):
		return fmt.Errorf("%w: %d of %d replicas within %s", stream.ErrNotDurable, replicas, r.config.Replicas, r.config.DurableTimeout)
	}
	return nil
}

// fault is why rows could not be added. The kinds are in the order of how much they matter.
type fault struct {
	kind   faultKind
	target *target
	want   stream.Position // what the stream should hold
	held   stream.Position // what it holds
	detail string
	row    *row // that was refused
	err    error
}

type faultKind int

const (
	faultUnavailable faultKind = iota // the server is away, or takes no writes now
	faultGap                          // it lost the tail
	faultRefused                      // it will never take the row
	faultUnknown                      // it knows nothing of the stream
	faultAhead                        // it holds more than it should
	faultForeign                      // it holds rows of another database
)

func (f *fault) Error() string {
	switch f.kind {
	case faultGap:
		return fmt.Sprintf("stream %s ends at %s, should hold %s: Redis lost the rest", f.target.stream, f.held, f.want)
	case faultUnknown:
		return fmt.Sprintf("stream %s should hold rows up to %s, and Redis knows of none", f.target.stream, f.want)
	case faultAhead:
		return fmt.Sprintf("stream %s holds rows up to %s, the outbox knows of %s: Postgres lost the rest", f.target.stream, f.held, f.want)
	case faultForeign:
		return fmt.Sprintf("stream %s holds rows of another database, %s", f.target.stream, f.detail)
	case faultRefused:
		if f.target == nil {
			return fmt.Sprintf("row %d is refused: %s", f.row.id, f.detail)
		}
		return fmt.Sprintf("stream %s refused a row: %s", f.target.stream, f.detail)
	}
	return f.err.Error()
}

func (f *fault) Unwrap() error { return f.err }

// outcome returns what went wrong, or nil.
func (c *call) outcome() *fault {
	f := &fault{target: c.target, want: c.prev}
	reply, err := c.cmd.StringSlice()
	switch {
	case err != nil && redisx.IsServer(err) && !redisx.IsUnavailable(err):
		f.kind, f.detail, f.err = faultRefused, err.Error(), err
		return f
	case err != nil:
		f.kind, f.err = faultUnavailable, err
		return f
	case len(reply) < 3:
		f.kind, f.err = faultUnavailable, fmt.Errorf("outbox: unexpected reply %q", reply)
		return f
	}
	if f.held, err = stream.ParsePosition(reply[1] + "-" + reply[2]); err != nil {
		f.kind, f.err = faultUnavailable, err
		return f
	}
	if len(reply) > 3 {
		f.detail = reply[3]
	}
	switch reply[0] {
	case "ok":
		if c.undone != nil {
			f.kind, f.err = faultUnavailable, c.undone
			return f
		}
		c.target.held = f.held
		return nil
	case "gap":
		f.kind = faultGap
	case "unknown":
		f.kind = faultUnknown
	case "ahead":
		f.kind = faultAhead
	case "foreign":
		f.kind = faultForeign
	default:
		f.kind = faultRefused
		if f.held.Compare(c.target.known) > 0 {
			c.target.held = f.held // some rows were added
		}
	}
	return f
}
