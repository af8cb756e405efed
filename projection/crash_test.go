package projection_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/projection"
	"github.com/streamkeel/streamkeel/stream"
)

// The variables by which a test hands a child process its work, and where it is to die.
const (
	childVar    = "STREAMKEEL_PROJECTION_CHILD"
	postgresVar = "STREAMKEEL_PROJECTION_POSTGRES"
	redisVar    = "STREAMKEEL_PROJECTION_REDIS"
	topicVar    = "STREAMKEEL_PROJECTION_NAMESPACE"
)

func die() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }

// childMain runs a projection that kills its process at the named point, in its third
// transaction.
func childMain() {
	ctx := context.Background()
	point := os.Getenv(childVar)
	fail := func(err error) { fmt.Fprintln(os.Stderr, err); os.Exit(3) }
	time.AfterFunc(time.Minute, func() { fail(errors.New("the child never came to where it is to die")) })
	pool, err := pgxpool.New(ctx, os.Getenv(postgresVar))
	if err != nil {
		fail(err)
	}
	opts, err := redis.ParseURL(os.Getenv(redisVar))
	if err != nil {
		fail(err)
	}
	rdb := redis.NewClient(opts)
	applied := 0
	rdb.AddHook(dieAtHold(func() bool { return point == "before hold" && applied == 3 }))
	r, err := projection.NewRunner(pool, rdb, projection.Config{
		Name: projectionName, Topics: topics(stream.Topic{Name: "orders", Namespace: os.Getenv(topicVar), Partitions: 2}), BatchSize: 4,
		Apply: func(ctx context.Context, tx pgx.Tx, events []stream.Event) error {
			applied++
			if err := record(ctx, tx, events); err != nil {
				return err
			}
			if applied == 3 && point == "before commit" {
				die()
			}
			return nil
		},
	})
	if err != nil {
		fail(err)
	}
	fail(r.Run(ctx))
}

// dieAtHold dies when a pipeline of nothing but scripts goes out: after a commit it is the one
// that moves the groups.
type dieAtHold func() bool

func (d dieAtHold) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d dieAtHold) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (d dieAtHold) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() == "evalsha" && d() {
			die()
		}
		return next(ctx, cmds)
	}
}

func TestKilledRunnerLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"before commit", "before hold"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, 2)
			w.addDirect(0, numbered("a", 1, 20)...)
			w.addDirect(1, numbered("b", 1, 20)...)
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), childVar+"="+point, postgresVar+"="+testenv.PostgresURL(t),
				redisVar+"="+testenv.RedisURL(t), topicVar+"="+w.topic.Namespace)
			output, err := child.CombinedOutput()
			require.ErrorContains(t, err, "signal: killed", "%s", output)
			require.Len(t, w.ledger(), map[string]int{"before commit": 8, "before hold": 12}[point])

			w.drain(w.runner())
			require.ElementsMatch(t, append(numbered("a", 1, 20), numbered("b", 1, 20)...), w.ledger())
			inOrder(t, w, 2)
			require.EqualValues(t, 0, w.group(0).Lag)
		})
	}
}

type netConn = net.Conn

func topics(t ...stream.Topic) []stream.Topic { return t }

func id(ms int) string { return fmt.Sprintf("%d-0", ms) }

func mustID(t *testing.T, text string) stream.ID {
	t.Helper()
	id, err := stream.ParseID(text)
	require.NoError(t, err)
	return id
}
