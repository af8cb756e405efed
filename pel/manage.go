package pel

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/pausefull.lua
	pauseFullText string
	//go:embed lua/seek.lua
	seekText string
	//go:embed lua/delete.lua
	deleteText string

	pauseFullScript = redisx.NewScript(pauseFullText)
	seekScript      = redisx.NewScript(seekText)
	deleteScript    = redisx.NewScript(deleteText)
)

const pausedField = "paused"

// Pause stops a group at streams: within a second its consumers read nothing more there and
// start no handler; those that run may finish. What was read and not begun goes back
// uncounted. It stays paused until Resume.
func Pause(ctx context.Context, rdb redis.UniversalClient, keys ...Keys) error {
	return eachHash(ctx, rdb, keys, "pause", func(pipe redis.Pipeliner, hash string) { pipe.HSet(ctx, hash, pausedField, 1) })
}

// Resume ends a Pause; the consumers go on within a second.
func Resume(ctx context.Context, rdb redis.UniversalClient, keys ...Keys) error {
	return eachHash(ctx, rdb, keys, "resume", func(pipe redis.Pipeliner, hash string) { pipe.HDel(ctx, hash, pausedField) })
}

// PauseFull pauses a group at streams because its dead letters are full, or ends such a pause.
// It leaves alone what Pause paused; Resume ends either. It reports whether anything changed.
func PauseFull(ctx context.Context, rdb redis.UniversalClient, full bool, keys ...Keys) (changed bool, err error) {
	for _, k := range keys {
		n, err := pauseFullScript.Run(ctx, rdb, []string{k.Hash}, flag(full)).Int()
		if err != nil {
			return changed, fmt.Errorf("pel: pause group %s at %s whose letters are full: %w", k.Group, k.Stream, err)
		}
		changed = changed || n > 0
	}
	return changed, nil
}

// Paused reports for each of the keys whether the group is paused there.
func Paused(ctx context.Context, rdb redis.UniversalClient, keys ...Keys) ([]bool, error) {
	var cmds []*redis.StringCmd
	err := eachHash(ctx, rdb, keys, "look at", func(pipe redis.Pipeliner, hash string) {
		cmds = append(cmds, pipe.HGet(ctx, hash, pausedField))
	})
	paused := make([]bool, len(cmds))
	for i, cmd := range cmds {
		paused[i] = cmd.Val() != ""
	}
	return paused, err
}

func eachHash(ctx context.Context, rdb redis.UniversalClient, keys []Keys, what string, queue func(pipe redis.Pipeliner, hash string)) error {
	if len(keys) == 0 {
		return nil
	}
	pipe := rdb.Pipeline()
	for _, k := range keys {
		queue(pipe, k.Hash)
	}
	cmds, _ := pipe.Exec(ctx) // each command has its own error, and the first may be that there is no field
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !redisx.IsNil(err) {
			return fmt.Errorf("pel: %s group %s: %w", what, keys[0].Group, err)
		}
	}
	return nil
}

// Seek moves a group at a stream: what lies behind to (an ID, "0" or "$" for the end) is
// handed over next, whether it was before or not. What is pending or waits for a retry stays
// so, and is handled all the same: seeking back hands it over twice. Pause the group before
// where that matters. An ordered group's partition is leased anew. It fails where the group
// is missing.
func Seek(ctx context.Context, rdb redis.UniversalClient, k Keys, to string) error {
	if to != "$" {
		if _, err := stream.ParseID(to); err != nil {
			return fmt.Errorf("pel: seek group %s at %s: %w", k.Group, k.Stream, err)
		}
	}
	if err := seekScript.Run(ctx, rdb, []string{k.Stream, k.Hash}, k.Group, to).Err(); err != nil {
		return fmt.Errorf("pel: seek group %s at %s: %w", k.Group, k.Stream, err)
	}
	return nil
}

// ErrGroupInUse says that a group has living consumers.
var ErrGroupInUse = errors.New("group has living consumers")

// DeleteConfig says more about Delete; the zero value is the default.
type DeleteConfig struct {
	// Force deletes also while consumers live. They make the group anew, at its start.
	Force bool
	// Letters deletes the group's dead letters too. Default: they stay.
	Letters bool
}

// Delete removes a group from a topic for good: its position, what is pending, its retries
// and notes, and its place in the registry, so that it holds retention no longer. Where one
// of its consumers was heard of within the group's MinIdle it is ErrGroupInUse, and nothing
// was deleted at that partition. Deleting again goes on after an error.
func Delete(ctx context.Context, rdb redis.UniversalClient, topic stream.Topic, group string, cfg DeleteConfig) error {
	if err := topic.Validate(); err != nil {
		return err
	}
	if !stream.ValidName(group) {
		return fmt.Errorf("pel: group name %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", group)
	}
	groups, err := stream.Groups(ctx, rdb, topic)
	if err != nil {
		return err
	}
	silence := DefaultMinIdle
	for _, g := range groups {
		if g.Name == group && g.MinIdleMs > 0 {
			silence = time.Duration(g.MinIdleMs) * time.Millisecond
		}
	}
	for _, key := range topic.StreamKeys() {
		k := KeysOf(key, group)
		living, err := deleteScript.Run(ctx, rdb, []string{k.Stream, k.Members, k.Hash, k.Retry, k.Due, k.Attempts, k.Dead},
			group, silence.Milliseconds(), flag(cfg.Force), flag(cfg.Letters)).Int()
		if err == nil && living > 0 {
			err = fmt.Errorf("%w: %d were heard of in the last %s", ErrGroupInUse, living, silence)
		}
		if err != nil {
			return fmt.Errorf("pel: delete group %s at %s: %w", group, key, err)
		}
	}
	return stream.RemoveGroup(ctx, rdb, topic, group)
}
