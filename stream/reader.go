package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

// ReaderConfig configures a [Reader]. Topic is required; the zero value of the rest reads
// all partitions from their start to where they end now.
type ReaderConfig struct {
	// Topic to read.
	Topic Topic
	// Partitions to read. Default: all.
	Partitions []int
	// From has, by stream key, where reading goes on: a stored [Mark], or one made of an ID.
	// Partitions that it does not name begin at Since, or with FromNow, or at their start.
	From map[string]Mark
	// Since begins with the entries that were added at that time or later, by the server's
	// clock.
	Since time.Time
	// FromNow begins with what is added from now on.
	FromNow bool
	// Follow goes on waiting for new entries at the end. Default: Entries ends with what
	// was there when it began.
	Follow bool
	// ByTime merges the partitions by the time at which entries were added, to the
	// millisecond (on a Cluster: as good as its servers' clocks agree). Default: each
	// partition in its order, side by side, which is faster.
	ByTime bool
	// Archive is read for what retention has moved there, so that both are one log.
	// Default: none.
	Archive Archive
	// Count is how many entries of a partition one read takes at the most. It takes fewer where those before were
	// large: together about 4 MiB of such. Default 256, and 16 at first, when the size is not known.
	Count int
}

// Archive is where retention moves entries before it trims them.
type Archive interface {
	// Read returns the entries of a stream behind an ID, in order, at most limit; none
	// where it has no more.
	Read(ctx context.Context, streamKey string, after ID, limit int) ([]Entry, error)
}

func (c ReaderConfig) validate(rdb redis.UniversalClient) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if rdb == nil {
		fault("the Redis client is nil")
	}
	if err := c.Topic.Validate(); err != nil {
		faults = append(faults, err)
	}
	for _, p := range c.Partitions {
		if p < 0 || p >= c.Topic.Count() {
			fault("partition %d: the topic has %d", p, c.Topic.Count())
		}
	}
	for key := range c.From {
		known := false
		for p := range c.Topic.Count() {
			known = known || c.Topic.StreamKey(p) == key
		}
		if !known {
			fault("From has %.140q, which is no stream of the topic", key)
		}
	}
	if c.FromNow && !c.Since.IsZero() {
		fault("Since and FromNow exclude each other")
	}
	if c.Count < 0 || c.Count > maxCount {
		fault("Count %d is not 1 to %d", c.Count, maxCount)
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("stream: %w reader: %w", ErrInvalid, errors.Join(faults...))
}

const (
	defaultCount = 256
	maxCount     = 10_000
	firstCount   = 16
	readBytes    = 4 << 20 // what a read takes, about
)

// Reader reads a topic without a consumer group: it changes nothing in Redis, and any
// number may read the same. Entries of a partition come in order, without gap or repeat
// where replay becomes live reading; an entry that is no event comes with its Err.
//
// With every read it compares the stream with what it has read of it, in one step on the
// server. A stream that was deleted, filled anew, or lost its tail is ErrRewound; one from
// which unread entries were removed is ErrTrimmedUnread: nothing is skipped silently. Seek
// goes on from another place after such an error.
//
// A Reader is used by one goroutine at a time.
type Reader struct {
	rdb    redis.UniversalClient
	config ReaderConfig
	tracks []*track
}

// track is one partition on its way.
type track struct {
	key     string
	mark    Mark
	started bool // mark is complete
	archive bool // the archive may have entries behind mark
	end     ID   // where to end, without Follow
	count   int  // how many entries to read
}

// NewReader returns a reader. The caller keeps rdb and closes it.
func NewReader(rdb redis.UniversalClient, config ReaderConfig) (*Reader, error) {
	if err := config.validate(rdb); err != nil {
		return nil, err
	}
	first := config.Count
	if config.Count == 0 {
		config.Count, first = defaultCount, firstCount
	}
	partitions := config.Partitions
	if len(partitions) == 0 {
		for p := range config.Topic.Count() {
			partitions = append(partitions, p)
		}
	}
	r := &Reader{rdb: rdb, config: config}
	for _, p := range partitions {
		t := &track{key: config.Topic.StreamKey(p), archive: config.Archive != nil, count: first}
		if m, ok := config.From[t.key]; ok {
			t.mark, t.started = m, m.Read > 0
		} else if !config.Since.IsZero() {
			t.mark.ID = before(config.Since)
		}
		r.tracks = append(r.tracks, t)
	}
	return r, nil
}

// before returns the last ID before a time.
func before(at time.Time) ID {
	ms := at.UnixMilli()
	if ms <= 0 {
		return ID{}
	}
	return ID{Ms: uint64(ms) - 1, Seq: ^uint64(0)}
}

// Mark returns how far the stream was read, for storing.
func (r *Reader) Mark(streamKey string) Mark {
	if t := r.track(streamKey); t != nil {
		return t.mark
	}
	return Mark{}
}

// Seek goes on from a mark; one made of an ID alone takes the stream as it is.
func (r *Reader) Seek(streamKey string, m Mark) {
	if t := r.track(streamKey); t != nil {
		t.mark, t.started, t.archive = m, m.Read > 0, r.config.Archive != nil
	}
}

func (r *Reader) track(streamKey string) *track {
	for _, t := range r.tracks {
		if t.key == streamKey {
			return t
		}
	}
	return nil
}

// Read returns the next entries of every partition, or none after waiting for at most two
// seconds. After an error the marks are those before, so that reading again misses nothing.
func (r *Reader) Read(ctx context.Context) ([]Entry, error) {
	entries, err := r.readNow(ctx)
	if err != nil || len(entries) > 0 {
		return entries, err
	}
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	return r.readNow(ctx)
}

// readNow returns what is there behind the marks, and moves these.
func (r *Reader) readNow(ctx context.Context) ([]Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	pages, err := r.pages(ctx, r.tracks)
	if err != nil {
		return nil, err
	}
	var all []Entry
	for i, t := range r.tracks {
		t.begin(&pages[i])
		t.mark = t.mark.behind(pages[i].entries)
		if all == nil {
			all = pages[i].entries
		} else {
			all = append(all, pages[i].entries...)
		}
	}
	for i := range all { // after the marks, which hold while Adopt comes and goes
		r.config.Topic.AdoptEntry(&all[i], "")
	}
	return all, nil
}

// page is what one read found of a track: entries that continue its mark.
type page struct {
	entries []Entry
	history history
	base    Mark  // before the entries, completed by what the stream tells
	now     int64 // the server's clock before the read, Unix ms
	stored  bool  // it came from the archive
	full    bool  // there may be more
}

// begin takes what a page tells of the track's mark.
func (t *track) begin(p *page) {
	t.mark, t.started, t.archive = p.base, true, p.stored
}

// pages reads a page of each track: in one transaction of a standalone server, or one for
// each partition of a Cluster. Where a track's stream no longer has what comes next, the
// archive is asked.
func (r *Reader) pages(ctx context.Context, tracks []*track) ([]page, error) {
	pages := make([]page, len(tracks))
	cluster, ok := r.rdb.(*redis.ClusterClient)
	if !ok {
		err := r.fetch(ctx, r.rdb, tracks, pages)
		return pages, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, t := range tracks {
		g.Go(func() error { return r.fetchSlot(ctx, cluster, t, pages[i:i+1]) })
	}
	err := g.Wait()
	return pages, err
}

// fetchSlot reads one partition from the server that holds it, also where it just moved.
func (r *Reader) fetchSlot(ctx context.Context, cluster *redis.ClusterClient, t *track, into []page) error {
	for attempt := 0; ; attempt++ {
		node, err := cluster.MasterForKey(ctx, t.key)
		if err != nil {
			return fmt.Errorf("stream: read %s: %w", t.key, err)
		}
		err = r.fetch(ctx, node, []*track{t}, into)
		if _, moved := redis.IsMovedError(err); !moved || attempt == 3 {
			return err
		}
		cluster.ReloadState(ctx)
		redisx.Pause(ctx, clusterWait)
	}
}

func (r *Reader) fetch(ctx context.Context, node redis.UniversalClient, tracks []*track, pages []page) error {
	pipe := node.TxPipeline()
	clock := pipe.Time(ctx)
	infos, reads, anchors := make([]redisx.RawCmd, len(tracks)), make([]redisx.RawCmd, len(tracks)), make([]redisx.RawCmd, len(tracks))
	for i, t := range tracks {
		infos[i] = redisx.NewRaw(ctx, "xinfo", "stream", t.key)
		reads[i] = redisx.NewRaw(ctx, "xrange", t.key, t.mark.ID.Next().String(), "+", "count", t.count)
		for _, cmd := range []redisx.RawCmd{infos[i], reads[i]} {
			_ = pipe.Process(ctx, cmd) // only queues
		}
		if t.mark.Event != "" {
			anchors[i] = redisx.NewRaw(ctx, "xrange", t.key, t.mark.ID.String(), t.mark.ID.String())
			_ = pipe.Process(ctx, anchors[i]) // only queues
		}
	}
	_, err := pipe.Exec(ctx)
	if err != nil && !redisx.IsServer(err) {
		return fmt.Errorf("stream: read topic %s: %w", r.config.Topic.Name, err)
	}
	for i, t := range tracks {
		if err := r.page(ctx, node, t, infos[i], reads[i], anchors[i], &pages[i]); err != nil {
			return fmt.Errorf("stream: read %s behind %s: %w", t.key, t.mark.ID, err)
		}
		pages[i].now = clock.Val().UnixMilli()
	}
	return nil
}

// page completes a page from the replies.
func (r *Reader) page(ctx context.Context, node redis.UniversalClient, t *track, info, read, anchor redisx.RawCmd, p *page) error {
	infoReply, err := info.Reply(ctx, node)
	defer infoReply.Free()
	if p.history, err = parseHistory(&infoReply, err); err != nil {
		return err
	}
	if t.mark.Event != "" {
		found, err := decodeRange(ctx, node, anchor, t.key, 1)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			p.history.anchor = found[0].Event.ID
		}
	}
	if p.entries, err = decodeRange(ctx, node, read, t.key, t.count); err != nil {
		return err
	}
	if err := r.join(ctx, t, p); err != nil {
		return err
	}
	if n := len(p.entries); n > 0 {
		p.full = p.stored || n == t.count
		size := 0
		for i := range p.entries {
			size += len(p.entries[i].raw)
		}
		t.count = min(r.config.Count, max(1, readBytes/len(r.tracks)*n/max(1, size)))
	}
	return nil
}

// join finds out whether the entries continue the track, and gets what lies between from
// the archive.
func (r *Reader) join(ctx context.Context, t *track, p *page) error {
	mark, h := t.mark, &p.history
	gap := h.judge(mark)
	if !t.started { // what somebody names as the start takes the stream as it is
		if gap = nil; h.last.Compare(mark.ID) < 0 && !mark.ID.IsZero() && r.config.Since.IsZero() {
			gap = h.judge(mark)
		}
		mark.Deleted = h.deleted
		if r.config.FromNow && mark.ID.IsZero() {
			p.base, p.entries = h.end(), nil
			return nil
		}
	}
	if r.config.Archive != nil && (errors.Is(gap, ErrTrimmedUnread) || !t.started && h.allBeyond(mark)) {
		entries, err := r.config.Archive.Read(ctx, t.key, mark.ID, t.count)
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		if len(entries) > 0 {
			if !t.started {
				mark.Read = -1 // the archive need not have everything from the start
			}
			p.base, p.entries, p.stored = mark, entries, true
			return nil
		}
		if !mark.known() {
			gap = nil // whatever was trimmed would be in the archive
		}
	}
	if gap != nil {
		return gap
	}
	p.base = h.learn(mark)
	return nil
}

// behind returns the mark behind entries that continue it.
func (m Mark) behind(entries []Entry) Mark {
	if len(entries) == 0 {
		return m
	}
	last := &entries[len(entries)-1]
	if m.known() {
		m.Read += int64(len(entries))
	} else {
		m.Read = 0
	}
	m.ID, m.Event = last.ID, last.Event.ID
	return m
}

func decodeRange(ctx context.Context, node redis.UniversalClient, cmd redisx.RawCmd, key string, most int) ([]Entry, error) {
	reply, err := cmd.Reply(ctx, node)
	if err != nil {
		return nil, err
	}
	defer reply.Free()
	n, err := reply.Array()
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, min(n, most))
	for range n {
		en, _, err := DecodeEntry(&reply, key)
		if err != nil {
			return nil, err
		}
		entries = append(entries, en)
	}
	return entries, nil
}

// clusterWait is how long a Reader sleeps at the end of a Cluster's partitions, of which
// one blocking read could watch only those of one slot.
const clusterWait = 50 * time.Millisecond

// wait returns when a new entry may be there, or after a while.
func (r *Reader) wait(ctx context.Context) error {
	if redisx.IsCluster(r.rdb) && len(r.tracks) > 1 {
		redisx.Pause(ctx, clusterWait)
		return ctx.Err()
	}
	args := make([]any, 0, 6+2*len(r.tracks))
	args = append(args, "xread", "count", 1, "block", redisx.BlockFor(r.rdb).Milliseconds(), "streams")
	for _, t := range r.tracks {
		args = append(args, t.key)
	}
	for _, t := range r.tracks {
		args = append(args, t.mark.ID.String())
	}
	reply, err := redisx.Raw(ctx, r.rdb, args...)
	reply.Free()
	if err != nil && !redisx.IsNil(err) {
		return fmt.Errorf("stream: read topic %s: %w", r.config.Topic.Name, err)
	}
	return ctx.Err()
}
