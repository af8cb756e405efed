package tests

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
)

// Three relays, of which one is killed and another added again and again. No key comes out of order, and within
// the time of a lease others have the shards of the one that died.
func TestRelaysThatComeAndGoKeepTheOrderAndTakeOverWithinTheLease(t *testing.T) {
	const lease = 2 * time.Second
	every, times := time.Second, 2
	if testenv.IsLong() {
		every, times = 5*time.Second, 12
	}
	// What a machine with too much to do may add: a relay looks ten times per lease for shards that are free.
	const late = time.Second
	h := newHarness(t)
	var relays []*child
	var longest time.Duration
	h.whileWriting(func() {
		for range 3 {
			relays = append(relays, h.child(nowhere, 0, lease))
		}
		for range times {
			victim := relays[0]
			h.until("the victim has shards", func() bool { return len(h.ownedBy(victim)) >= 2 })
			next := time.NewTimer(every)
			lost := h.ownedBy(victim)
			victim.kill()
			killed := time.Now()
			relays = append(relays[1:], h.child(nowhere, 0, lease))
			h.until("its shards are taken over", func() bool { return h.ownedByOthers(victim, lost) })
			took := time.Since(killed)
			t.Logf("%d shards taken over after %d ms", len(lost), took.Milliseconds())
			require.Less(t, took, lease+late)
			longest = max(longest, took)
			h.progress(20)
			<-next.C
		}
	})
	h.verify("")
	for _, r := range relays {
		r.retire() // so that nothing comes after the verdict
	}
	h.verify("")
	t.Logf("%d events, %d takeovers, the longest %d ms with a lease of %s", len(h.committed()), times, longest.Milliseconds(), lease)
}

// ownedBy returns the shards whose lease the relay has.
func (h *harness) ownedBy(c *child) (shards []int) {
	for _, s := range h.shards() {
		if strings.HasPrefix(s.Owner, c.name+"-") {
			shards = append(shards, s.Shard)
		}
	}
	return shards
}

// ownedByOthers reports whether each of the shards has an owner other than c.
func (h *harness) ownedByOthers(c *child, shards []int) bool {
	all := h.shards()
	for _, n := range shards {
		if owner := all[n].Owner; owner == "" || strings.HasPrefix(owner, c.name+"-") {
			return false
		}
	}
	return true
}

func (h *harness) shards() []outbox.ShardStatus {
	h.t.Helper()
	status, err := outbox.ReadStatus(h.t.Context(), h.pool)
	require.NoError(h.t, err)
	return status.Shards
}
