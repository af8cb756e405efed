package tests

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

// pgbouncer starts a PgBouncer in transaction mode before the test's database, whose clients share 4 connections, and returns its
// address.
func pgbouncer(t *testing.T) *url.URL {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/pgbouncer")
	}
	if err != nil && !(os.Getenv("CI") == "true" && testenv.IsLong()) {
		t.Skip("pgbouncer is not installed: apt-get install pgbouncer")
	}
	require.NoError(t, err, "apt-get install pgbouncer")
	database, err := pgx.ParseConfig(testenv.PostgresURL(t))
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, listener.Close())
	password := ""
	if database.Password != "" {
		password = " password=" + database.Password
	}
	config := filepath.Join(t.TempDir(), "pgbouncer.ini")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `[databases]
* = host=%s port=%d user=%s%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 100
`, database.Host, database.Port, database.User, password, port), 0o644))
	args := []string{config}
	if os.Getuid() == 0 { // as which it does not run
		args = []string{"-u", "nobody", config}
	}
	var log strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }() // with the signal's status
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // or it has ended by itself
		<-ended
		if t.Failed() {
			t.Log(log.String())
		}
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	require.Eventually(t, func() bool {
		select {
		case <-ended:
			return true
		default:
		}
		conn, err := net.Dial("tcp", address)
		return err == nil && conn.Close() == nil
	}, 30*time.Second, 10*time.Millisecond)
	select {
	case <-ended:
		require.FailNow(t, "pgbouncer ended")
	default:
	}
	return &url.URL{Scheme: "postgres", User: url.User(database.User), Host: address, Path: "/" + database.Database}
}

func TestOutboxWorksThroughPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	bouncer := pgbouncer(t)
	rdb, ns := testenv.Redis(t), testenv.Namespace(t)
	const writers = 4
	rounds := 25
	if testenv.IsLong() {
		rounds = 1000
	}
	for _, mode := range []string{"cache_describe", "exec"} {
		t.Run(mode, func(t *testing.T) {
			topic := stream.Topic{Name: "orders." + mode, Namespace: ns, Partitions: 8}
			through := func() *pgxpool.Pool {
				u := *bouncer
				u.RawQuery = "sslmode=disable&pool_max_conns=6&default_query_exec_mode=" + mode
				return testenv.Pool(t, u.String())
			}
			relays := make([]*outbox.Relay, 3)
			for i := range relays {
				r, err := outbox.NewRelay(through(), rdb, outbox.RelayConfig{Logger: slog.New(slog.DiscardHandler)})
				require.NoError(t, err)
				relays[i] = r
				running(t, r.Run)
			}
			pool := through()
			var g errgroup.Group
			for w := range writers {
				g.Go(func() error {
					for n := range rounds {
						err := outbox.InTx(t.Context(), pool, func(tx pgx.Tx) error {
							key := fmt.Sprint("key-", w)
							if err := outbox.Lock(t.Context(), tx, topic, key); err != nil {
								return err
							}
							var events []stream.Event
							for i := range 1 + n%3 {
								e := stream.NewEvent("order.placed", key, stream.ContentTypeJSON, nil)
								e.ID = fmt.Sprintf("%s/%06d/%d", key, n, i)
								events = append(events, e)
							}
							return outbox.Publish(t.Context(), tx, topic, events...)
						})
						if err != nil {
							return err
						}
					}
					return nil
				})
			}
			require.NoError(t, g.Wait())
			want := 0
			for n := range rounds {
				want += writers * (1 + n%3)
			}
			var ids []string
			require.Eventually(t, func() bool {
				ids = ids[:0]
				for _, key := range topic.StreamKeys() {
					entries, err := rdb.XRange(t.Context(), key, "-", "+").Result()
					require.NoError(t, err)
					for _, entry := range entries {
						ids = append(ids, entry.Values["id"].(string))
					}
				}
				return len(ids) >= want
			}, time.Minute, 50*time.Millisecond)
			require.Len(t, ids, want)
			last := map[string]string{}
			for _, id := range ids {
				key, _, _ := strings.Cut(id, "/")
				require.Greater(t, id, last[key], "in order, and once")
				last[key] = id
			}
		})
	}
}

// running runs a component until the test ends.
func running(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
}
