// Package redisx holds what every package needs of Redis: replies classified in
// one place, commands that are sent once, scripts, raw replies, and the check of
// what server this is.
package redisx

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// once is a command that go-redis sends at most once. Its own retries would
// write an XADD again after a lost reply, through a Client and a ClusterClient alike.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

// NewCmd returns a command for a pipeline, and the part of it that will hold the reply.
// A pipeline with one such command is not retried as a whole.
func NewCmd(ctx context.Context, args ...any) (redis.Cmder, *redis.Cmd) {
	cmd := redis.NewCmd(ctx, args...)
	return once{cmd}, cmd
}

// Do sends a command at most once. On an error for which IsAmbiguous holds, the
// server may have carried it out all the same.
func Do(ctx context.Context, rdb redis.UniversalClient, args ...any) *redis.Cmd {
	wrapped, cmd := NewCmd(ctx, args...)
	_ = rdb.Process(ctx, wrapped) // the error is in cmd
	return cmd
}

// ID is an XADD command that is sent once and answers with the entry's ID.
type ID struct{ *redis.StringCmd }

// NoRetry says that the command is sent once.
func (ID) NoRetry() bool { return true }

// NewID returns a command whose reply is one string.
func NewID(ctx context.Context, args ...any) ID { return ID{redis.NewStringCmd(ctx, args...)} }

// MaxBlock is how long a blocking read may wait: a blocked go-redis read does not
// heed a cancelled context, so this bounds how long a stop takes.
const MaxBlock = 2 * time.Second

// BlockFor returns the BLOCK of a read through rdb: MaxBlock, or less where the
// client's ReadTimeout would cut the read off before the server answers.
func BlockFor(rdb redis.UniversalClient) time.Duration {
	timeout := ReadTimeout(rdb)
	if timeout <= 0 {
		return MaxBlock
	}
	return max(min(MaxBlock, timeout*2/3), time.Millisecond)
}

// ReadTimeout returns how long rdb waits for a reply; 0 or less means for ever.
func ReadTimeout(rdb redis.UniversalClient) time.Duration {
	switch c := rdb.(type) {
	case *redis.Client:
		return c.Options().ReadTimeout
	case *redis.ClusterClient:
		return c.Options().ReadTimeout
	}
	return 0
}

// PoolSize returns how many connections rdb opens to one server at the most.
func PoolSize(rdb redis.UniversalClient) int {
	switch c := rdb.(type) {
	case *redis.Client:
		return c.Options().PoolSize
	case *redis.ClusterClient:
		return c.Options().PoolSize
	}
	return 0
}
