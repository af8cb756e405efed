package command

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRedisURLsOfEveryForm(t *testing.T) {
	t.Parallel()
	escaped := url.UserPassword("me", canary).String()
	for _, c := range []struct {
		url, master string
		cluster     bool
		want        redisURL
		db          int
	}{
		{url: "redis://", want: redisURL{hosts: []string{"127.0.0.1:6379"}}},
		{url: "redis://host", want: redisURL{hosts: []string{"host:6379"}}},
		{url: "redis://host:7000/3", want: redisURL{hosts: []string{"host:7000"}}, db: 3},
		{url: "redis://host?db=4", want: redisURL{hosts: []string{"host:6379"}}, db: 4},
		{url: "redis://[::1]:7000", want: redisURL{hosts: []string{"[::1]:7000"}}},
		{url: "redis://[::1]", want: redisURL{hosts: []string{"[::1]:6379"}}},
		{url: "rediss://" + escaped + "@host", want: redisURL{tls: true, username: "me", password: canary, hosts: []string{"host:6379"}}},
		{url: "redis://:word@host", want: redisURL{password: "word", hosts: []string{"host:6379"}}},
		{url: "redis://me@host", want: redisURL{username: "me", hosts: []string{"host:6379"}}},
		{url: "redis://me:a@b@host", want: redisURL{username: "me", password: "a@b", hosts: []string{"host:6379"}}},
		{url: "redis+sentinel://a,b:7,[::1]:8/main/2", want: redisURL{form: formSentinel, hosts: []string{"a:26379", "b:7", "[::1]:8"}, master: "main"}, db: 2},
		{url: "rediss+sentinel://a/main", want: redisURL{form: formSentinel, tls: true, hosts: []string{"a:26379"}, master: "main"}},
		{url: "redis://a:1,b:2/5", master: "main", want: redisURL{form: formSentinel, hosts: []string{"a:1", "b:2"}, master: "main"}, db: 5},
		{url: "redis+cluster://a,b:7", want: redisURL{form: formCluster, hosts: []string{"a:6379", "b:7"}}},
		{url: "rediss://a,b:7/0", cluster: true, want: redisURL{form: formCluster, tls: true, hosts: []string{"a:6379", "b:7"}}},
		{url: "unix:///run/redis.sock", want: redisURL{form: formSocket, hosts: []string{"/run/redis.sock"}}},
		{url: "unix://me:word@/run/redis.sock?db=2", want: redisURL{form: formSocket, username: "me", password: "word", hosts: []string{"/run/redis.sock"}}, db: 2},
	} {
		got, err := parseRedisURL(c.url, c.master, c.cluster)
		require.NoError(t, err, c.url)
		require.Equal(t, c.db, got.options.DB, c.url)
		got.options = nil
		require.Equal(t, c.want, got, c.url)
	}
	got, err := parseRedisURL("redis+cluster://a?pool_size=3&read_timeout=7s", "", false)
	require.NoError(t, err)
	require.Equal(t, 3, got.options.PoolSize)
	require.Equal(t, 7*time.Second, got.options.ReadTimeout)
}

func TestWrongRedisURLsSayWhatIsWrongAndNeverThePassword(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		url, master string
		cluster     bool
		part        string
	}{
		{url: "", part: "no scheme"},
		{url: "localhost:6379", part: "no scheme"},
		{url: "me:" + canary + "@host", part: "no scheme"},
		{url: "http://me:" + canary + "@host", part: "scheme is none of"},
		{url: "redis+ring://host", part: "scheme is none of"},
		{url: "redis://me:" + canary + "@host", part: "must be escaped"},
		{url: "redis://me:pass/word@host", part: "must be escaped"},
		{url: "redis://me:100%@host", part: "%25"},
		{url: "redis://host:port", part: "host:port"},
		{url: "redis://host:0", part: "host:port"},
		{url: "redis://host:70000", part: "host:port"},
		{url: "redis://a:1:2", part: "host:port"},
		{url: "redis://[::1", part: "host:port"},
		{url: "redis://a,b", part: "several hosts"},
		{url: "redis://host/one", part: "database number"},
		{url: "redis://host/1/2", part: "database"},
		{url: "redis+cluster://host/1", part: "database"},
		{url: "redis+sentinel://host", part: "name of the master"},
		{url: "redis://host?pool_size=many", part: "pool_size"},
		{url: "redis://host?password=" + url.QueryEscape(canary), part: "unexpected option: password"},
		{url: "redis://host?skip_verify=true", part: "unexpected option: skip_verify"},
		{url: "unix://relative", part: "not absolute"},
		{url: "redis://host", master: "main", cluster: true, part: "different things"},
		{url: "unix:///run/redis.sock", cluster: true, part: "different things"},
		{url: "redis+cluster://host", master: "main", part: "different things"},
	} {
		_, err := parseRedisURL(c.url, c.master, c.cluster)
		require.ErrorContains(t, err, c.part, c.url)
		require.NotContains(t, err.Error(), "canary")
		require.NotContains(t, err.Error(), "\n")
	}
}

func FuzzRedisURL(f *testing.F) {
	for _, s := range []string{"redis://u:p@h:1/0", "redis+sentinel://u:p@a,b/m/1?pool_size=3", "unix://u:p@/s", "rediss://[::1]:6/", "redis://u:p%zz@h", "://@", "redis://?@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const secret = "Sup3rS3cret"
		if u, err := parseRedisURL(s, "", false); err == nil && (len(u.hosts) == 0 || u.options == nil) {
			t.Fatalf("%q: neither fault nor host", s)
		}
		// A password within the user's part stays there, whatever else is wrong.
		scheme, rest, found := strings.Cut(s, "://")
		if !found {
			return
		}
		if _, err := parseRedisURL(scheme+"://u:"+secret+"@"+rest, "", false); err != nil && strings.Contains(err.Error(), secret) {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

func config(t *testing.T, flags RedisFlags) (*RedisConfig, *Secrets, error) {
	t.Helper()
	s := &Secrets{}
	cfg, faults := flags.Config("prog", s)
	return cfg, s, errors.Join(faults...)
}
