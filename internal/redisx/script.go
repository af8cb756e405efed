package redisx

import (
	"context"
	"crypto/sha1" // the digest that EVALSHA wants
	_ "embed"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Script is a Lua script with a constant text. It is called by digest, and by text
// where the server does not know the digest yet.
type Script struct {
	text   string
	digest string
}

//go:embed lib.lua
var lib string

// NewScript returns the script with this text. A text without a shebang of its own
// settles deliveries, and stands behind lib.lua.
func NewScript(text string) *Script {
	if !strings.HasPrefix(text, "#!") {
		text = lib + text
	}
	sum := sha1.Sum([]byte(text))
	return &Script{text: text, digest: hex.EncodeToString(sum[:])}
}

// Run calls the script, at most once: after an ambiguous error the caller decides.
func (s *Script) Run(ctx context.Context, rdb redis.UniversalClient, keys []string, args ...any) *redis.Cmd {
	cmd := Do(ctx, rdb, s.args(false, keys, args)...)
	if IsNoScript(cmd.Err()) {
		cmd = Do(ctx, rdb, s.args(true, keys, args)...)
	}
	return cmd
}

// Raw is Run with the reply as the server wrote it.
func (s *Script) Raw(ctx context.Context, rdb redis.UniversalClient, keys []string, args ...any) (Reply, error) {
	reply, err := Raw(ctx, rdb, s.args(false, keys, args)...)
	if IsNoScript(err) {
		return Raw(ctx, rdb, s.args(true, keys, args)...)
	}
	return reply, err
}

// NewCmd returns a call for a pipeline, by digest or by text. Where the reply is NOSCRIPT nothing
// was done, and the caller sends it again by text.
func (s *Script) NewCmd(ctx context.Context, text bool, keys []string, args ...any) (redis.Cmder, *redis.Cmd) {
	return NewCmd(ctx, s.args(text, keys, args)...)
}

// NewLateCmd is NewCmd with arguments that are made as the pipeline is written: the server has
// its first calls while those of the later ones are made. add appends them, the same ones each
// time.
func (s *Script) NewLateCmd(ctx context.Context, text bool, keys []string, add func(args []any) []any) (redis.Cmder, *redis.Cmd) {
	head := s.args(text, keys, nil)
	_, cmd := NewCmd(ctx, head...)
	return late{once{cmd}, func() []any { return add(slices.Clip(head)) }}, cmd
}

// late is a command that holds its keys, by which it finds its way, and not its other arguments.
type late struct {
	once
	args func() []any
}

func (l late) Args() []any { return l.args() }

func (s *Script) args(text bool, keys []string, args []any) []any {
	all := make([]any, 0, 3+len(keys)+len(args))
	if text {
		all = append(all, "eval", s.text, len(keys))
	} else {
		all = append(all, "evalsha", s.digest, len(keys))
	}
	for _, key := range keys {
		all = append(all, key)
	}
	return append(all, args...)
}

// NodeFor returns the client of the server that holds key: rdb itself, or the
// master of the key's slot on a Cluster.
func NodeFor(ctx context.Context, rdb redis.UniversalClient, key string) (redis.UniversalClient, error) {
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		return cluster.MasterForKey(ctx, key)
	}
	return rdb, nil
}

// IsCluster reports whether keys of rdb live in slots.
func IsCluster(rdb redis.UniversalClient) bool {
	_, ok := rdb.(*redis.ClusterClient)
	return ok
}

// Pause waits for d, or until ctx ends; it reports whether the whole of d passed.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
