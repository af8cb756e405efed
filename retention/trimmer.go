package retention

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/trim.lua
	trimText   string
	trimScript = redisx.NewScript(trimText)
)

// Why says what kept a trim from removing more.
type Why string

// The reasons.
const (
	HeldByPolicy Why = "policy"        // it keeps what is that young, or everything
	HeldByGroup  Why = "group"         // a group has not finished
	HeldMissing  Why = "missing group" // a registered group is not at the stream yet, or not any more
	HeldNoGroup  Why = "no group"      // nobody reads the stream
	HeldNoStream Why = "no stream"     // there is none
)

// Report is what became of one stream, or in a dry run what would.
type Report struct {
	Stream  string
	Trimmed int64
	// Floor is the ID below which everybody has finished; zero where there is none. Cut is
	// the ID below which entries went, or would go.
	Floor, Cut stream.ID
	Left       int64
	// Held says why not more, Group which group holds it, where one does.
	Held  Why
	Group string
	// Discarded lists entries that AgeBeatsAck took from somebody, the first 1,000 of them;
	// Losses counts all of them, by group.
	Discarded []stream.ID
	Losses    map[string]Loss
	// Stale has the groups that have left an entry unfinished for longer than StaleAfter,
	// and that entry.
	Stale map[string]stream.ID
	// Archived counts entries that went to the archive first.
	Archived int64
}

// Loss is what AgeBeatsAck took from a group.
type Loss struct{ Unread, Pending int64 }

const (
	maxListed   = 1000
	archivePage = 500
)

// Trim trims one partition of a topic by the policy. groups are those that the registry
// has: one that the stream lacks means that nothing is trimmed (but for AgeBeatsAck), and so
// does no group at all. With dryRun it only reports.
func Trim(ctx context.Context, rdb redis.UniversalClient, streamKey string, groups []stream.Group, policy Policy, dryRun bool) (Report, error) {
	if err := policy.Validate(); err != nil {
		return Report{}, err
	}
	if policy.KeepAll {
		return Report{Stream: streamKey, Held: HeldByPolicy}, nil
	}
	t := trim{rdb: rdb, key: streamKey, groups: groups, policy: policy.withDefaults()}
	var report Report
	var err error
	switch {
	case dryRun:
		report, _, err = t.call(ctx, true, "")
	case policy.Archive != nil:
		report, err = t.archived(ctx)
	default:
		report, err = t.all(ctx)
	}
	if err != nil {
		return Report{}, fmt.Errorf("retention: trim %s: %w", streamKey, err)
	}
	return report, nil
}

// trim is one stream under one policy.
type trim struct {
	rdb    redis.UniversalClient
	key    string
	groups []stream.Group
	policy Policy
}

// all trims until nothing more may go.
func (t *trim) all(ctx context.Context) (Report, error) {
	total, more, err := t.call(ctx, false, "")
	for more && err == nil {
		var next Report
		if next, more, err = t.call(ctx, false, ""); err == nil {
			more = more && next.Trimmed > 0
			total = total.plus(next)
		}
	}
	return total, err
}

// archived moves to the archive what may go, and trims no more than that.
func (t *trim) archived(ctx context.Context) (Report, error) {
	total := Report{Stream: t.key}
	for {
		plan, more, err := t.call(ctx, true, "")
		if err != nil {
			return total, err
		}
		entries, err := t.oldest(ctx, plan.Cut)
		if err != nil {
			return total, err
		}
		if len(entries) == 0 {
			plan.Discarded, plan.Losses = nil, nil
			return total.plus(plan), nil
		}
		if err := t.policy.Archive.Append(ctx, t.key, entries); err != nil {
			return total, fmt.Errorf("archive: %w", err)
		}
		done, _, err := t.call(ctx, false, entries[len(entries)-1].ID.Next().String())
		if err != nil {
			return total, err
		}
		done.Archived = int64(len(entries))
		total = total.plus(done)
		if done.Trimmed == 0 || !more && len(entries) < archivePage {
			return total, nil
		}
	}
}

// oldest returns the stream's first entries below an ID.
func (t *trim) oldest(ctx context.Context, below stream.ID) ([]stream.Entry, error) {
	if below.IsZero() {
		return nil, nil
	}
	reply, err := redisx.Raw(ctx, t.rdb, "xrange", t.key, "-", "("+below.String(), "count", archivePage)
	if err != nil {
		return nil, err
	}
	defer reply.Free()
	n, err := reply.Array()
	if err != nil {
		return nil, err
	}
	entries := make([]stream.Entry, 0, n)
	for range n {
		en, _, err := stream.DecodeEntry(&reply, t.key)
		if err != nil {
			return nil, err
		}
		entries = append(entries, en)
	}
	return entries, nil
}

func (t *trim) call(ctx context.Context, dryRun bool, upto string) (r Report, more bool, err error) {
	p := t.policy
	exact := p.Exact || p.MaxLen > 0 || p.MaxBytes > 0 || p.Archive != nil
	args := []any{
		p.Keep.Milliseconds(), p.MaxLen, p.MaxBytes, p.AgeBeatsAck.Milliseconds(), p.StaleAfter.Milliseconds(),
		flag(exact), flag(dryRun), upto,
	}
	for _, g := range t.groups {
		args = append(args, g.Name)
	}
	reply, err := trimScript.Run(ctx, t.rdb, []string{t.key}, args...).Slice()
	if err != nil {
		return Report{}, false, err
	}
	r, more, ok := parseReport(t.key, reply)
	if !ok {
		return Report{}, false, redisx.ErrReply
	}
	return r, more, nil
}

// plus adds what a further call did to the report.
func (r Report) plus(next Report) Report {
	next.Trimmed += r.Trimmed
	next.Archived += r.Archived
	next.Discarded = append(r.Discarded, next.Discarded...)
	next.Discarded = next.Discarded[:min(len(next.Discarded), maxListed)]
	for group, loss := range r.Losses {
		if next.Losses == nil {
			next.Losses = map[string]Loss{}
		}
		sum := next.Losses[group]
		next.Losses[group] = Loss{sum.Unread + loss.Unread, sum.Pending + loss.Pending}
	}
	return next
}

// reader reads a reply's values and remembers whether one had another type.
type reader struct {
	values []any
	bad    bool
}

func (r *reader) int(i int) int64 {
	v, ok := r.values[i].(int64)
	r.bad = r.bad || !ok
	return v
}

func (r *reader) text(i int) string {
	v, ok := r.values[i].(string)
	r.bad = r.bad || !ok
	return v
}

func (r *reader) id(i int) stream.ID {
	text := r.text(i)
	if text == "" {
		return stream.ID{}
	}
	id, err := stream.ParseID(text)
	r.bad = r.bad || err != nil
	return id
}

func (r *reader) list(i, width int) *reader {
	v, ok := r.values[i].([]any)
	r.bad = r.bad || !ok || len(v)%width != 0
	if r.bad {
		v = nil
	}
	return &reader{values: v}
}

func parseReport(key string, values []any) (r Report, more, ok bool) {
	const fields = 10
	if len(values) != fields {
		return Report{}, false, false
	}
	in := &reader{values: values}
	r = Report{Stream: key, Trimmed: in.int(0), Floor: in.id(1), Cut: in.id(2), Group: in.text(3), Left: in.int(5)}
	discarded, losses, stale := in.list(7, 1), in.list(8, 3), in.list(9, 2)
	for i := range discarded.values {
		r.Discarded = append(r.Discarded, discarded.id(i))
	}
	for i := 0; i < len(losses.values); i += 3 {
		if r.Losses == nil {
			r.Losses = map[string]Loss{}
		}
		r.Losses[losses.text(i)] = Loss{losses.int(i + 1), losses.int(i + 2)}
	}
	for i := 0; i < len(stale.values); i += 2 {
		if r.Stale == nil {
			r.Stale = map[string]stream.ID{}
		}
		r.Stale[stale.text(i)] = stale.id(i + 1)
	}
	switch in.text(4) {
	case "missing":
		r.Held = HeldMissing
	case "nogroup":
		r.Held = HeldNoGroup
	case "nostream":
		r.Held = HeldNoStream
	default:
		if r.Held = HeldByPolicy; r.Group != "" {
			r.Held = HeldByGroup
		}
	}
	return r, in.text(6) == "1", !in.bad && !discarded.bad && !losses.bad && !stale.bad
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}
