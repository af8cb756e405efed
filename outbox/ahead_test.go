package outbox

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// Rows of a server whose clock was days ahead, and was set back, are published like others.
func TestRowsFromTheDaysToComeAreFound(t *testing.T) {
	w := newWorld(t, 1)
	start(t, w.relay())
	for n := range 3 {
		time.Sleep(50 * time.Millisecond) // the relay looks, and finds nothing
		require.NoError(t, pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
			if err := Publish(t.Context(), tx, w.topic, event("k", "e")); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `UPDATE streamkeel.outbox_row SET created_at = created_at + interval '3 days' WHERE created_at < now() + interval '1 day'`)
			return err
		}))
		w.eventually(n + 1)
	}
}
