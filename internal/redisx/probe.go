package redisx

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrUnsupported says that the server, or the kind of client, cannot carry Streamkeel.
	ErrUnsupported = errors.New("unsupported server")
	// ErrEviction says that the server may evict streams when its memory is full.
	ErrEviction = errors.New("evicting maxmemory-policy")
)

// Server is what a server says of itself. Fields that the ACL user may not read stay empty.
type Server struct {
	Name      string // redis or valkey
	Version   string
	RunID     string // changes with every start of the server
	MaxPolicy string // maxmemory-policy
	Loading   bool
}

// Probe asks the server that holds key what it is. Where the user may not run INFO,
// HELLO answers for the version.
func Probe(ctx context.Context, rdb redis.UniversalClient, key string) (Server, error) {
	if _, ok := rdb.(*redis.Ring); ok {
		return Server{}, fmt.Errorf("%w: redis.Ring spreads keys by hash and moves them when a node goes away; use a Client, FailoverClient or ClusterClient", ErrUnsupported)
	}
	node, err := NodeFor(ctx, rdb, key)
	if err != nil {
		return Server{}, err
	}
	info, err := node.Info(ctx, "server", "memory", "persistence").Result()
	if IsNoPerm(err) {
		return probeHello(ctx, node)
	}
	if err != nil {
		return Server{}, err
	}
	fields := parseInfo(info)
	s := Server{Name: "redis", Version: fields["redis_version"], RunID: fields["run_id"], MaxPolicy: fields["maxmemory_policy"], Loading: fields["loading"] == "1"}
	if v := fields["valkey_version"]; v != "" {
		s.Name, s.Version = "valkey", v
	}
	return s, nil
}

func probeHello(ctx context.Context, node redis.UniversalClient) (Server, error) {
	hello, err := node.Do(ctx, "hello").Result()
	if err != nil {
		return Server{}, err
	}
	s := Server{}
	put := func(k, v any) {
		switch k {
		case "server":
			s.Name, _ = v.(string)
		case "version":
			s.Version, _ = v.(string)
		}
	}
	switch reply := hello.(type) {
	case map[any]any:
		for k, v := range reply {
			put(k, v)
		}
	case []any:
		for i := 0; i+1 < len(reply); i += 2 {
			put(reply[i], reply[i+1])
		}
	}
	return s, nil
}

// Check refuses a server that is too old (Redis before 7.0.5, Valkey before 7.2),
// and one that may evict keys unless allowEviction.
func (s Server) Check(allowEviction bool) error {
	least := map[string][3]int{"redis": {7, 0, 5}, "valkey": {7, 2, 0}}[s.Name]
	if s.Version == "" || s.Name == "" {
		return fmt.Errorf("%w: it does not tell its version", ErrUnsupported)
	}
	if have := parseVersion(s.Version); less(have, least) {
		return fmt.Errorf("%w: %s %s; Streamkeel needs Redis 7.0.5 or Valkey 7.2 at least", ErrUnsupported, s.Name, s.Version)
	}
	if !allowEviction && s.MaxPolicy != "" && s.MaxPolicy != "noeviction" {
		return fmt.Errorf("%w: maxmemory-policy is %s, which may evict streams; set it to noeviction (or allow it with AllowEviction)", ErrEviction, s.MaxPolicy)
	}
	return nil
}

// AtLeast reports whether the server has the commands of Redis major.minor, as far as
// Valkey has them too: for what came before 8.
func (s Server) AtLeast(major, minor int) bool {
	return !less(parseVersion(s.Version), [3]int{major, minor, 0})
}

func parseInfo(info string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

func parseVersion(v string) (version [3]int) {
	for i, part := range strings.SplitN(v, ".", 3) {
		digits := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if digits < 0 {
			digits = len(part)
		}
		version[i], _ = strconv.Atoi(part[:digits])
	}
	return version
}

func less(a, b [3]int) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}
