package outbox

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The shards of one that stops go to the others at once; those of one that dies are the crash harness's, in tests/.
func TestRelaysShareTheShardsEvenlyAsTheyComeAndGo(t *testing.T) {
	w := newWorld(t, 8)
	b := w.bank(16)
	stop := b.keepChanging()
	defer stop()
	counts := func(relays ...*Relay) (n []int) {
		for _, r := range relays {
			n = append(n, len(r.Owned()))
		}
		return n
	}
	r1, r2, r3 := w.relay(), w.relay(), w.relay()
	start(t, r1)
	eventuallyEqual(t, []int{8}, func() []int { return counts(r1) })
	stop2 := start(t, r2)
	eventuallyEqual(t, []int{4, 4}, func() []int { return counts(r1, r2) })
	start(t, r3)
	require.Eventually(t, func() bool {
		n := counts(r1, r2, r3)
		return n[0]+n[1]+n[2] == 8 && min(n[0], n[1], n[2]) >= 2
	}, patience, 10*time.Millisecond)
	stop2()
	eventuallyEqual(t, []int{4, 0, 4}, func() []int { return counts(r1, r2, r3) })
	stop()
	b.verify()
}

func eventuallyEqual[T any](t *testing.T, want T, have func() T) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.Equal(c, want, have()) }, patience, 10*time.Millisecond)
}
