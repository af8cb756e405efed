package projection_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/projection"
)

func truncate(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `TRUNCATE ledger`)
	return err
}

func TestRebuildAppliesEverythingAgainWhileRunnersAreAtWork(t *testing.T) {
	w := newWorld(t, 2)
	w.addRelayed(0, numbered("a", 1, 5)...)
	w.addDirect(1, numbered("b", 1, 5)...)
	stop := start(t, w.runner())
	w.eventually(10)
	require.NoError(t, w.runner().Rebuild(t.Context(), truncate))
	w.addRelayed(0, "a6")
	w.eventually(11)
	require.NoError(t, stop())
	require.ElementsMatch(t, append(numbered("a", 1, 6), numbered("b", 1, 5)...), w.ledger())
	require.EqualValues(t, 0, w.group(0).Lag)
}

func TestRebuildOfATrimmedStreamIsRefused(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, numbered("e", 1, 5)...)
	w.drain(w.runner())
	w.rdb.XTrimMaxLen(t.Context(), w.topic.StreamKey(0), 2)
	require.ErrorIs(t, w.runner().Rebuild(t.Context(), truncate), projection.ErrTrimmedUnread)
	require.Len(t, w.ledger(), 5, "nothing was changed")

	partial := w.runner(func(c *projection.Config) { c.AllowPartial = true })
	require.NoError(t, partial.Rebuild(t.Context(), truncate))
	w.drain(w.runner())
	require.Equal(t, []string{"e4", "e5"}, w.ledger())
}

func TestRebuildThatFailsChangesNothing(t *testing.T) {
	w := newWorld(t, 1)
	w.addDirect(0, numbered("e", 1, 5)...)
	w.drain(w.runner())
	before := w.checkpoint(0)
	boom := errors.New("boom")
	err := w.runner().Rebuild(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(truncate(ctx, tx), boom)
	})
	require.ErrorIs(t, err, boom)
	require.Equal(t, before, w.checkpoint(0))
	w.drain(w.runner())
	require.Equal(t, numbered("e", 1, 5), w.ledger())
	require.Equal(t, before.ID.String(), w.group(0).LastDeliveredID, "the next look moves the group back to the checkpoint")
}
