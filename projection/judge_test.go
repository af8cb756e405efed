package projection

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// model is a Redis stream as far as a projection sees it, and the truth about it: every
// entry that this history of the stream was ever given.
type model struct {
	given   []modelEntry
	gone    map[stream.ID]bool
	last    stream.ID
	deleted stream.ID
	grouped bool
	group   stream.ID
}

type modelEntry struct {
	id       stream.ID
	event    string
	sequence int64
}

func (m *model) clone() *model {
	c := *m
	c.given, c.gone = slices.Clone(m.given), maps.Clone(m.gone)
	return &c
}

func (m *model) add(ms uint64, event string, sequence int64) {
	id := stream.ID{Ms: ms}
	if id.Compare(m.last) <= 0 {
		id = m.last.Next()
	}
	m.last = id
	m.given = append(m.given, modelEntry{id, event, sequence})
}

func (m *model) left() (left []modelEntry) {
	for _, en := range m.given {
		if !m.gone[en.id] {
			left = append(left, en)
		}
	}
	return left
}

func (m *model) look(c *Checkpoint) history {
	left := m.left()
	h := history{length: int64(len(left)), added: int64(len(m.given)), last: m.last, deleted: m.deleted, grouped: m.grouped, group: m.group}
	if len(left) > 0 {
		h.first = left[0].id
		if left[0].sequence > 0 {
			h.firstSequence = stream.Position{Row: left[0].sequence}
		}
	}
	for _, en := range left {
		if en.id == c.ID {
			h.anchored, h.anchor = true, en.event
		}
	}
	return h
}

// missed returns an entry that the projection has not applied and will never read.
func (m *model) missed(c *Checkpoint, applied map[string]bool) string {
	for _, en := range m.given {
		if !applied[en.event] && (m.gone[en.id] || en.id.Compare(c.ID) <= 0) {
			return fmt.Sprint(en.event, " at ", en.id)
		}
	}
	return ""
}

// removedBeyond reports whether something beyond the checkpoint is gone, applied or not.
func (m *model) removedBeyond(c *Checkpoint) bool {
	return slices.ContainsFunc(m.given, func(en modelEntry) bool { return m.gone[en.id] && en.id.Compare(c.ID) > 0 })
}

// continues reports whether the history has, as its prefix, what the checkpoint stands for.
func (m *model) continues(c *Checkpoint, applied map[string]bool) bool {
	if c.ID.IsZero() {
		return true
	}
	for _, en := range m.given {
		if !applied[en.event] {
			return false
		}
		if en.id == c.ID {
			return en.event == c.Event
		}
	}
	return false
}

// TestJudgeNeverTakesAGapForAContinuation plays everything that may happen to a stream, in
// random order, and requires that no entry is ever passed in silence, that none is applied
// twice where there are sequences, and that no alarm is raised for nothing.
func TestJudgeNeverTakesAGapForAContinuation(t *testing.T) {
	t.Parallel()
	for _, sequenced := range []bool{false, true} {
		t.Run(fmt.Sprintf("sequenced=%t", sequenced), func(t *testing.T) {
			t.Parallel()
			counts := map[finding]int{}
			seeds := uint64(5_000)
			if testenv.IsLong() {
				seeds = 500_000
			}
			for seed := range seeds {
				g := &game{rnd: rand.New(rand.NewPCG(seed, 1)), sequenced: sequenced, skewed: seed%2 == 0, clock: 1000, applied: map[string]bool{}, model: &model{gone: map[stream.ID]bool{}}}
				if problem := g.play(counts); problem != "" {
					require.Fail(t, problem, "seed %d:\n%s", seed, g.trace)
				}
			}
			for _, f := range []finding{intact, rewound, trimmed} {
				require.Greater(t, counts[f], 100, "finding %d was hardly met", f)
			}
		})
	}
}

type game struct {
	rnd       *rand.Rand
	sequenced bool
	skewed    bool // a promoted server's clock may be behind
	clock     uint64
	events    int64
	model     *model
	replica   *model
	begun     bool
	at        Checkpoint
	applied   map[string]bool
	trace     string
}

func (g *game) play(counts map[finding]int) string {
	for range 5 + g.rnd.IntN(15) {
		g.clock += uint64(1 + g.rnd.IntN(3))
		what := g.change()
		g.trace += fmt.Sprintf("%s; ", what)
		if g.rnd.IntN(2) == 0 {
			continue
		}
		if problem, stop := g.read(counts); problem != "" || stop {
			return problem
		}
	}
	return ""
}

// change does one thing to the stream.
func (g *game) change() string {
	m := g.model
	left := m.left()
	switch n := g.rnd.IntN(20); {
	case n < 9:
		count := 1 + g.rnd.IntN(4)
		for range count {
			g.events++
			g.publish(g.events)
		}
		return fmt.Sprintf("add %d", count)
	case n < 12: // what retention does: up to the group's position
		for _, en := range left {
			if m.grouped && en.id.Compare(m.group) <= 0 && g.rnd.IntN(8) > 0 {
				m.gone[en.id] = true
			} else {
				break
			}
		}
		return "trim applied"
	case n < 13:
		count := g.rnd.IntN(len(left) + 1)
		for _, en := range left[:count] {
			m.gone[en.id] = true
		}
		return fmt.Sprintf("trim %d by hand", count)
	case n < 15 && len(left) > 0:
		en := left[g.rnd.IntN(len(left))]
		if g.rnd.IntN(3) > 0 {
			en = left[0]
		}
		m.gone[en.id] = true
		if en.id.Compare(m.deleted) > 0 {
			m.deleted = en.id
		}
		return fmt.Sprint("delete ", en.id)
	case n < 17:
		g.replica = m.clone()
		return "replicate"
	case n < 19 && g.replica != nil:
		g.model, g.replica = g.replica, nil
		g.republish()
		return "failover"
	case n == 19:
		g.model = &model{gone: map[stream.ID]bool{}}
		g.republish()
		return "recreate"
	}
	return "nothing"
}

func (g *game) publish(n int64) {
	sequence := int64(0)
	if g.sequenced {
		sequence = n
	}
	g.model.add(g.clock, fmt.Sprint("e", n), sequence)
}

// republish does what the relay does when it finds that Redis lost its tail. Its stream's
// clock may be behind.
func (g *game) republish() {
	if !g.sequenced {
		return
	}
	from := int64(1)
	if n := len(g.model.given); n > 0 {
		from = g.model.given[n-1].sequence + 1
	}
	now := g.clock
	if g.skewed {
		g.clock -= uint64(g.rnd.IntN(10))
	}
	for n := from; n <= g.events; n++ {
		g.clock += uint64(g.rnd.IntN(2))
		g.publish(n)
	}
	g.clock = max(g.clock, now)
}

// read makes one pass, as a lane does.
func (g *game) read(counts map[finding]int) (problem string, stop bool) {
	m := g.model
	h := m.look(&g.at)
	if !g.begun {
		g.begun = true
		if h.added != h.length {
			return "", true // it would not begin
		}
	}
	found, reason := h.judge(&g.at)
	counts[found]++
	g.trace += fmt.Sprintf("at %s: %d %s; ", g.at.ID, found, reason)
	missed := m.missed(&g.at, g.applied)
	switch {
	case found == rewound && h.replayable(&g.at):
		g.at = h.start(g.at)
		for _, en := range m.given {
			if m.gone[en.id] && !g.applied[en.event] {
				return fmt.Sprintf("replayed without %s", en.event), true
			}
		}
		m.grouped, m.group = true, g.at.ID
		return "", false
	case found != intact:
		// Where a clock was behind, an ID may have been given twice; then an alarm may be wrong.
		if !g.skewed && missed == "" && m.continues(&g.at, g.applied) && !m.removedBeyond(&g.at) && m.group.Compare(g.at.ID) >= 0 {
			return "an alarm for nothing", true
		}
		return "", true
	case missed != "":
		return "intact, though it will never read " + missed, true
	}
	g.hold()
	g.at.EntriesRead = h.learn(&g.at)
	left := 1 + g.rnd.IntN(5)
	for _, en := range m.left() {
		if en.id.Compare(g.at.ID) <= 0 || left == 0 {
			continue
		}
		left--
		entry := stream.Entry{ID: en.id, Event: stream.Event{ID: en.event, Sequence: stream.Position{Row: en.sequence}}}
		if !g.at.has(&entry) {
			if g.applied[en.event] {
				return "applied twice: " + en.event, true
			}
			g.applied[en.event] = true
		}
		g.at.pass(&entry)
		g.at.Event = en.event
	}
	switch n := g.rnd.IntN(20); {
	case n == 0: // it crashes between the commit and the move of the group
	case n == 1 && g.replica != nil: // and there, the failover comes: the group moves in another history
		g.model, g.replica = g.replica, nil
		g.republish()
		g.trace += "failover before the group moves; "
		g.hold()
	default:
		g.hold()
	}
	return "", false
}

// hold does what the hold script does after a commit.
func (g *game) hold() {
	if slices.ContainsFunc(g.model.left(), func(en modelEntry) bool { return en.id == g.at.ID && en.event == g.at.Event }) || g.at.ID.IsZero() {
		g.model.grouped, g.model.group = true, g.at.ID
	}
}
