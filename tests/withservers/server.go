package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"

	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
	tcpostgres "github.com/testcontainers/testcontainers-go/modules/postgres"
	tcredis "github.com/testcontainers/testcontainers-go/modules/redis"

	"github.com/streamkeel/streamkeel/internal/servers"
)

// server is one of the servers that tests need, and all the ways to have it.
type server struct {
	name           string
	variable       string // for the address
	folderVariable string // for the folder of the programs
	imageVariable  string
	image          string   // unless the variable names another
	packages       []string // Debian's

	find    func() error // fails with servers.ErrNotInstalled
	start   func(context.Context) (running, error)
	contain func(ctx context.Context, image string) (running, error)
}

func (s server) imageName(w world) string { return cmp.Or(w.getenv(s.imageVariable), s.image) }

// running is a server that can be used.
type running struct {
	what  string // for people; "" if there is nothing to say
	url   string
	close func(context.Context) error // nil if it was not started here
}

// Each test has a pool of its own, and many run at once on a large machine.
const maxConnections = "1000"

const ryukVariable = "TESTCONTAINERS_RYUK_DISABLED"

// machine is the world as it is.
type machine struct{ stderr io.Writer }

func newWorld(stderr io.Writer) world {
	tclog.SetDefault(tclog.NewNoopLogger()) // errors say enough
	return machine{stderr}
}

func (machine) getenv(name string) string { return os.Getenv(name) }

func (machine) servers() []server {
	return []server{
		{
			name:           "redis",
			variable:       "STREAMKEEL_TEST_REDIS_URL",
			folderVariable: "REDIS_BIN_DIR",
			imageVariable:  "STREAMKEEL_TEST_REDIS_IMAGE",
			image:          "redis:8",
			packages:       []string{"redis-server"},
			find:           func() error { _, err := servers.FindRedis(); return err },
			start: func(ctx context.Context) (running, error) {
				r, err := servers.StartRedis(ctx, servers.RedisConfig{Quiet: true})
				if err != nil {
					return running{}, err
				}
				return running{url: r.URL(), close: func(context.Context) error { return r.Close() }}, nil
			},
			contain: containRedis,
		},
		{
			name:           "postgres",
			variable:       "STREAMKEEL_TEST_POSTGRES_URL",
			folderVariable: "POSTGRES_BIN_DIR",
			imageVariable:  "STREAMKEEL_TEST_POSTGRES_IMAGE",
			image:          "postgres:18",
			packages:       []string{"postgresql", "pgbouncer"}, // which a test puts before it
			find:           func() error { _, err := servers.FindPostgres(); return err },
			start: func(ctx context.Context) (running, error) {
				p, err := servers.StartPostgres(ctx, servers.PostgresConfig{
					Settings: map[string]string{"max_connections": maxConnections},
				})
				if err != nil {
					return running{}, err
				}
				return running{url: p.URL(), close: func(context.Context) error { return p.Close() }}, nil
			},
			contain: containPostgres,
		},
	}
}

func (machine) image(ctx context.Context, name string) error {
	// Ryuk, a container of testcontainers' that removes the others if this process is killed, has an image of its
	// own, which would be pulled where it is missing.
	if _, decided := os.LookupEnv(ryukVariable); !decided {
		if err := os.Setenv(ryukVariable, "true"); err != nil {
			return err
		}
	}
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return err
	}
	defer docker.Close()
	_, err = docker.ImageInspect(ctx, name)
	return err
}

func containRedis(ctx context.Context, image string) (running, error) {
	c, err := tcredis.Run(ctx, image, testcontainers.WithCmdArgs("--save", ""))
	return contained(ctx, c, err, func() (string, error) { return c.ConnectionString(ctx) })
}

func containPostgres(ctx context.Context, image string) (running, error) {
	c, err := tcpostgres.Run(ctx, image,
		tcpostgres.WithUsername("streamkeel"),
		tcpostgres.WithPassword("streamkeel"),
		tcpostgres.WithDatabase("postgres"),
		tcpostgres.BasicWaitStrategies(),
		testcontainers.WithCmdArgs("-c", "full_page_writes=off", "-c", "max_connections="+maxConnections,
			"-c", "dynamic_shared_memory_type=mmap"), // a container's /dev/shm is small
	)
	return contained(ctx, c, err, func() (string, error) { return c.ConnectionString(ctx, "sslmode=disable") })
}

// contained wraps a container, which may be there also if its start failed.
func contained(ctx context.Context, c testcontainers.Container, err error, url func() (string, error)) (running, error) {
	remove := func(context.Context) error { return testcontainers.TerminateContainer(c) }
	if err != nil {
		return running{}, errors.Join(err, remove(ctx))
	}
	address, err := url()
	if err != nil {
		return running{}, errors.Join(err, remove(ctx))
	}
	return running{url: address, close: remove}, nil
}
