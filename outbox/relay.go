package outbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// Relay moves the outbox's rows to Redis Streams. Any number may run against one database: they share the
// shards, each of which has one owner at a time, and take over from one that died within LeaseTTL.
//
// Each row stands once in the surviving stream, in the order in which its key's transactions published. Rows become
// visible in Redis after their transaction committed and never before. If Redis is away they wait; what it
// lost in a failover or a crash it gets again with the next row of the same stream, at the end of it, with the
// sequence that it had.
//
// A Relay keeps no state in its sessions and so works through a pooler in transaction mode. It uses at most 2
// connections and one for every 4 shards that it owns, one of its own if ListenURL is set, and one more for a moment when it makes or drops row
// partitions.
type Relay struct {
	db     database
	rdb    redis.UniversalClient
	config RelayConfig
	id     string
	log    *quiet.Log

	restAfter   time.Duration // restAfter, but for tests
	lookedAhead time.Time     // when sequence last looked into the row partitions of the days to come

	system  string // the database cluster and database that the rows come from; set by check
	topics  *topics
	readers readers
	awake   chan struct{} // rows may have been committed
	ready   chan *shard   // shards whose batch is published
	healed  chan struct{} // Redis answers again
	recent  atomic.Int64  // rows that were published since sequence last froze a batch

	mu     sync.Mutex
	owned  map[int]*shard
	shards int // how many there are; set by check
}

// NewRelay returns a relay that reads from pool and writes to rdb. The caller keeps both and closes them.
func NewRelay(pool *pgxpool.Pool, rdb redis.UniversalClient, config RelayConfig) (*Relay, error) {
	config = config.withDefaults()
	schema, err := config.validate(pool, rdb)
	if err != nil {
		return nil, err
	}
	db := newDatabase(pool, schema)
	suffix := make([]byte, 4)
	_, _ = rand.Read(suffix) // never fails
	return &Relay{
		db:     db,
		rdb:    rdb,
		config: config,
		id:     config.Name + "-" + hex.EncodeToString(suffix),
		log:    quiet.New(config.Logger),
		topics: newTopics(db),
		awake:  make(chan struct{}, 1),
		ready:  make(chan *shard, maxShards),
		healed: make(chan struct{}, 1),
		owned:  map[int]*shard{},

		restAfter: restAfter,
	}, nil
}

// maxShards bounds how many shards a migration may choose.
const maxShards = 1024

// Run relays until ctx ends; then what is in hand is published, the shards are given up, and it returns nil.
// It returns an error only at its start, where a check fails: servers that cannot be reached or are too
// old, missing migrations, an evicting Redis, a topic that stands differently in Redis, an outbox of
// another database cluster. What goes wrong later is logged, observed, and tried again.
func (r *Relay) Run(ctx context.Context) error {
	if err := r.start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	// Publishing outlives ctx until the shards were given up; work ends it where that takes too long.
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	stopCut := context.AfterFunc(ctx, func() { time.AfterFunc(r.config.ShutdownTimeout, cut) })
	defer stopCut()
	defer relays.add(r.awake)()

	var wg sync.WaitGroup
	wg.Go(func() { r.sequence(ctx) })
	wg.Go(func() { r.keepDeclared(ctx) })
	wg.Go(func() { r.keepUp(ctx) })
	if r.config.ListenURL != "" {
		wg.Go(func() { r.listen(ctx) })
	}
	r.keepLeases(ctx, work)
	wg.Wait()
	return nil
}

// Owned returns the shards that the relay owns now, for a health check and for tests.
func (r *Relay) Owned() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	numbers := make([]int, 0, len(r.owned))
	for n, s := range r.owned {
		if s.lease.held() {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// ID returns the relay's name in lease rows.
func (r *Relay) ID() string { return r.id }

// failed logs what went wrong and is tried again.
func (r *Relay) failed(ctx context.Context, message string, shard int, err error) {
	if ctx.Err() != nil {
		return
	}
	where := ""
	if shard >= 0 {
		where = fmt.Sprintf("shard %d", shard)
	}
	r.log.Error(ctx, message, where, err)
	if pgerr.IsUnavailable(err) || redisx.IsUnavailable(err) || errors.Is(err, stream.ErrNotDurable) {
		r.observe(ctx, Observation{Moment: Waiting, Shard: shard, Err: err})
	}
}

// readers bounds how many connections read rows at the same time: one for every four shards owned.
type readers struct {
	mu    sync.Mutex
	inUse int
	freed chan struct{}
}

// acquire waits until a connection may read; owned tells how many shards there are at the moment.
func (r *readers) acquire(ctx context.Context, owned func() int) (release func(), err error) {
	for {
		r.mu.Lock()
		if r.inUse < max(1, (owned()+3)/4) {
			r.inUse++
			r.mu.Unlock()
			return r.release, nil
		}
		if r.freed == nil {
			r.freed = make(chan struct{})
		}
		freed := r.freed
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-freed:
		}
	}
}

func (r *readers) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inUse--
	if r.freed != nil {
		close(r.freed)
		r.freed = nil
	}
}
