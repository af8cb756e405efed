package outbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot is a pg_snapshot: which transactions were over at a moment. Those below xmax were, but for those
// in xip. Transaction numbers are xid8 and never wrap.
type snapshot struct {
	text string // "xmin:xmax:xip,xip"
	xmax uint64
	xip  []uint64 // ascending
}

func parseSnapshot(text string) (snapshot, error) {
	s := snapshot{text: text}
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("no snapshot: %.60q", text)
	}
	var err error
	if s.xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return snapshot{}, fmt.Errorf("no snapshot: %.60q", text)
	}
	if parts[2] == "" {
		return s, nil
	}
	for _, x := range strings.Split(parts[2], ",") {
		xid, err := strconv.ParseUint(x, 10, 64)
		if err != nil {
			return snapshot{}, fmt.Errorf("no snapshot: %.60q", text)
		}
		s.xip = append(s.xip, xid)
	}
	return s, nil
}

// sees reports whether the transaction was over.
func (s snapshot) sees(xid uint64) bool {
	if xid >= s.xmax {
		return false
	}
	_, running := slices.BinarySearch(s.xip, xid)
	return !running
}

// finished returns the transactions that were running in s and are over in later.
func (s snapshot) finished(later snapshot) (xids []uint64) {
	for _, xid := range s.xip {
		if later.sees(xid) {
			xids = append(xids, xid)
		}
	}
	return xids
}
