package tests

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// said is an event, as Postgres committed it, or as a stream or the ledger has it. The versions of a key are 1, 2, 3, …
type said struct {
	id, key string
	version int
}

// verdict is how what was said compares with what was committed.
type verdict struct {
	committed  int
	lost       int // committed, and not said
	duplicated int // said again
	reordered  int // said after a later version of the same key
	ghosts     []string
}

func (v verdict) String() string {
	return fmt.Sprintf("%d committed, %d lost, %d duplicated, %d reordered, %d never committed", v.committed, v.lost, v.duplicated, v.reordered, len(v.ghosts))
}

// judge compares what was said, in its order, with what was committed. Ghosts are what Postgres knows nothing of.
func judge(committed, all []said) verdict {
	v := verdict{committed: len(committed)}
	known := make(map[string]bool, len(committed))
	for _, s := range committed {
		known[s.id] = true
	}
	seen, last := map[string]bool{}, map[string]int{}
	for _, s := range all {
		switch {
		case !known[s.id]:
			v.ghosts = append(v.ghosts, s.id)
		case seen[s.id]:
			v.duplicated++
		case s.version < last[s.key]:
			v.reordered++
		default:
			last[s.key] = s.version
		}
		if known[s.id] {
			seen[s.id] = true
		}
	}
	v.lost = len(committed) - len(seen)
	return v
}

func TestVerdictTellsWhatWasLostDuplicatedAndReordered(t *testing.T) {
	t.Parallel()
	a1, a2, a3, b1 := said{"a1", "a", 1}, said{"a2", "a", 2}, said{"a3", "a", 3}, said{"b1", "b", 1}
	committed := []said{a1, a2, a3, b1}
	for _, c := range []struct {
		name string
		said []said
		want verdict
	}{
		{"keys may pass each other", []said{b1, a1, a2, a3}, verdict{committed: 4}},
		{"one in the middle is lost", []said{a1, a3, b1}, verdict{committed: 4, lost: 1}},
		{"all are lost", nil, verdict{committed: 4, lost: 4}},
		{"one comes again, later", []said{a1, a2, a3, b1, a1}, verdict{committed: 4, duplicated: 1}},
		{"one is passed", []said{a2, a1, a3, b1}, verdict{committed: 4, reordered: 1}},
		{"two are passed", []said{a3, a1, a2, b1}, verdict{committed: 4, reordered: 2}},
		{"one was rolled back", []said{a1, {"a4", "a", 4}, a2, a3, b1}, verdict{committed: 4, ghosts: []string{"a4"}}},
	} {
		require.Equal(t, c.want, judge(committed, c.said), c.name)
	}
}
