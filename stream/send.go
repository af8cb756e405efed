package stream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

var (
	//go:embed lua/publish.lua
	dedupText   string
	dedupScript = redisx.NewEntriesScript(dedupText)
)

// The most that one pipeline, and one call of the script in it, carries.
const (
	pipelineEvents = 500
	pipelineBytes  = 4 << 20
	callEvents     = 100
	callBytes      = 256 << 10
)

// chunk returns how many of the events one pipeline carries.
func chunk(events []Event) int {
	n := 0
	for size := 0; n < len(events) && n < pipelineEvents && size < pipelineBytes; n++ {
		size += len(events[n].Data)
	}
	return n
}

// plain reports whether an event of the topic is one XADD and nothing else.
func (p *Publisher) plain(topic Topic) bool {
	return topic.Dedup == 0 && p.config.Replicas == 0 && !p.config.Fsync && p.config.MaxLen == 0
}

// send writes events whose results name their stream, and completes the results. They go
// out in one pipeline for each server.
func (p *Publisher) send(ctx context.Context, topic Topic, events []Event, results []Result) {
	if p.config.MaxLen > 0 {
		p.refuseFull(ctx, results)
	}
	for node, indexes := range p.byNode(ctx, results) {
		s := sending{node: node, pipe: node.Pipeline(), events: events, results: results}
		if topic.Dedup > 0 {
			s.callScripts(topic, indexes)
		} else {
			s.queueAdds(ctx, indexes)
		}
		s.exec(ctx, p.config, indexes)
	}
}

// byNode groups the indexes of results without an error by the server that writes them.
// go-redis does that by itself, but for a WAIT that must follow on the same connection.
func (p *Publisher) byNode(ctx context.Context, results []Result) map[redis.UniversalClient][]int {
	all := make([]int, 0, len(results))
	for i := range results {
		if results[i].Err == nil {
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		return nil
	}
	if !redisx.IsCluster(p.rdb) || p.config.Replicas == 0 && !p.config.Fsync {
		return map[redis.UniversalClient][]int{p.rdb: all}
	}
	nodes := map[redis.UniversalClient][]int{}
	for _, i := range all {
		r := &results[i]
		node, err := redisx.NodeFor(ctx, p.rdb, r.Stream)
		if err != nil {
			r.Err = publishError(r.Stream, err)
			continue
		}
		nodes[node] = append(nodes[node], i)
	}
	return nodes
}

// refuseFull puts ErrBackpressure into the results of partitions that are full.
func (p *Publisher) refuseFull(ctx context.Context, results []Result) {
	lengths := map[string]*redis.IntCmd{}
	pipe := p.rdb.Pipeline()
	for i := range results {
		if key := results[i].Stream; lengths[key] == nil {
			lengths[key] = pipe.XLen(ctx, key)
		}
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i := range results {
		r := &results[i]
		n, err := lengths[r.Stream].Result()
		switch {
		case err != nil:
			r.Err = fmt.Errorf("stream: publish to %s: look at its length: %w", r.Stream, err)
		case n >= p.config.MaxLen:
			r.Err = fmt.Errorf("stream: publish to %s: %w: it holds %d entries, %d are allowed", r.Stream, ErrBackpressure, n, p.config.MaxLen)
		}
	}
}

// sending is one pipeline on its way.
type sending struct {
	node    redis.UniversalClient
	pipe    redis.Pipeliner
	events  []Event
	results []Result
	adds    []redisx.ID   // one for each event
	scripts []*scriptCall // or one for some
}

// scriptCall is a call of the script for some events, no two of them the same.
type scriptCall struct {
	keys    []string
	window  time.Duration
	events  []Event // of the whole sending
	indexes []int
	reply   *redis.Cmd
}

func (s *sending) queueAdds(ctx context.Context, indexes []int) {
	s.adds = make([]redisx.ID, len(indexes))
	for k, i := range indexes {
		s.adds[k] = add(ctx, s.results[i].Stream, &s.events[i])
		_ = s.pipe.Process(ctx, s.adds[k]) // only queues
	}
}

// callScripts divides the events into calls, of up to 100 of a partition, no two with the same id.
func (s *sending) callScripts(topic Topic, indexes []int) {
	byStream := map[string]*[]int{}
	var order []string
	for _, i := range indexes {
		key := s.results[i].Stream
		list := byStream[key]
		if list == nil {
			list = new([]int)
			byStream[key], order = list, append(order, key)
		}
		*list = append(*list, i)
	}
	inCall := make(map[string]bool, callEvents)
	for _, key := range order {
		keys := []string{key, KeyDedup.Key(key, ""), KeyDedup.Key(key, "0"), KeyDedup.Key(key, "1")}
		for rest := *byStream[key]; len(rest) > 0; {
			n := 0
			clear(inCall)
			for size := 0; n < len(rest) && n < callEvents && size < callBytes; n++ {
				e := &s.events[rest[n]]
				if inCall[e.ID] {
					break
				}
				inCall[e.ID] = true
				size += len(e.Data)
			}
			s.scripts = append(s.scripts, &scriptCall{keys: keys, window: topic.Dedup, events: s.events, indexes: rest[:n]})
			rest = rest[n:]
		}
	}
}

// appendArgs appends what the script gets.
func (c *scriptCall) appendArgs(args []any) []any {
	const perEvent = 8 // about
	args = slices.Grow(args, perEvent*(len(c.indexes)+1))
	args = append(args, c.window.Milliseconds(), len(c.indexes))
	for _, i := range c.indexes {
		args = append(args, c.events[i].Source+"\x00"+c.events[i].ID) // neither has a NUL
	}
	var entries redisx.Entries
	for _, i := range c.indexes {
		var few [32]any
		entries.Add(c.events[i].AppendFields(few[:0]))
	}
	return entries.AppendTo(args)
}

// complete reads the reply into the results.
func (c *scriptCall) complete(results []Result) {
	ids, err := c.reply.StringSlice()
	if err == nil && len(ids) != len(c.indexes) {
		err = redisx.ErrReply
	}
	for k, i := range c.indexes {
		r := Result{Err: err}
		if err == nil {
			id, duplicate := strings.CutPrefix(ids[k], "=")
			r = resultOf(id, nil)
			r.Duplicate = duplicate
		}
		r.Stream = results[i].Stream
		results[i] = r
	}
}

// exec sends the pipeline, waits for replicas and disks where the config asks for them,
// and completes the results.
func (s *sending) exec(ctx context.Context, config PublisherConfig, indexes []int) {
	for _, c := range s.scripts {
		var cmd redis.Cmder
		cmd, c.reply = dedupScript.NewLateCmd(ctx, false, c.keys, c.appendArgs)
		_ = s.pipe.Process(ctx, cmd) // only queues
	}
	notDurable := s.run(ctx, config)
	s.pipe = s.node.Pipeline()
	for _, c := range s.scripts {
		if redisx.IsNoScript(c.reply.Err()) {
			var cmd redis.Cmder
			cmd, c.reply = dedupScript.NewLateCmd(ctx, true, c.keys, c.appendArgs)
			_ = s.pipe.Process(ctx, cmd)
		}
	}
	if s.pipe.Len() > 0 { // a WAIT must be behind what it waits for
		notDurable = errors.Join(notDurable, s.run(ctx, config))
	}
	for k, cmd := range s.adds {
		r := resultOf(cmd.Result())
		r.Stream = s.results[indexes[k]].Stream
		s.results[indexes[k]] = r
	}
	for _, c := range s.scripts {
		c.complete(s.results)
	}
	for _, i := range indexes {
		r := &s.results[i]
		if r.Err != nil {
			r.Err = publishError(r.Stream, r.Err)
		} else if notDurable != nil {
			r.Err = fmt.Errorf("stream: publish to %s: %w", r.Stream, notDurable)
		}
	}
}

// run sends what is queued, and behind it the command that waits for replicas and disks. It
// returns why these did not confirm.
func (s *sending) run(ctx context.Context, config PublisherConfig) (notDurable error) {
	var durable *redis.Cmd
	if config.Replicas > 0 || config.Fsync {
		args := []any{"wait", config.Replicas, config.DurableTimeout.Milliseconds()}
		if config.Fsync {
			args = []any{"waitaof", 1, config.Replicas, config.DurableTimeout.Milliseconds()}
		}
		var cmd redis.Cmder
		cmd, durable = redisx.NewCmd(ctx, args...)
		_ = s.pipe.Process(ctx, cmd) // only queues
	}
	_, _ = s.pipe.Exec(ctx) // each command has its own error
	if durable == nil {
		return nil
	}
	return unconfirmed(durable, config)
}

// unconfirmed returns what the reply to WAIT or WAITAOF lacks, or nil.
func unconfirmed(reply *redis.Cmd, config PublisherConfig) error {
	var local, replicas int64
	var err error
	if config.Fsync {
		var counts []int64
		if counts, err = reply.Int64Slice(); err == nil && len(counts) == 2 {
			local, replicas = counts[0], counts[1]
		}
	} else {
		replicas, err = reply.Int64()
	}
	switch {
	case err != nil:
		return errors.Join(ErrNotDurable, err)
	case config.Fsync && local < 1:
		return fmt.Errorf("%w: not on the primary's disk within %s", ErrNotDurable, config.DurableTimeout)
	case replicas < int64(config.Replicas):
		return fmt.Errorf("%w: %d of %d replicas within %s", ErrNotDurable, replicas, config.Replicas, config.DurableTimeout)
	}
	return nil
}

// add returns the command that writes the event.
func add(ctx context.Context, key string, e *Event) redisx.ID {
	args := make([]any, 0, 3+2*(13+len(e.Attributes)))
	args = append(args, "xadd", key, "*")
	return redisx.NewID(ctx, e.AppendFields(args)...)
}

func resultOf(id string, err error) Result {
	if err != nil {
		return Result{Err: err}
	}
	parsed, err := ParseID(id)
	return Result{ID: parsed, Err: err}
}

func publishError(key string, err error) error {
	if err == nil {
		return nil
	}
	if redisx.IsAmbiguous(err) {
		return fmt.Errorf("stream: publish to %s: %w: %w", key, ErrUnknown, err)
	}
	return fmt.Errorf("stream: publish to %s: %w", key, err)
}
