package redisx

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// RawCmd is a command that is sent once and whose reply stays as the server wrote
// it: parsing entries from those bytes costs a fraction of go-redis's maps, and
// keeps the order of fields and repeated ones.
type RawCmd struct {
	*redis.RawWriteToCmd // which is never sent again by itself
	buf                  *buffer
}

// NewRaw returns a raw command for a pipeline; its reply is read with Reply.
func NewRaw(ctx context.Context, args ...any) RawCmd {
	buf, _ := buffers.Get().(*buffer)
	return RawCmd{redis.NewRawWriteToCmd(ctx, buf, args...), buf}
}

// NewRawThen is NewRaw, and calls then when the reply begins to come.
func NewRawThen(ctx context.Context, then func(), args ...any) RawCmd {
	cmd := NewRaw(ctx, args...)
	cmd.buf.then = then
	return cmd
}

// Raw sends the command and returns its reply. A nil reply is redis.Nil.
func Raw(ctx context.Context, rdb redis.UniversalClient, args ...any) (Reply, error) {
	cmd := NewRaw(ctx, args...)
	_ = rdb.Process(ctx, cmd) // the error is in cmd
	return cmd.Reply(ctx, rdb)
}

// buffers keeps the memory of replies whose readers have called Free: a read of some
// hundred entries fills some hundred kilobytes.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

const maxKept = 4 << 20 // bytes of a buffer that is kept

// buffer collects a reply. It is an io.ReaderFrom so that a string goes straight from
// the connection's buffer into its place.
type buffer struct {
	b    []byte
	then func() // to be called with the first bytes
}

func (w *buffer) Write(p []byte) (int, error) {
	if then := w.then; then != nil { // a reply begins with its header, which is written
		w.then = nil
		then()
	}
	w.b = append(w.b, p...)
	return len(p), nil
}

// ReadFrom reads what go-redis copies with a limit: one string and its line's end.
func (w *buffer) ReadFrom(r io.Reader) (int64, error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		b, err := io.ReadAll(r)
		w.b = append(w.b, b...)
		return int64(len(b)), err
	}
	start, n := len(w.b), int(limited.N)
	if cap(w.b) < start+n { // doubled: append would grow megabytes by a quarter, and copy them five times
		w.b = slices.Grow(w.b, max(n, start))
	}
	w.b = w.b[:start+n]
	got, err := io.ReadFull(limited.R, w.b[start:])
	limited.N -= int64(got)
	w.b = w.b[:start+got]
	return int64(got), err
}

// Reply returns the reply of an executed command. go-redis leaves error replies in
// the bytes and so follows no redirection of a Cluster; Reply does: MOVED and ASK say
// that the command was not carried out, so sending it again is its first execution.
func (c RawCmd) Reply(ctx context.Context, rdb redis.UniversalClient) (Reply, error) {
	for attempt := 0; ; attempt++ {
		raw := c.buf.b
		if err := c.Err(); err != nil {
			return Reply{}, err
		}
		if len(raw) == 0 {
			return Reply{}, fmt.Errorf("redisx: empty reply to %s", c.Name())
		}
		switch {
		case raw[0] == '_', string(raw) == "*-1\r\n", string(raw) == "$-1\r\n":
			return Reply{}, redis.Nil
		case raw[0] != '-':
			return Reply{b: raw, buf: c.buf}, nil
		}
		c.buf.b = raw[:0] // for another execution
		replyErr := ServerError(strings.TrimRight(string(raw[1:]), "\r\n"))
		cluster, ok := rdb.(*redis.ClusterClient)
		if !ok || attempt == maxRedirects || !follow(ctx, cluster, c, replyErr) {
			return Reply{}, replyErr
		}
	}
}

const maxRedirects = 3

// follow sends a redirected command where the server said, and reports whether it did. What the client learns of the slots may
// come from a node that has not heard of the move yet; only where that does not know the server either, the client has its way.
func follow(ctx context.Context, cluster *redis.ClusterClient, c RawCmd, err ServerError) bool {
	addr, moved := redis.IsMovedError(err)
	ask := false
	if !moved {
		addr, ask = redis.IsAskError(err)
	}
	if !moved && !ask {
		return false
	}
	node := nodeAt(ctx, cluster, addr)
	switch {
	case node != nil && ask:
		pipe := node.Pipeline()
		pipe.Do(ctx, "asking")
		_ = pipe.Process(ctx, c)
		_, _ = pipe.Exec(ctx)
	case node != nil:
		_ = node.Process(ctx, c)
	case moved && Pause(ctx, 20*time.Millisecond):
		_ = cluster.Process(ctx, c)
	default:
		return false
	}
	return true
}

// nodeAt returns the master at an address, by what some node says now, or nil.
func nodeAt(ctx context.Context, cluster *redis.ClusterClient, addr string) *redis.Client {
	found := make(chan *redis.Client, 1)
	_ = cluster.ForEachMaster(ctx, func(_ context.Context, client *redis.Client) error {
		if o := client.Options(); o.Addr == addr || o.NodeAddress == addr { // the address that the nodes tell may not be that by which they are reached
			found <- client
		}
		return nil
	})
	select {
	case client := <-found:
		return client
	default:
		return nil
	}
}
