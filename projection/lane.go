package projection

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// lane is what one goroutine reads and applies: all partitions of a standalone server, or
// one partition of a Cluster.
type lane struct {
	r          *Runner
	partitions []*partition
	resumed    bool // the checkpoints are loaded, and the streams were compared with them
	turn       int  // which partition comes first in the next read
}

// partition is one stream, and where the projection is in it.
type partition struct {
	topic stream.Topic
	key   string

	at        Checkpoint
	seen      string    // where the group stood when the stream was found intact, "" for nowhere
	more      bool      // the last read left some
	entrySize int       // bytes of an entry of late, about
	failures  int       // failed attempts of the event behind the checkpoint
	retryAt   time.Time // when it is due again
	inspected time.Time // when the stream was last compared with the checkpoint
}

// inspectEvery is how often a stream without traffic is compared with its checkpoint.
const inspectEvery = 5 * time.Second

// runOnce makes one pass: it waits for entries if told to, reads, compares each stream with
// its checkpoint, and only then applies. After an error nothing is believed any more: the
// next pass loads the checkpoints anew.
func (l *lane) runOnce(ctx, work context.Context, wait bool) (result Result, err error) {
	defer func() {
		if err != nil {
			l.resumed = false
		}
	}()
	if !l.resumed {
		if err := l.resume(ctx); err != nil {
			return Result{}, err
		}
		l.resumed = true
	}
	ready, err := l.wait(ctx, wait)
	if err != nil {
		return Result{}, err
	}
	reads, err := l.read(ctx, ready)
	if err != nil || len(reads) == 0 {
		return Result{}, err
	}
	result, err = l.apply(work, reads)
	if err != nil && (isOutage(err) || work.Err() != nil) {
		return result, err
	}
	moved := make([]*partition, len(reads))
	for i := range reads {
		moved[i] = reads[i].p
	}
	if holdErr := l.hold(work, moved); err == nil {
		err = holdErr
	}
	return result, err
}

// wait returns the partitions that have entries beyond their checkpoints, for which it
// waits a while if there are none and nothing else is due.
func (l *lane) wait(ctx context.Context, wait bool) ([]*partition, error) {
	block := redisx.BlockFor(l.r.rdb)
	var open []*partition
	for i := range l.partitions {
		p := l.partitions[(l.turn+i)%len(l.partitions)]
		if due := time.Until(p.retryAt); due > 0 {
			block = min(block, due)
			continue
		}
		wait, p.more = wait && !p.more, false
		open = append(open, p)
	}
	l.turn++
	if len(open) == 0 {
		if wait {
			redisx.Pause(ctx, block)
		}
		return nil, ctx.Err()
	}
	args := []any{"xread", "count", 1}
	if wait {
		args = append(args, "block", max(block.Milliseconds(), 1))
	}
	args = append(args, "streams")
	for _, p := range open {
		args = append(args, p.key)
	}
	for _, p := range open {
		args = append(args, p.at.ID.String())
	}
	reply, err := redisx.Raw(ctx, l.r.rdb, args...)
	if redisx.IsNil(err) {
		return nil, nil
	}
	if err != nil {
		return nil, l.r.redisError("wait for entries", err)
	}
	names, err := streamNames(&reply)
	if err != nil {
		return nil, l.r.redisError("wait for entries", err)
	}
	var ready []*partition
	for _, p := range open {
		if names[p.key] {
			ready = append(ready, p)
		}
	}
	return ready, nil
}

// streamNames returns which streams a reply to XREAD has entries of.
func streamNames(r *redisx.Reply) (map[string]bool, error) {
	paired := r.Kind() == '*' // RESP2 wraps each stream with its name, RESP3 has a map
	n, err := r.Array()
	if err != nil {
		return nil, err
	}
	if !paired {
		n /= 2
	}
	names := make(map[string]bool, max(n, 0))
	for range n {
		if paired {
			if _, err := r.Array(); err != nil {
				return nil, err
			}
		}
		name, err := r.Bytes()
		if err != nil {
			return nil, err
		}
		names[string(name)] = true
		if err := r.Skip(); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// batchBytes bounds what one pass reads, about.
const batchBytes = 16 << 20

// read reads the ready partitions and compares their streams, and those that were not
// looked at for a while, with their checkpoints.
//
// The look comes after the read, in the same pipeline and so through the same connection:
// what was read continues the checkpoint if the stream does so now. The other way around, a
// failover in between would leave a gap that nobody sees.
func (l *lane) read(ctx context.Context, ready []*partition) ([]reading, error) {
	ready = ready[:min(len(ready), l.r.config.BatchSize)]
	counts := map[*partition]int{}
	for _, p := range ready {
		counts[p] = p.count(l.r.config.BatchSize, len(ready))
	}
	var look []*partition
	for _, p := range l.partitions {
		if counts[p] > 0 || time.Since(p.inspected) > inspectEvery {
			look = append(look, p)
		}
	}
	if len(look) == 0 {
		return nil, nil
	}
	replies, histories, err := l.readAndInspect(ctx, ready, counts, look)
	if err != nil {
		return nil, err
	}
	usable, err := l.compare(ctx, look, histories)
	if err != nil {
		return nil, err
	}
	var reads []reading
	for i, p := range ready {
		if !usable[p] {
			continue
		}
		entries, err := l.decode(ctx, p, replies[i])
		if err != nil {
			return nil, err
		}
		p.more = len(entries) == counts[p]
		if len(entries) > 0 {
			reads = append(reads, reading{p, entries})
		}
	}
	return reads, nil
}

// count returns how many entries of the partition one read takes, of ready ones that share
// a batch.
func (p *partition) count(batch, ready int) int {
	if p.failures > 0 {
		return 1
	}
	n := max(batch/ready, 1)
	if p.entrySize > 0 {
		n = min(n, max(batchBytes/ready/p.entrySize, 1))
	}
	return n
}

func (l *lane) readAndInspect(ctx context.Context, ready []*partition, counts map[*partition]int, look []*partition) ([]redisx.RawCmd, []history, error) {
	reads, histories := make([]redisx.RawCmd, len(ready)), make([]history, len(look))
	err := withScripts(func(text bool) (err error) {
		pipe := l.r.rdb.Pipeline()
		for i, p := range ready {
			reads[i] = redisx.NewRaw(ctx, "xrange", p.key, "("+p.at.ID.String(), "+", "count", counts[p])
			_ = pipe.Process(ctx, reads[i]) // only queues
		}
		looks := make([]*redis.Cmd, len(look))
		for i, p := range look {
			cmd, reply := inspectScript.NewCmd(ctx, text, []string{p.key}, l.r.config.Name, p.at.ID.String())
			looks[i] = reply
			_ = pipe.Process(ctx, cmd) // only queues
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
		for i := range looks {
			if histories[i], err = parseHistory(looks[i].Slice()); err != nil {
				return l.r.redisError("inspect "+look[i].key, err)
			}
		}
		return nil
	})
	return reads, histories, err
}

func (l *lane) decode(ctx context.Context, p *partition, cmd redisx.RawCmd) ([]stream.Entry, error) {
	fail := func(err error) ([]stream.Entry, error) { return nil, l.r.redisError("read "+p.key, err) }
	reply, err := cmd.Reply(ctx, l.r.rdb)
	if err != nil {
		return fail(err)
	}
	n, err := reply.Array()
	if err != nil {
		return fail(err)
	}
	entries := make([]stream.Entry, 0, max(n, 0))
	start := reply.Pos()
	for range n {
		en, ok, err := stream.DecodeEntry(&reply, p.key)
		if err == nil && !ok {
			err = fmt.Errorf("%w: entry without fields", redisx.ErrReply)
		}
		if err != nil {
			return fail(err)
		}
		p.topic.AdoptEntry(&en, "")
		entries = append(entries, en)
	}
	if n > 0 {
		p.entrySize = max(len(reply.Since(start))/n, 1)
	}
	return entries, nil
}
