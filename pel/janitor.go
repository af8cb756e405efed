package pel

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

var (
	//go:embed lua/janitor.lua
	janitorText   string
	janitorScript = redisx.NewScript(janitorText)
)

// SweepNames deletes the names of consumers that have nothing pending and were silent for
// longer than silence, and returns them. Deleting a name discards what is pending under
// it, so look and deletion are one step; a Reclaimer empties the lists of the dead first.
// A consumer that wakes up later is safe: its next read makes the name again.
func SweepNames(ctx context.Context, rdb redis.UniversalClient, k Keys, silence time.Duration) ([]string, error) {
	return deleteNames(ctx, rdb, k, silence, "")
}

// Leave deletes a consumer's own name, unless something is still pending under it.
func Leave(ctx context.Context, rdb redis.UniversalClient, k Keys, consumer string) error {
	_, err := deleteNames(ctx, rdb, k, 0, consumer)
	return err
}

func deleteNames(ctx context.Context, rdb redis.UniversalClient, k Keys, silence time.Duration, leaver string) ([]string, error) {
	names, err := janitorScript.Run(ctx, rdb, []string{k.Members, k.Stream, k.Retry}, k.Group, silence.Milliseconds(), leaver).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("pel: delete consumer names of group %s at %s: %w", k.Group, k.Stream, err)
	}
	return names, nil
}
