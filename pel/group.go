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
	//go:embed lua/join.lua
	joinText string
	//go:embed lua/ensure.lua
	ensureText string
	//go:embed lua/checkpoint.lua
	checkpointText string
	//go:embed lua/due.lua
	dueText string

	joinScript       = redisx.NewScript(joinText)
	ensureScript     = redisx.NewScript(ensureText)
	checkpointScript = redisx.NewScript(checkpointText)
	dueScript        = redisx.NewScript(dueText)
)

// ErrGroupKind says that consumers of one group disagree about whether it is ordered.
var ErrGroupKind = errors.New("group is of another kind")

// Join makes the consumer a member of its group at the stream. It is ErrGroupKind where a
// member that was heard of within silence says that the group is of another kind. A group
// without living members takes the kind of the first that joins.
func Join(ctx context.Context, rdb redis.UniversalClient, k Keys, consumer string, kind stream.GroupKind, silence time.Duration) error {
	reply, err := joinScript.Run(ctx, rdb, []string{k.Hash, k.Members}, consumer, string(kind), silence.Milliseconds()).StringSlice()
	if err == nil && len(reply) == 2 {
		err = fmt.Errorf("%w: it is %q for the living consumer %s, and %q for this one; stop those of the other kind first, and wait %s for one that was killed",
			ErrGroupKind, reply[0], reply[1], kind, silence)
	}
	if err != nil {
		return fmt.Errorf("pel: join group %s at %s: %w", k.Group, k.Stream, err)
	}
	return nil
}

// Ensure makes the group at the stream, and the stream itself, where they are missing.
// A group that is made for the first time starts behind start (an ID, "0" or "$"); one
// that vanished comes back from its stored checkpoint, so that nothing is skipped and at
// most a second's work is handled again. It reports whether the group was made.
func Ensure(ctx context.Context, rdb redis.UniversalClient, k Keys, start string) (made bool, err error) {
	reply, err := ensureScript.Run(ctx, rdb, []string{k.Stream, k.Hash, k.Retry}, k.Group, start).Slice()
	if err != nil {
		return false, fmt.Errorf("pel: make group %s at %s: %w", k.Group, k.Stream, err)
	}
	return len(reply) > 0 && reply[0] == int64(1), nil
}

// Checkpoint stores how far the group has finished everything, for Ensure. It does nothing
// where the group is missing.
func Checkpoint(ctx context.Context, rdb redis.UniversalClient, k Keys) error {
	if err := checkpointScript.Run(ctx, rdb, []string{k.Stream, k.Hash}, k.Group).Err(); err != nil {
		return fmt.Errorf("pel: checkpoint of group %s at %s: %w", k.Group, k.Stream, err)
	}
	return nil
}

// MoveDue moves the retries whose time has come to the group's retry stream, and returns
// how many, and how long until the next is due (negative: none is waiting).
func MoveDue(ctx context.Context, rdb redis.UniversalClient, k Keys) (moved int, next time.Duration, err error) {
	for {
		reply, err := dueScript.Run(ctx, rdb, []string{k.Due, k.Retry, k.Dead}, k.Group, callEntries, callBytes).Int64Slice()
		if err != nil {
			return moved, 0, fmt.Errorf("pel: move due retries of group %s at %s: %w", k.Group, k.Stream, err)
		}
		if len(reply) != 2 {
			return moved, 0, fmt.Errorf("pel: move due retries of group %s at %s: %w", k.Group, k.Stream, redisx.ErrReply)
		}
		moved += int(reply[0])
		if reply[1] != 0 || reply[0] == 0 {
			return moved, time.Duration(reply[1]) * time.Millisecond, nil
		}
	}
}
