package command

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// redisForm is how the servers of a URL are found.
type redisForm string

const (
	formServer   redisForm = ""
	formSentinel redisForm = "sentinel"
	formCluster  redisForm = "cluster"
	formSocket   redisForm = "unix"
)

// redisURL is a Redis URL taken apart. Its parts that are no secret may be printed.
type redisURL struct {
	form               redisForm
	tls                bool
	username, password string
	hosts              []string // host:port
	master             string   // with Sentinel
	options            *redis.Options
}

const redisURLForms = "redis://host:6379/0, rediss://… with TLS, redis+sentinel://host:26379,host:26379/master/0, redis+cluster://host:6379,host:6379, unix:///path/to/socket"

// parseRedisURL reads a URL. It is not left to url.Parse, whose errors quote the password and
// which takes no lists of hosts; no error of this function quotes anything of the user's part.
// A plain URL becomes one of Sentinel by the name of a master, and one of a Cluster by cluster.
func parseRedisURL(s, master string, cluster bool) (redisURL, error) {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		return redisURL{}, fmt.Errorf("it has no scheme; forms are %s", redisURLForms)
	}
	u := redisURL{master: master}
	if scheme != "unix" {
		base, form, _ := strings.Cut(scheme, "+")
		u.tls, u.form = base == "rediss", redisForm(form)
		if base != "redis" && base != "rediss" || form != "" && u.form != formSentinel && u.form != formCluster {
			return redisURL{}, errors.New("its scheme is none of redis, rediss, redis+sentinel, rediss+sentinel, redis+cluster, rediss+cluster, unix")
		}
	} else {
		u.form = formSocket
	}
	if u.form == formServer && master != "" {
		u.form = formSentinel
	} else if u.form == formServer && cluster {
		u.form = formCluster
	}
	if (master != "" && u.form != formSentinel) || (cluster && u.form != formCluster) {
		return redisURL{}, errors.New("its scheme, --redis-sentinel-master and --redis-cluster say different things")
	}
	authority, path, query := splitURL(rest)
	if strings.Contains(path+query, "@") && !strings.Contains(authority, "@") {
		return redisURL{}, errors.New(`a character of the password must be escaped: / ? # as %2F %3F %23`)
	}
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		var err error
		if u.username, u.password, err = userInfo(authority[:at]); err != nil {
			return redisURL{}, err
		}
		authority = authority[at+1:]
	}
	if u.form == formSocket {
		return u.socket(authority+path, query)
	}
	if err := u.setHosts(authority); err != nil {
		return redisURL{}, err
	}
	return u.setPath(path, query)
}

// splitURL takes apart what follows the scheme.
func splitURL(rest string) (authority, path, query string) {
	rest, query, _ = strings.Cut(rest, "?")
	if slash := strings.IndexByte(rest, '/'); slash >= 0 {
		return rest[:slash], rest[slash:], query
	}
	return rest, "", query
}

func userInfo(s string) (username, password string, err error) {
	name, word, _ := strings.Cut(s, ":")
	username, nameErr := url.PathUnescape(name)
	password, wordErr := url.PathUnescape(word)
	if nameErr != nil || wordErr != nil {
		return "", "", errors.New("a % in the user or the password starts no escape: write it as %25")
	}
	return username, password, nil
}

func (u *redisURL) setHosts(list string) error {
	port := "6379"
	if u.form == formSentinel {
		port = "26379"
	}
	for _, one := range strings.Split(list, ",") {
		host, p, err := net.SplitHostPort(one)
		if err != nil { // no port
			host, p = one, port
			if strings.HasPrefix(one, "[") && strings.HasSuffix(one, "]") {
				host = one[1 : len(one)-1]
			}
			if (strings.Contains(host, ":") && net.ParseIP(host) == nil) || strings.ContainsAny(host, "[]") {
				return fmt.Errorf("%.100q is no host:port", one)
			}
		}
		if host == "" {
			host = "127.0.0.1"
		}
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 || strings.ContainsAny(host, " @") {
			return fmt.Errorf("%.100q is no host:port", one)
		}
		u.hosts = append(u.hosts, net.JoinHostPort(host, p))
	}
	if u.form == formServer && len(u.hosts) > 1 {
		return errors.New("it names several hosts; the scheme is then redis+sentinel or redis+cluster")
	}
	return nil
}

// setPath reads the database, and the name of the master with Sentinel, and the parameters.
func (u redisURL) setPath(path, query string) (redisURL, error) {
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	if u.form == formSentinel && u.master == "" {
		if len(parts) == 0 {
			return redisURL{}, errors.New("the name of the master is missing: redis+sentinel://host:26379/name")
		}
		u.master, parts = parts[0], parts[1:]
	}
	database := ""
	switch {
	case len(parts) > 1, len(parts) == 1 && u.form == formCluster && parts[0] != "0":
		return redisURL{}, errors.New("its path is more than the number of a database (a cluster has only 0)")
	case len(parts) == 1:
		database = "/" + parts[0]
	}
	return u.setOptions("redis://127.0.0.1:6379"+database, query)
}

func (u redisURL) socket(path, query string) (redisURL, error) {
	if !strings.HasPrefix(path, "/") {
		return redisURL{}, errors.New("the path of the socket is not absolute: unix:///run/redis.sock")
	}
	u.hosts = []string{path}
	return u.setOptions("unix://"+path, query)
}

// setOptions has go-redis read the parameters, from a URL that holds no user.
func (u redisURL) setOptions(bare, query string) (redisURL, error) {
	if query != "" {
		bare += "?" + query
	}
	options, err := redis.ParseURL(bare)
	var syntax *url.Error
	if errors.As(err, &syntax) {
		err = syntax.Err
	}
	if err != nil {
		return redisURL{}, errors.New(strings.TrimPrefix(err.Error(), "redis: "))
	}
	u.options = options
	return u, nil
}
