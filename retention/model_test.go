package retention_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

// model is what retention is checked against: a stream, what each group has read and not
// finished, and who is registered.
type model struct {
	rdb    *redis.Client
	key    string
	now    uint64 // ms, fixed: entries are either far older or younger
	next   uint64
	all    []stream.ID // entries that were not trimmed
	groups map[string]*groupModel
	absent []string // registered, and not at the stream
}

type groupModel struct {
	last       stream.ID
	pending    []stream.ID
	projection bool
}

// unfinished reports whether the group needs the entry still.
func (g *groupModel) unfinished(id stream.ID) bool {
	return id.Compare(g.last) > 0 || slices.Contains(g.pending, id)
}

func (m *model) do(t *rapid.T, args ...any) any {
	v, err := m.rdb.Do(context.Background(), args...).Result()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return v
}

func (m *model) anyGroup(t *rapid.T, projection bool) (string, *groupModel) {
	var names []string
	for name, g := range m.groups {
		if g.projection == projection {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		t.Skip("no group")
	}
	slices.Sort(names)
	name := rapid.SampledFrom(names).Draw(t, "group")
	return name, m.groups[name]
}

// Add adds old or young entries; once an entry is young all later ones are.
func (m *model) Add(t *rapid.T) {
	if m.next < m.now && rapid.IntRange(0, 5).Draw(t, "young") == 0 {
		m.next = m.now
	}
	for range rapid.IntRange(1, 30).Draw(t, "entries") {
		m.next++
		id := stream.ID{Ms: m.next, Seq: uint64(rapid.IntRange(0, 3).Draw(t, "seq"))}
		m.do(t, "xadd", m.key, id.String(), "id", id.String(), "type", "t")
		m.all = append(m.all, id)
	}
}

func (m *model) Group(t *rapid.T) {
	name := fmt.Sprintf("g%d", len(m.groups))
	if len(m.groups) == 4 {
		t.Skip("enough")
	}
	m.groups[name] = &groupModel{projection: rapid.Bool().Draw(t, "projection")}
	m.do(t, "xgroup", "create", m.key, name, "0", "mkstream")
}

// Read delivers entries to a consumer.
func (m *model) Read(t *rapid.T) {
	name, _ := m.anyGroup(t, false)
	n := rapid.IntRange(1, 20).Draw(t, "count")
	err := m.rdb.Do(context.Background(), "xreadgroup", "group", name, "c", "count", n, "streams", m.key, ">").Err()
	if err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
}

// Move moves a projection's position, as its commit does.
func (m *model) Move(t *rapid.T) {
	name, g := m.anyGroup(t, true)
	beyond := slices.DeleteFunc(slices.Clone(m.all), func(id stream.ID) bool { return id.Compare(g.last) <= 0 })
	if len(beyond) == 0 {
		t.Skip("at the end")
	}
	g.last = rapid.SampledFrom(beyond).Draw(t, "to")
	m.do(t, "xgroup", "setid", m.key, name, g.last.String())
}

func (m *model) Ack(t *rapid.T) {
	name, g := m.anyGroup(t, false)
	if len(g.pending) == 0 {
		t.Skip("nothing pending")
	}
	i := rapid.IntRange(0, len(g.pending)-1).Draw(t, "entry")
	m.do(t, "xack", m.key, name, g.pending[i].String())
	g.pending = slices.Delete(g.pending, i, i+1)
}

// Absent registers a group that the stream lacks, or takes it back.
func (m *model) Absent(t *rapid.T) {
	if len(m.absent) > 0 {
		m.absent = nil
		return
	}
	if rapid.IntRange(0, 3).Draw(t, "seldom") == 0 {
		m.absent = []string{"absent"}
	}
}

// Trim trims by a drawn policy, and checks the stream against what the model says may stay.
func (m *model) Trim(t *rapid.T) {
	policy := retention.Policy{Exact: true}
	if rapid.Bool().Draw(t, "limited") {
		policy.MaxLen = int64(rapid.IntRange(1, 60).Draw(t, "max"))
	}
	if rapid.IntRange(0, 4).Draw(t, "hard") == 0 {
		policy.AgeBeatsAck = 2 * time.Hour
	}
	dry := rapid.IntRange(0, 3).Draw(t, "dry") == 0
	var registered []stream.Group
	for _, name := range m.absent {
		registered = append(registered, stream.Group{Name: name})
	}
	report, err := retention.Trim(context.Background(), m.rdb, m.key, registered, policy, dry)
	if err != nil {
		t.Fatal(err)
	}
	stay, losses := m.expect(policy)
	if dry {
		stay = m.all
	}
	have := m.entries(t)
	if !slices.Equal(stay, have) {
		t.Logf("model %v\nredis %v", stay, have)
		t.Fatalf("policy %+v, dry %v, absent %v: %d entries stay, the model says %d\nreport %+v", policy, dry, m.absent, len(have), len(stay), report)
	}
	if report.Trimmed != int64(len(m.all)-len(stay)) {
		t.Fatalf("%d trimmed, reported %d", len(m.all)-len(stay), report.Trimmed)
	}
	for name, loss := range losses {
		if got := report.Losses[name]; got.Unread+got.Pending != loss {
			t.Fatalf("group %s lost %d, reported %+v", name, loss, got)
		}
	}
	if len(report.Losses) != len(losses) {
		t.Fatalf("losses %v, the model says %v", report.Losses, losses)
	}
	m.all = stay
}

// expect says which entries must stay and what each group loses.
func (m *model) expect(policy retention.Policy) (stay []stream.ID, losses map[string]int64) {
	losses = map[string]int64{}
	if len(m.groups) == 0 {
		return m.all, losses
	}
	young := func(id stream.ID) bool { return id.Ms >= m.now }
	going := true // entries go from the oldest on, until one must stay
	excess := 0
	if policy.MaxLen > 0 {
		excess = max(0, len(m.all)-int(policy.MaxLen))
	}
	for i, id := range m.all {
		may := !young(id) || i < excess
		must := len(m.absent) > 0
		for _, g := range m.groups {
			must = must || g.unfinished(id)
		}
		hard := policy.AgeBeatsAck > 0 && !young(id)
		if going = going && (hard || may && !must); !going {
			stay = append(stay, id)
			continue
		}
		for name, g := range m.groups {
			if g.unfinished(id) {
				losses[name]++
			}
		}
		for _, name := range m.absent {
			losses[name]++
		}
	}
	return stay, losses
}

func (m *model) entries(t *rapid.T) (ids []stream.ID) {
	messages, err := m.rdb.XRange(context.Background(), m.key, "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range messages {
		id, err := stream.ParseID(message.ID)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

// Check reads back what groups have pending, so that the model follows the server's reads.
func (m *model) Check(t *rapid.T) {
	for name, g := range m.groups {
		if g.projection {
			continue
		}
		groups, err := m.rdb.XInfoGroups(context.Background(), m.key).Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range groups {
			if info.Name == name {
				g.last, _ = stream.ParseID(info.LastDeliveredID)
			}
		}
		pending, err := m.rdb.XPendingExt(context.Background(), &redis.XPendingExtArgs{Stream: m.key, Group: name, Start: "-", End: "+", Count: 10_000}).Result()
		if err != nil {
			t.Fatal(err)
		}
		g.pending = g.pending[:0]
		for _, p := range pending {
			id, _ := stream.ParseID(p.ID)
			g.pending = append(g.pending, id)
		}
	}
}

// TestMain sets how many histories the model runs: 60, and 200 in its long form.
func TestMain(m *testing.M) {
	checks := "60"
	if testenv.IsLong() {
		checks = "200"
	}
	if err := flag.Set("rapid.checks", checks); err != nil {
		panic(err)
	}
	testenv.Main(m)
}

// Random histories of groups, projections, pending entries and policies: no unfinished
// entry is lost unless AgeBeatsAck says so, which is counted, and nothing is kept needlessly.
func TestRetentionKeepsWhatTheModelKeeps(t *testing.T) {
	t.Parallel()
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	histories := 0
	rapid.Check(t, func(rt *rapid.T) {
		histories++
		m := &model{
			rdb: rdb, key: ns + ":" + strconv.Itoa(histories), now: uint64(time.Now().UnixMilli()), next: old,
			groups: map[string]*groupModel{},
		}
		m.do(rt, "xadd", m.key, strconv.Itoa(old)+"-0", "id", "0", "type", "t")
		m.all = append(m.all, stream.ID{Ms: old})
		rt.Repeat(map[string]func(*rapid.T){
			"add": m.Add, "group": m.Group, "read": m.Read, "move": m.Move, "ack": m.Ack, "absent": m.Absent, "trim": m.Trim, "": m.Check,
		})
	})
	require.Positive(t, histories)
}
