package redisx

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// RawCmd is a command that is sent once and whose reply stays as the server wrote
// it: parsing entries from those bytes costs a fraction of go-redis's maps, and
// keeps the order of fields and repeated ones.
type RawCmd struct{ *redis.RawCmd }

// NoRetry says that the command is sent once.
func (RawCmd) NoRetry() bool { return true }

// NewRaw returns a raw command for a pipeline; its reply is read with Reply.
func NewRaw(ctx context.Context, args ...any) RawCmd {
	return RawCmd{redis.NewRawCmd(ctx, args...)}
}

// Raw sends the command and returns its reply. A nil reply is redis.Nil.
func Raw(ctx context.Context, rdb redis.UniversalClient, args ...any) (Reply, error) {
	cmd := NewRaw(ctx, args...)
	_ = rdb.Process(ctx, cmd) // the error is in cmd
	return cmd.Reply(ctx, rdb)
}

// Reply returns the reply of an executed command. go-redis leaves error replies in
// the bytes and so follows no redirection of a Cluster; Reply does: MOVED and ASK say
// that the command was not carried out, so sending it again is its first execution.
func (c RawCmd) Reply(ctx context.Context, rdb redis.UniversalClient) (Reply, error) {
	for attempt := 0; ; attempt++ {
		raw, err := c.Result()
		if err != nil {
			return Reply{}, err
		}
		if len(raw) == 0 {
			return Reply{}, fmt.Errorf("redisx: empty reply to %s", c.Name())
		}
		switch {
		case raw[0] == '_', string(raw) == "*-1\r\n", string(raw) == "$-1\r\n":
			return Reply{}, redis.Nil
		case raw[0] != '-':
			return Reply{b: raw}, nil
		}
		replyErr := ServerError(strings.TrimRight(string(raw[1:]), "\r\n"))
		cluster, ok := rdb.(*redis.ClusterClient)
		if !ok || attempt == maxRedirects || !follow(ctx, cluster, c, replyErr) {
			return Reply{}, replyErr
		}
	}
}

const maxRedirects = 3

// follow sends a redirected command where the server said, and reports whether it did.
func follow(ctx context.Context, cluster *redis.ClusterClient, c RawCmd, err ServerError) bool {
	if _, moved := redis.IsMovedError(err); moved {
		cluster.ReloadState(ctx)
		if !Pause(ctx, 20*time.Millisecond) { // the reload runs in the background
			return false
		}
		_ = cluster.Process(ctx, c)
		return true
	}
	addr, ask := redis.IsAskError(err)
	if !ask {
		return false
	}
	node := nodeAt(ctx, cluster, addr)
	if node == nil {
		return false
	}
	pipe := node.Pipeline()
	pipe.Do(ctx, "asking")
	_ = pipe.Process(ctx, c)
	_, _ = pipe.Exec(ctx)
	return true
}

func nodeAt(ctx context.Context, cluster *redis.ClusterClient, addr string) *redis.Client {
	found := make(chan *redis.Client, 1)
	_ = cluster.ForEachMaster(ctx, func(_ context.Context, client *redis.Client) error {
		if client.Options().Addr == addr {
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
