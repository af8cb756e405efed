package demo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// site is where the demo takes place: servers of its own, or a database and a namespace of
// its own on those that it was told to use.
type site struct {
	redisURL, postgresURL, namespace string

	redis   *servers.Redis // nil where it is somebody else's
	cleanup []func() error // in reverse order
}

func openSite(ctx context.Context, cfg Config, say func(string, ...any)) (_ *site, err error) {
	var suffix [4]byte
	if _, err := rand.Read(suffix[:]); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	s := &site{redisURL: cfg.RedisURL, postgresURL: cfg.PostgresURL, namespace: "demo-" + hex.EncodeToString(suffix[:])}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if cfg.RedisURL == "" {
		// A kill of the process loses nothing with everysec: what was answered is in the kernel.
		if s.redis, err = servers.StartRedis(ctx, servers.RedisConfig{AppendOnly: true, Quiet: true}); err != nil {
			return s, err
		}
		s.cleanup = append(s.cleanup, s.redis.Close)
		s.redisURL = s.redis.URL()
	} else {
		s.cleanup = append(s.cleanup, func() error { return s.deleteKeys(context.WithoutCancel(ctx)) })
	}
	if cfg.PostgresURL == "" {
		postgres, err := servers.StartPostgres(ctx, servers.PostgresConfig{Settings: map[string]string{"shared_buffers": "256MB", "max_wal_size": "4GB", "jit": "off"}})
		if err != nil {
			return s, err
		}
		s.cleanup = append(s.cleanup, postgres.Close)
		s.postgresURL = postgres.URL()
		say("servers of its own, for this run only: Redis with an append-only file, Postgres without fsync")
		return s, nil
	}
	say("the servers that STREAMKEEL_TEST_REDIS_URL and STREAMKEEL_TEST_POSTGRES_URL name; Redis is not restarted")
	return s, s.makeDatabase(ctx)
}

func (s *site) makeDatabase(ctx context.Context) error {
	u, err := url.Parse(s.postgresURL)
	if err != nil {
		return fmt.Errorf("demo: the address of Postgres must be a URL (postgres://)") //nolint:err113 // without the URL: it may hold a password
	}
	server, name := s.postgresURL, "streamkeel_"+s.namespace[len("demo-"):]
	run := func(ctx context.Context, sql string) error {
		conn, err := pgx.Connect(ctx, server)
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		defer func() { _ = conn.Close(ctx) }()
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("demo: make or drop its database: %w", err)
		}
		return nil
	}
	quoted := pgx.Identifier{name}.Sanitize()
	if err := run(ctx, "CREATE DATABASE "+quoted); err != nil {
		return err
	}
	s.cleanup = append(s.cleanup, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		return run(ctx, "DROP DATABASE "+quoted+" WITH (FORCE)")
	})
	u.Path = "/" + name
	s.postgresURL = u.String()
	return nil
}

const cleanupTimeout = 20 * time.Second

// deleteKeys removes everything that the demo wrote to a Redis that is not its own.
func (s *site) deleteKeys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	opts, err := redis.ParseURL(s.redisURL)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	rdb := redis.NewClient(opts)
	defer func() { _ = rdb.Close() }()
	t := topicsIn(s.namespace)
	keys := []string{s.namespace + ":$topics", s.namespace + ":$layout"}
	for _, topic := range []stream.Topic{t.webhooks, t.orders} {
		keys = append(keys, s.namespace+":$groups:"+topic.Name)
		for _, key := range topic.StreamKeys() {
			keys = append(keys, key, stream.KeyRelay.Key(key, ""))
			for _, group := range []string{groupActivity, groupNotify, groupShop} {
				k := pel.KeysOf(key, group)
				keys = append(keys, k.Retry, k.Due, k.Dead, k.Members, k.Hash)
			}
		}
	}
	for _, key := range keys {
		if err := rdb.Unlink(ctx, key).Err(); err != nil {
			return fmt.Errorf("demo: remove its keys: %w", err)
		}
	}
	return nil
}

// close ends and removes what belongs to the demo.
func (s *site) close() error {
	var failed error
	for i := len(s.cleanup) - 1; i >= 0; i-- {
		failed = errors.Join(failed, s.cleanup[i]())
	}
	s.cleanup = nil
	return failed
}
