package redisx

import (
	"context"
	"crypto/sha1" // the digest that EVALSHA wants
	_ "embed"
	"encoding/hex"
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
	cmd := Do(ctx, rdb, s.args("evalsha", s.digest, keys, args)...)
	if IsNoScript(cmd.Err()) {
		cmd = Do(ctx, rdb, s.args("eval", s.text, keys, args)...)
	}
	return cmd
}

// Raw is Run with the reply as the server wrote it.
func (s *Script) Raw(ctx context.Context, rdb redis.UniversalClient, keys []string, args ...any) (Reply, error) {
	reply, err := Raw(ctx, rdb, s.args("evalsha", s.digest, keys, args)...)
	if IsNoScript(err) {
		return Raw(ctx, rdb, s.args("eval", s.text, keys, args)...)
	}
	return reply, err
}

// NewCmd returns the call by digest for a pipeline. Where the reply is NOSCRIPT nothing was
// done, and the caller sends it again with NewTextCmd.
func (s *Script) NewCmd(ctx context.Context, keys []string, args ...any) (redis.Cmder, *redis.Cmd) {
	return NewCmd(ctx, s.args("evalsha", s.digest, keys, args)...)
}

// NewTextCmd is NewCmd for a server that does not know the script.
func (s *Script) NewTextCmd(ctx context.Context, keys []string, args ...any) (redis.Cmder, *redis.Cmd) {
	return NewCmd(ctx, s.args("eval", s.text, keys, args)...)
}

func (s *Script) args(command, script string, keys []string, args []any) []any {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, command, script, len(keys))
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
