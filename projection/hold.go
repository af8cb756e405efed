package projection

import (
	"context"
	_ "embed"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

var (
	//go:embed lua/hold.lua
	holdText   string
	holdScript = redisx.NewScript(holdText)
)

// hold moves the projection's group on each stream to the checkpoint, and makes it where
// it is missing. Nobody reads by this group: it keeps retention from trimming what the
// projection has not applied, has a lag for all to see, and proves later that the stream
// once had the entry at the checkpoint. It follows the checkpoint and never leads it, so
// that what it releases is committed.
func (l *lane) hold(ctx context.Context, partitions []*partition) error {
	if len(partitions) == 0 {
		return nil
	}
	return withScripts(func(text bool) error {
		pipe := l.r.rdb.Pipeline()
		replies := make([]*redis.Cmd, len(partitions))
		for i, p := range partitions {
			cmd, reply := holdScript.NewCmd(ctx, text, []string{p.key}, l.r.config.Name, p.at.ID.String(), p.at.Event, p.at.EntriesRead, p.seen)
			replies[i] = reply
			_ = pipe.Process(ctx, cmd) // only queues
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
		for i, reply := range replies {
			if err := reply.Err(); err != nil {
				return l.r.redisError("move the group of "+partitions[i].key, err)
			}
		}
		return nil
	})
}

// withScripts runs fn, and once more with the scripts' texts if the server lacked them.
func withScripts(fn func(text bool) error) error {
	err := fn(false)
	if redisx.IsNoScript(err) {
		err = fn(true)
	}
	return err
}
