package inbox

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/claim.lua
	claimText string
	//go:embed lua/renew.lua
	renewText string
	//go:embed lua/finish.lua
	finishText string

	claimScript  = redisx.NewScript(claimText)
	renewScript  = redisx.NewScript(renewText)
	finishScript = redisx.NewScript(finishText)
)

// ErrClaimLost is the cause of a context that ended because the claim went to somebody else, or could
// not be renewed in time: what is done from here may be done twice.
var ErrClaimLost = errors.New("claim lost")

// ClaimsConfig configures [Claims]. The zero value is the default.
type ClaimsConfig struct {
	// Namespace is that of the keys in Redis. Default "sk".
	Namespace string
	// Lease is how long a claim outlives a process that died with it, and so how long the event waits. It is
	// renewed three times as often. Default 15 seconds, at least 1; it should be shorter than the consumer group's
	// HandlerTimeout, or deliveries that wait for a dead process's claim fail as attempts.
	Lease time.Duration
	// Retention is how long it is remembered that an event was handled. One that comes again later has its
	// effect again. Default 7 days; more costs memory: about 200 bytes for each event and group.
	Retention time.Duration
	// Logger gets what a person should know. Default slog.Default().
	Logger *slog.Logger
}

const minLease = time.Second

func (c ClaimsConfig) withDefaults() ClaimsConfig {
	if c.Namespace == "" {
		c.Namespace = stream.DefaultNamespace
	}
	if c.Lease == 0 {
		c.Lease = 15 * time.Second
	}
	if c.Retention == 0 {
		c.Retention = 7 * 24 * time.Hour
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (c ClaimsConfig) validate(rdb redis.UniversalClient) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if rdb == nil {
		fault("the Redis client is nil")
	}
	if !stream.ValidName(c.Namespace) {
		fault("Namespace %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", c.Namespace)
	}
	if c.Lease < minLease {
		fault("Lease %s must be at least %s", c.Lease, minLease)
	}
	if c.Retention < c.Lease {
		fault("Retention %s must be at least the Lease %s", c.Retention, c.Lease)
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("inbox: invalid claims config: %w", errors.Join(faults...))
}

// Claims keeps concurrent and repeated deliveries of an event from an effect that no transaction covers, such
// as a call of another system. While a process has the claim on an event, others that want it wait; once the
// effect is done, they learn that, and do nothing. If the effect fails, the next one tries.
//
// It is no exactly-once. The effect comes twice where a process dies between the effect and the record of it, where
// it loses Redis, or stands still, for longer than Lease while it is at the effect, and where Redis forgets
// the claim (a failover, an eviction). Give the other system the event's id as an idempotency key, if it
// takes one. With Postgres at hand, use [Handle] instead.
//
// It is safe for use by many goroutines.
type Claims struct {
	rdb    redis.UniversalClient
	config ClaimsConfig
	log    *quiet.Log
}

// NewClaims returns Claims on this Redis. The caller keeps the client.
func NewClaims(rdb redis.UniversalClient, config ClaimsConfig) (*Claims, error) {
	config = config.withDefaults()
	if err := config.validate(rdb); err != nil {
		return nil, err
	}
	return &Claims{rdb: rdb, config: config, log: quiet.New(config.Logger)}, nil
}

// Once is a consumergroup.Middleware: a delivery of an event that its group has handled before is acked without a call
// of the handler. While Redis is away no attempt is counted.
func (c *Claims) Once(next consumergroup.Handler) consumergroup.Handler {
	return consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
		delivery, _ := consumergroup.MetadataFrom(ctx)
		_, err := c.Do(ctx, delivery.Group, e, func(ctx context.Context) error { return next.Handle(ctx, e) })
		return err
	})
}

// Do runs fn unless it ran without an error for this event and group before, and reports whether it did. While another
// caller has the claim, Do waits. The context of fn ends, with the cause ErrClaimLost, when the claim
// is lost. After an error, fn's or another, the claim is free for the next caller.
func (c *Claims) Do(ctx context.Context, group string, e stream.Event, fn func(ctx context.Context) error) (ran bool, err error) {
	source, err := identity(ctx, group, e)
	if err != nil {
		return false, err
	}
	claim := claim{
		Claims: c,
		key:    fmt.Sprintf("%s:$claim:%s:%d:%s/%s", c.config.Namespace, group, len(source), source, e.ID),
		token:  rand.Text(),
	}
	if taken, err := claim.take(ctx); err != nil || !taken {
		return false, err
	}
	return true, claim.hold(ctx, fn)
}

// claim is one caller's try to handle one event.
type claim struct {
	*Claims
	key, token string
	until      time.Time // as long as it is surely ours, if it is not renewed
}

// How often a claim that another has is looked at.
const (
	minLook = 10 * time.Millisecond
	maxLook = 500 * time.Millisecond
)

// take waits until the claim is ours, or the event is done.
func (c *claim) take(ctx context.Context) (taken bool, err error) {
	for wait := minLook; ; wait = min(2*wait, maxLook) {
		asked := time.Now()
		left, err := claimScript.Run(ctx, c.rdb, []string{c.key}, c.token, c.config.Lease.Milliseconds()).Int64()
		switch {
		case err != nil && redisx.IsUnavailable(err):
			return false, consumergroup.Unavailable(fmt.Errorf("inbox: take claim %s: %w", c.key, err))
		case err != nil:
			return false, fmt.Errorf("inbox: take claim %s: %w", c.key, err)
		case left == 0:
			c.until = asked.Add(c.config.Lease)
			return true, nil
		case left < 0:
			return false, nil
		}
		if !redisx.Pause(ctx, min(wait, time.Duration(left)*time.Millisecond)) {
			return false, fmt.Errorf("inbox: wait for claim %s: %w", c.key, context.Cause(ctx))
		}
	}
}

// hold runs fn while it renews the claim, and then finishes it or gives it up.
func (c *claim) hold(ctx context.Context, fn func(context.Context) error) error {
	work, cancel := context.WithCancelCause(ctx)
	// A call of a client may take longer than its context allows it: the clock decides, not the call.
	end := time.AfterFunc(time.Until(c.until), func() {
		cancel(fmt.Errorf("%w: it could not be renewed within %s", ErrClaimLost, c.config.Lease))
	})
	defer end.Stop()
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		c.renew(work, cancel, end)
	}()
	done := false
	defer func() { // also where fn panics
		cancel(nil)
		<-renewed
		ctx := context.WithoutCancel(ctx)
		if done {
			c.finish(ctx)
		} else {
			c.release(ctx)
		}
	}()
	if err := fn(work); err != nil {
		return err
	}
	done = true
	return nil
}

// renew puts the claim's end off until ctx ends, and ends it when the claim is another's.
func (c *claim) renew(ctx context.Context, cancel context.CancelCauseFunc, end *time.Timer) {
	for redisx.Pause(ctx, c.config.Lease/3) {
		asked := time.Now()
		ours, err := renewScript.Run(ctx, c.rdb, []string{c.key}, c.token, c.config.Lease.Milliseconds()).Int64()
		switch {
		case err != nil: // the next try may come in time
		case ours == 1:
			end.Reset(time.Until(asked.Add(c.config.Lease)))
		default:
			cancel(ErrClaimLost)
			return
		}
	}
}

// finish records that the event is done. The effect has happened, so what goes wrong here is no failed attempt: it
// tries for as long as a lease, and then leaves the event to be handled again if it comes again.
func (c *claim) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Lease)
	defer cancel()
	for wait := minLook; ; wait = min(2*wait, maxLook) {
		ours, err := finishScript.Run(ctx, c.rdb, []string{c.key}, c.token, c.config.Retention.Milliseconds()).Int64()
		switch {
		case err == nil && ours == 1:
			return
		case err == nil:
			c.log.Error(ctx, "an event was handled although its claim was lost, and somebody else handles it too", "", ErrClaimLost, "key", c.key)
			return
		}
		if !redisx.Pause(ctx, wait) {
			c.log.Error(ctx, "an event was handled and that could not be recorded: it is handled again if it comes again", "", err, "key", c.key)
			return
		}
	}
}

// release gives the claim up at once; where that fails, the lease runs out.
func (c *claim) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, minLease)
	defer cancel()
	_ = renewScript.Run(ctx, c.rdb, []string{c.key}, c.token, 0).Err()
}
