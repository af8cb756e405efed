package outbox

import (
	"context"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Moment is something that happens to a relay.
type Moment string

// The moments.
const (
	TakenOver Moment = "taken_over" // the relay owns the shard from now on
	GivenUp   Moment = "given_up"   // it does not any more: it stopped, handed it over, or lost the lease
	Published Moment = "published"  // a batch is wholly in Redis; Rows, Bytes and Took say how it went
	Rewound   Moment = "rewound"    // Redis had lost rows, and has them again; Rows and Bytes say how many
	Stopped   Moment = "stopped"    // the shard stands still until an operator decides; Err says why
	Resumed   Moment = "resumed"    // it goes on
	Refused   Moment = "refused"    // a row was moved to outbox_failed; Err says why
	Waiting   Moment = "waiting"    // Postgres or Redis is away; Err says which
	Backlog   Moment = "backlog"    // every ten seconds, for each shard owned: Rows not published, and the Age of the oldest
	Upkept    Moment = "upkept"     // rows and row partitions were seen to; DaysAhead says how far the latter reach
	Deferred  Moment = "deferred"   // upkeep could not get its way, and tries again; Err says why
	Mismatch  Moment = "mismatch"   // a topic stands differently in Redis and in Postgres; Err says how
)

// Observation is what an Observer is told.
type Observation struct {
	Moment Moment
	// Shard is -1 where the moment is about none.
	Shard int
	// Stream and Event name what was refused or is missing.
	Stream string
	Event  stream.Event
	// Batch, Rows and Bytes tell what was published.
	Batch       int64
	Rows, Bytes int64
	// Took is how long it took.
	Took time.Duration
	// Age of the oldest row that is not published, by the database's clock.
	Age time.Duration
	// DaysAhead is how many days the row partitions reach ahead.
	DaysAhead int
	Err       error
}

// Observer is told of every moment, from several goroutines, in the way of the relay: it must be
// quick, and not block.
type Observer interface {
	Observe(ctx context.Context, o Observation)
}

func (r *Relay) observe(ctx context.Context, o Observation) {
	if r.config.Observer != nil {
		r.config.Observer.Observe(ctx, o)
	}
}
