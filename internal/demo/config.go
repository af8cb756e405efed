// Package demo is `streamkeel demo`: real events travel from Postgres transactions through
// the relay, Redis Streams, consumer groups, retries, reclaim, dead letters, a projection
// and a saga, while processes are killed; and at the end it proves from Postgres and Redis
// that nothing was lost and nothing counted twice.
//
// Read it in this order: run.go is the course of events, producer.go what is published,
// worker.go the services that consume, faults.go what goes wrong, check.go the proof.
package demo

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Config is what the command's flags set.
type Config struct {
	// Events is how many webhook deliveries are published, Orders how many orders placed.
	Events, Orders int
	// Seed repeats input and faults, though not their timing.
	Seed int64
	// MinIdle is after how long a silent worker's entries are taken over, LeaseTTL after how
	// long a silent relay's shards are.
	MinIdle, LeaseTTL time.Duration
	// Timeout ends a run that does not come to rest.
	Timeout time.Duration
	// RedisURL and PostgresURL name servers to use; without them the demo starts its own.
	RedisURL, PostgresURL string
	// Bin is the folder of the daemons' programs, Self this program.
	Bin, Self string
	// Break breaks the code on purpose, to see the proof fail.
	Break Break
}

// Break is a fault in the code itself.
type Break string

// What can be broken.
const (
	BreakNothing        Break = ""
	BreakAckEarly       Break = "ack-before-handle"   // a handler acks, and does its work afterwards
	BreakPublishOutside Break = "publish-outside"     // events are published in a transaction of their own
	BreakNoInbox        Break = "no-inbox"            // a handler does not look whether it ran before
	BreakRelayBySeq     Break = "relay-by-sequence"   // a relay that reads rows by their id alone
	BreakUndoRefused    Break = "undo-refused-charge" // a compensation that undoes a step that was refused
)

// Breaks lists what can be broken.
func Breaks() []string {
	return []string{string(BreakAckEarly), string(BreakPublishOutside), string(BreakNoInbox), string(BreakRelayBySeq), string(BreakUndoRefused)}
}

// Validate reports every fault of the config, joined.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Events < 400 || c.Events > 1_000_000 {
		fault("--events %d must be 400 to 1,000,000", c.Events)
	}
	if c.Orders < 100 || c.Orders > 100_000 {
		fault("--orders %d must be 100 to 100,000", c.Orders)
	}
	if c.MinIdle < time.Second {
		fault("--min-idle %s must be at least 1s", c.MinIdle)
	}
	if c.LeaseTTL < time.Second {
		fault("--lease-ttl %s must be at least 1s", c.LeaseTTL)
	}
	if c.Timeout < 10*time.Second {
		fault("--timeout %s must be at least 10s", c.Timeout)
	}
	if (c.RedisURL == "") != (c.PostgresURL == "") {
		fault("--redis-url and --postgres-url go together: name both servers, or neither")
	}
	if c.Break != BreakNothing && !slices.Contains(Breaks(), string(c.Break)) {
		fault("--break %.40q is none of %s", c.Break, strings.Join(Breaks(), ", "))
	}
	return errors.Join(faults...)
}

// The demo's topics; their namespace is one of the run's own.
const partitions = 8

type topics struct{ webhooks, orders stream.Topic }

func topicsIn(namespace string) topics {
	return topics{
		webhooks: stream.Topic{Name: "webhooks", Namespace: namespace, Partitions: partitions, Source: "github.com"},
		orders:   stream.Topic{Name: "orders", Namespace: namespace, Partitions: partitions, Source: "shop"},
	}
}

// The groups, as the ledger names them.
const (
	groupActivity = "activity" // the projection
	groupNotify   = "notify"   // the handler with faults
	groupShop     = "shop"     // the saga's steps
)

// Which of the input goes wrong follows from the seed and the number of an event, so that
// producer, worker and checker agree without telling each other.
type dice int64

// roll draws an even number in [0, 1) for the n-th of a kind.
func (d dice) roll(kind string, n int) float64 {
	h := uint64(d) * 0x9e3779b97f4a7c15
	for _, c := range []byte(kind) {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	h ^= uint64(n) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9 // SplitMix64's finaliser
	h = (h ^ h>>27) * 0x94d049bb133111eb
	h ^= h >> 31
	return float64(h>>11) / (1 << 53)
}

func (d dice) rollsBack(n int) bool      { return d.roll("rollback", n) < 0.01 }
func (d dice) orderRollsBack(n int) bool { return d.roll("order rollback", n) < 0.01 }
func (d dice) takesLong(n int) bool      { return d.roll("slow", n) < 0.004 }
func (d dice) poison(n int) bool         { return d.roll("notify", n) < 0.005 }
func (d dice) declined(n int) bool       { return d.roll("charge", n) < 0.05 }
func (d dice) undeliverable(n int) bool  { return d.roll("confirm", n) < 0.02 }

// failures returns how often the notify handler fails before it succeeds.
func (d dice) failures(n int) int {
	switch r := d.roll("notify", n); {
	case r < 0.005:
		return 1 << 30
	case r < 0.02:
		return 2
	case r < 0.035:
		return 1
	}
	return 0
}
