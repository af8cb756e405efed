package outbox

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPageTakesLittleMoreMemoryThanItsRows(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, 8 << 10, 100 << 10, 1 << 20} {
		values := make([][]byte, 17)
		values[0], values[3], values[16] = make([]byte, 8), make([]byte, 4), make([]byte, size)
		p, made := &page{}, 0
		for !p.full() {
			before := cap(p.arena) - len(p.arena)
			if p.add(values); before < size+12 {
				made += cap(p.arena)
			}
		}
		require.LessOrEqual(t, made, p.bytes+pageBytes/4, "rows of %d bytes", size)
	}
}
