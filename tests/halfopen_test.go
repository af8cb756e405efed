package tests

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// link leads to a Redis and can be made half-open: then connections stay open, and nothing
// comes through any more, in either direction. Connections that are opened after it has
// healed go another way; the old ones stay dead.
type link struct {
	proxy *toxiproxy.Proxy
	via   atomic.Pointer[string] // where new connections lead
}

func newLink(t *testing.T, upstream string) *link {
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), t.Name(), "127.0.0.1:0", upstream)
	require.NoError(t, proxy.Start())
	t.Cleanup(proxy.Stop)
	l := &link{proxy: proxy}
	l.via.Store(&proxy.Listen)
	return l
}

func (l *link) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, *l.via.Load())
}

func (l *link) halfOpen(t *testing.T) {
	for _, direction := range []string{"upstream", "downstream"} {
		_, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(`{"type": "timeout", "stream": "` + direction + `", "attributes": {"timeout": 0}}`))
		require.NoError(t, err)
	}
}

func (l *link) heal(upstream string) { l.via.Store(&upstream) }

func TestConsumersGoOnByThemselvesAfterAHalfOpenLinkAndNothingIsTakenOrCounted(t *testing.T) {
	t.Parallel()
	const minIdle = 1500 * time.Millisecond
	for kind, ordered := range map[string]bool{"unordered": false, "ordered": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
			direct := testenv.RedisClient(t, server.URL())
			link := newLink(t, server.Addr())
			// A dead connection is given up after ReadTimeout, and MinIdle must outlast some of them.
			rdb := testenv.RedisClient(t, server.URL(), func(o *redis.Options) { o.Dialer, o.ReadTimeout = link.dial, 500*time.Millisecond })
			topic := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}
			keys := pel.KeysOf(topic.StreamKey(0), "billing")

			var mu sync.Mutex
			runs := map[string]int{}
			var counted atomic.Int32
			inHand, over := make(chan string, 100), make(chan struct{})
			start := func() *consumergroup.Consumer {
				c, err := consumergroup.New(rdb, consumergroup.Config{
					Topics: []stream.Topic{topic}, Group: "billing", Concurrency: 4, Ordered: ordered, Limits: pel.Limits{MinIdle: minIdle},
					ShutdownTimeout: time.Second, Logger: slog.New(slog.DiscardHandler),
					Handler: consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) error {
						m, _ := consumergroup.MetadataFrom(ctx)
						if m.Attempt != 1 {
							counted.Add(1)
						}
						mu.Lock()
						runs[e.ID]++
						mu.Unlock()
						if e.Key == "held" {
							inHand <- m.ID.String()
							select {
							case <-over:
							case <-ctx.Done():
							}
						}
						return nil
					}),
				})
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- c.Run(ctx) }()
				t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })
				return c
			}
			publish := func(keys ...string) (events []stream.Event) {
				p, err := stream.NewPublisher(direct, stream.PublisherConfig{})
				require.NoError(t, err)
				for _, key := range keys {
					events = append(events, stream.NewEvent("order.placed", key, stream.ContentTypeJSON, []byte(`{}`)))
				}
				_, err = p.PublishBatch(t.Context(), topic, events)
				require.NoError(t, err)
				return events
			}
			handled := func(events []stream.Event) func() bool {
				return func() bool {
					mu.Lock()
					defer mu.Unlock()
					for _, e := range events {
						if runs[e.ID] != 1 {
							return false
						}
					}
					return true
				}
			}

			owner := start()
			before := publish("held", "a", "b", "c")
			id := <-inHand
			require.Eventually(t, handled(before), patience, time.Millisecond)
			start() // it would take what is in hand, if it could
			link.halfOpen(t)
			during := publish("a", "b", "c")
			pending := func() redis.XPendingExt {
				all, err := direct.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: keys.Stream, Group: "billing", Start: id, End: id, Count: 1}).Result()
				require.NoError(t, err)
				require.Len(t, all, 1, "the link took an event from a live consumer")
				return all[0]
			}
			told := func() bool { // that the owner lives: by a heartbeat, or the renewal of its lease
				tenures, err := pel.Tenures(t.Context(), direct, keys)
				require.NoError(t, err)
				return ordered && tenures[0].Held() || pending().Idle < minIdle
			}
			require.Eventually(t, func() bool { return !told() }, patience, 10*time.Millisecond, "the link is not half-open")
			link.heal(server.Addr())
			healed := time.Now()
			require.Eventually(t, told, patience, 10*time.Millisecond)
			require.Eventually(t, func() bool { return time.Since(healed) > 2*minIdle }, patience, 10*time.Millisecond)
			require.Equal(t, owner.Name(), pending().Consumer, "the link took an event from a live consumer")
			require.EqualValues(t, 1, pending().RetryCount, "the link counted as a delivery")
			close(over)
			during = append(during, publish("held", "a")...)
			require.Eventually(t, handled(during), patience, 5*time.Millisecond, "the consumers do not go on")
			require.Eventually(t, func() bool {
				totals, err := pel.Inspect(t.Context(), direct, keys)
				return err == nil && totals[0].Pending == 0 && totals[0].Lag == 0 && totals[0].Retry == 0 && totals[0].Due == 0
			}, patience, 10*time.Millisecond, "the group does not come to rest")
			require.True(t, handled(append(before, during...))(), "the link made an event be handled twice")
			require.Zero(t, counted.Load(), "the link counted as an attempt")
			require.Zero(t, direct.XLen(t.Context(), keys.Dead).Val(), "the link filled the letters")
		})
	}
}
