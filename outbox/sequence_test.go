package outbox

import (
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
