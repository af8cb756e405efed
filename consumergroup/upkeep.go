package consumergroup

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

// Target is a group of a topic that is looked after.
type Target struct {
	Topic stream.Topic
	Group stream.Group
}

// UpkeepConfig configures an [Upkeep].
type UpkeepConfig struct {
	// Targets returns what to look after; it is asked every five seconds. Required.
	Targets func(ctx context.Context) ([]Target, error)
	// Retention is by what topics are trimmed. Default: what every group has finished, at
	// least an hour old.
	Retention retention.Policy
	// Letters bounds the dead letters of each group. Default: all are kept.
	Letters dlq.Retention
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
	// Observer is told what was reclaimed. Default: nobody.
	Observer Observer
	// OnTrim is told what became of each partition when its turn came. Default: nobody.
	OnTrim func(ctx context.Context, topic stream.Topic, report retention.Report)
}

// Upkeep looks after groups: it moves due retries, takes over what silent consumers left,
// deletes their names, keeps checkpoints and trims. Consumers do it for themselves; the
// reclaimer daemon does it for all. Every step is an idempotent script, so any number
// may do it at the same time.
type Upkeep struct {
	rdb redis.UniversalClient
	cfg UpkeepConfig
	log *quiet.Log

	reach *pel.Reach

	mu      sync.Mutex
	targets []Target
	swept   map[string]time.Time // by group and stream: when the last sweep began
}

// How often upkeep looks.
const (
	targetsEvery    = 5 * time.Second
	dueEvery        = 200 * time.Millisecond
	checkpointEvery = time.Second
	trimEvery       = 30 * time.Second
	fullEvery       = 2 * time.Second // whether letters are full, where that pauses the group
	reachEvery      = 250 * time.Millisecond
	sweepEvery      = 200 * time.Millisecond // whether a group's turn has come
)

// NewUpkeep returns the upkeep of what cfg.Targets names.
func NewUpkeep(rdb redis.UniversalClient, cfg UpkeepConfig) (*Upkeep, error) {
	var faults []error
	if rdb == nil || cfg.Targets == nil {
		faults = append(faults, errors.New("consumergroup: NewUpkeep needs a Redis client and Targets"))
	}
	for _, err := range []error{cfg.Retention.Validate(), cfg.Letters.Validate()} {
		if err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return newUpkeep(rdb, cfg, quiet.New(cfg.Logger)), nil
}

func newUpkeep(rdb redis.UniversalClient, cfg UpkeepConfig, log *quiet.Log) *Upkeep {
	return &Upkeep{rdb: rdb, cfg: cfg, log: log, reach: pel.NewReach(rdb, reachEvery), swept: map[string]time.Time{}}
}

// newKeeper returns the upkeep of the consumer's own group.
func (c *Consumer) newKeeper() *Upkeep {
	var targets []Target
	for _, t := range c.cfg.Topics {
		targets = append(targets, Target{t, stream.Group{
			Name: c.cfg.Group, Kind: c.cfg.kind(), MaxDeliveries: c.cfg.MaxDeliveries, MinIdleMs: c.cfg.MinIdle.Milliseconds(),
		}})
	}
	return newUpkeep(c.rdb, UpkeepConfig{
		Targets:   func(context.Context) ([]Target, error) { return targets, nil },
		Retention: c.cfg.Retention, Letters: c.cfg.Letters, Observer: c.cfg.Observer,
	}, c.log)
}

// Run looks after the targets until ctx ends. What fails is logged and tried again.
func (u *Upkeep) Run(ctx context.Context) {
	u.refresh(ctx)
	var loops sync.WaitGroup
	loop := func(every time.Duration, step func(context.Context)) {
		loops.Go(func() { repeat(ctx, every, step) })
	}
	loop(targetsEvery, u.refresh)
	loop(dueEvery, u.moveDue)
	loop(checkpointEvery, u.checkpoint)
	loop(reachEvery, u.look)
	loop(sweepEvery, u.sweep)
	loop(trimEvery, u.trim)
	if u.cfg.Letters.MaxLen > 0 || u.cfg.Letters.MaxAge > 0 {
		every := trimEvery
		if u.cfg.Letters.OnFull == dlq.FullPause {
			every = fullEvery
		}
		loop(every, u.trimLetters)
	}
	loops.Wait()
}

// watch does nothing but watch whether Redis is within reach.
func (u *Upkeep) watch(ctx context.Context) {
	u.refresh(ctx)
	repeat(ctx, reachEvery, u.look)
}

func repeat(ctx context.Context, every time.Duration, step func(context.Context)) {
	for step(ctx); redisx.Pause(ctx, jitter(every)); step(ctx) {
	}
}

func (u *Upkeep) refresh(ctx context.Context) {
	targets, err := u.cfg.Targets(ctx)
	if err != nil {
		u.failed(ctx, "groups not known", "", err)
		return
	}
	u.mu.Lock()
	u.targets = targets
	u.mu.Unlock()
}

func (u *Upkeep) failed(ctx context.Context, message, where string, err error) {
	if ctx.Err() == nil {
		u.log.Error(ctx, message, where, err)
	}
}

// eachGroup calls fn with every partition of every consumer group.
func (u *Upkeep) eachGroup(ctx context.Context, fn func(t Target, k pel.Keys)) {
	u.mu.Lock()
	targets := u.targets
	u.mu.Unlock()
	for _, t := range targets {
		if t.Group.Kind == stream.GroupProjection {
			continue // nothing is ever pending
		}
		for _, key := range t.Topic.StreamKeys() {
			if ctx.Err() != nil {
				return
			}
			fn(t, pel.KeysOf(key, t.Group.Name))
		}
	}
}

func (u *Upkeep) moveDue(ctx context.Context) {
	u.eachGroup(ctx, func(_ Target, k pel.Keys) {
		if _, _, err := pel.MoveDue(ctx, u.rdb, k); err != nil {
			if redisx.IsUnavailable(err) {
				u.reach.Lost(k.Stream)
			}
			u.failed(ctx, "due retries not moved", k.Stream, err)
		}
	})
}

func (u *Upkeep) checkpoint(ctx context.Context) {
	u.eachGroup(ctx, func(_ Target, k pel.Keys) {
		if err := pel.Checkpoint(ctx, u.rdb, k); err != nil {
			u.failed(ctx, "checkpoint not stored", k.Stream, err)
		}
	})
}

func (u *Upkeep) look(ctx context.Context) {
	var keys []string
	u.eachGroup(ctx, func(_ Target, k pel.Keys) { keys = append(keys, k.Stream) })
	if err := u.reach.Look(ctx, keys...); err != nil {
		u.failed(ctx, "Redis is out of reach", "", err)
	}
}

// sweep takes over what silent consumers left, in the groups whose turn has come: twice
// in the time after which a consumer counts as silent.
func (u *Upkeep) sweep(ctx context.Context) {
	u.eachGroup(ctx, func(t Target, k pel.Keys) {
		limits := pel.Limits{MinIdle: time.Duration(t.Group.MinIdleMs) * time.Millisecond, MaxDeliveries: t.Group.MaxDeliveries}
		limits = limits.WithDefaults()
		if !u.turn(k, limits.MinIdle/2) {
			return
		}
		reclaimer, err := pel.NewReclaimer(u.rdb, limits, u.reach)
		if err == nil {
			sweep := reclaimer.Sweep
			if t.Group.Kind == stream.GroupOrdered {
				sweep = reclaimer.SweepOrdered
			}
			err = sweep(ctx, k, func(r pel.Reclaimed) { u.reclaimed(ctx, t, r) })
		}
		if err != nil {
			u.failed(ctx, "sweep failed", k.Stream, err)
			return
		}
		if _, err := pel.SweepNames(ctx, u.rdb, k, 2*limits.MinIdle); err != nil {
			u.failed(ctx, "names of dead consumers not deleted", k.Stream, err)
		}
	})
}

func (u *Upkeep) turn(k pel.Keys, every time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	name := k.Group + "\x00" + k.Stream
	if time.Since(u.swept[name]) < jitter(every) {
		return false
	}
	u.swept[name] = time.Now()
	return true
}

func (u *Upkeep) reclaimed(ctx context.Context, t Target, r pel.Reclaimed) {
	if r.Fate != pel.FateMoved {
		u.log.Warn(ctx, "entry of a silent consumer went to the dead letters", r.Stream,
			"id", r.ID.String(), "group", r.Group, "consumer", r.Consumer, "reason", string(r.Fate), "deliveries", r.Deliveries)
	}
	if u.cfg.Observer == nil {
		return
	}
	o := Observation{Topic: t.Topic.Name, Group: r.Group, Stream: r.Stream, ID: r.ID, Deliveries: r.Deliveries}
	switch r.Fate {
	case pel.FateMoved:
		o.Moment = Reclaimed
	case pel.FateTrimmed:
		o.Moment, o.Reason = Trimmed, dlq.ReasonTrimmed
	case pel.FateDeliveries:
		o.Moment, o.Reason = DeadLettered, dlq.ReasonDeliveries
	}
	u.cfg.Observer.Observe(ctx, o)
}

// trim trims each topic once, whatever number of groups it has here.
func (u *Upkeep) trim(ctx context.Context) {
	u.mu.Lock()
	targets := u.targets
	u.mu.Unlock()
	done := map[string]bool{}
	for _, t := range targets {
		if done[t.Topic.StreamKey(0)] {
			continue
		}
		done[t.Topic.StreamKey(0)] = true
		groups, err := stream.Groups(ctx, u.rdb, t.Topic)
		if err != nil {
			u.failed(ctx, "topic not trimmed", t.Topic.Name, err)
			continue
		}
		for _, key := range t.Topic.StreamKeys() {
			report, err := retention.Trim(ctx, u.rdb, key, groups, u.cfg.Retention, false)
			if err != nil {
				u.failed(ctx, "partition not trimmed", key, err)
				continue
			}
			u.trimmed(ctx, t.Topic, report)
		}
	}
}

// trimmed tells of a trim what a person should know.
func (u *Upkeep) trimmed(ctx context.Context, topic stream.Topic, r retention.Report) {
	for group, loss := range r.Losses {
		u.log.Warn(ctx, "entries were discarded by age before the group finished them", r.Stream,
			"group", group, "unread", loss.Unread, "pending", loss.Pending)
	}
	for group, id := range r.Stale {
		u.log.Warn(ctx, "group is stale and holds the stream", r.Stream, "group", group, "unfinished", id.String())
	}
	if r.Held == retention.HeldNoGroup || r.Held == retention.HeldMissing {
		u.log.Warn(ctx, "stream is not trimmed", r.Stream, "why", string(r.Held), "group", r.Group)
	}
	if u.cfg.OnTrim != nil {
		u.cfg.OnTrim(ctx, topic, r)
	}
}

// trimLetters keeps the dead letters of each group within their bounds.
func (u *Upkeep) trimLetters(ctx context.Context) {
	u.mu.Lock()
	targets := u.targets
	u.mu.Unlock()
	for _, t := range targets {
		if t.Group.Kind == stream.GroupProjection {
			continue // it has none
		}
		var report dlq.Report
		queue, err := dlq.Open(u.rdb, t.Topic, t.Group.Name)
		if err == nil {
			report, err = queue.Trim(ctx, u.cfg.Letters)
		}
		if err != nil {
			u.failed(ctx, "dead letters not trimmed", t.Topic.Name, err)
			continue
		}
		for reason, n := range report.Discarded {
			u.log.Warn(ctx, "dead letters were discarded", t.Topic.Name, "group", t.Group.Name, "reason", string(reason), "letters", n)
		}
		if report.Over > 0 {
			u.log.Warn(ctx, "there are more dead letters than MaxLen", t.Topic.Name, "group", t.Group.Name, "over", report.Over)
		}
		if u.cfg.Letters.OnFull == dlq.FullPause {
			u.pauseFull(ctx, t, report.Over > 0)
		}
	}
}

// pauseFull pauses a group whose letters are full, and resumes it when there is room.
func (u *Upkeep) pauseFull(ctx context.Context, t Target, full bool) {
	var keys []pel.Keys
	for _, key := range t.Topic.StreamKeys() {
		keys = append(keys, pel.KeysOf(key, t.Group.Name))
	}
	changed, err := pel.PauseFull(ctx, u.rdb, full, keys...)
	switch {
	case err != nil:
		u.failed(ctx, "group with full dead letters not paused or resumed", t.Topic.Name, err)
	case changed && full:
		u.log.Warn(ctx, "group is paused: its dead letters are full; redrive or purge some", t.Topic.Name, "group", t.Group.Name)
	case changed:
		u.log.Info(ctx, "group is resumed: its dead letters have room", "at", t.Topic.Name, "group", t.Group.Name)
	}
}
