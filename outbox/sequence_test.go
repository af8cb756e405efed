package outbox

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRoundsWaitForRowsThatComeFast(t *testing.T) {
	for rows, want := range map[int64]time.Duration{
		0: 0, 2: 500 * time.Microsecond, 100: 25 * time.Millisecond, 200: 50 * time.Millisecond, 1 << 62: 50 * time.Millisecond,
	} {
		require.Equal(t, want, gather(rows, 50*time.Millisecond), "%d rows", rows)
	}
}

// Rows of a server whose clock was days ahead, and was set back, are published like others: that the relay, which is woken,
// looks and does not find them yet, passes by none.
func TestRowsFromTheDaysToComeAreFound(t *testing.T) {
	w := newWorld(t, 1)
	start(t, w.relay())
	w.publish(event("k", "first"))
	for n := range 3 {
		insertOld(t, w.pool, w, -3, strconv.Itoa(n))
		Wake()
		w.eventually(n + 2)
	}
}
