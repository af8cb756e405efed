package outbox

import (
	"context"
	"os"
	"runtime/pprof"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/stream"
)

// TestDrainRate is a tool: OUTBOX_DRAIN=rows.
func TestDrainRate(t *testing.T) {
	if os.Getenv("OUTBOX_DRAIN") == "" {
		t.Skip()
	}
	n, _ := strconv.Atoi(os.Getenv("OUTBOX_DRAIN"))
	ctx := t.Context()
	pool, err := pgxpool.New(ctx, "postgres://streamkeel@127.0.0.1:54915/dev?sslmode=disable")
	require.NoError(t, err)
	defer pool.Close()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:16915"})
	defer rdb.Close()
	rdb.FlushAll(ctx)
	topic := stream.Topic{Name: "orders", Partitions: 8}
	require.NoError(t, Declare(ctx, pool, topic))
	e := make([]stream.Event, 1000)
	for i := range e {
		e[i] = stream.NewEvent("order.placed", "key-"+strconv.Itoa(i), stream.ContentTypeMsgpack, make([]byte, 256))
	}
	start := time.Now()
	for range n / 1000 {
		for i := range e {
			e[i].ID = stream.NewEvent("x", "", "", nil).ID
		}
		require.NoError(t, Publish(ctx, pool, topic, e...))
	}
	t.Log("inserted", float64(n)/time.Since(start).Seconds())
	var obs drained
	obs.want, obs.done = int64(n), make(chan struct{})
	r, err := NewRelay(pool, rdb, RelayConfig{Observer: &obs})
	require.NoError(t, err)
	rctx, cancel := context.WithCancel(ctx)
	f, _ := os.Create("/tmp/obx/cpu.prof")
	pprof.StartCPUProfile(f)
	start = time.Now()
	end := make(chan error, 1)
	go func() { end <- r.Run(rctx) }()
	<-obs.done
	t.Log("drained", float64(n)/time.Since(start).Seconds(), time.Since(start))
	pprof.StopCPUProfile()
	cancel()
	require.NoError(t, <-end)
}

type drained struct {
	want, have int64
	done       chan struct{}
	mu         chan struct{}
}

var drainMu = make(chan struct{}, 1)

func (d *drained) Observe(_ context.Context, o Observation) {
	drainMu <- struct{}{}
	defer func() { <-drainMu }()
	if o.Moment == Published {
		if d.have += o.Rows; d.have == d.want {
			close(d.done)
		}
	}
}
