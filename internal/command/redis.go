package command

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"
)

// RedisFlags say how Redis is reached.
type RedisFlags struct {
	URL                                    string
	Username, PasswordFile                 string
	SentinelMaster                         string
	SentinelUsername, SentinelPasswordFile string
	Cluster                                bool
	CAFile, CertFile, KeyFile, ServerName  string
	AllowInsecure, AllowEviction           bool
}

// Register adds the flags.
func (r *RedisFlags) Register(flags *pflag.FlagSet) {
	flags.StringVar(&r.URL, "redis-url", "redis://127.0.0.1:6379/0", "`url` of Redis: "+redisURLForms+"; user and password stand before an @, go-redis's options (pool_size, read_timeout, …) behind a ?")
	flags.StringVar(&r.Username, "redis-username", "", "ACL `user`, where the URL names none")
	flags.StringVar(&r.PasswordFile, "redis-password-file", "", "`file` with the password, where the URL has none; read again for each connection")
	flags.StringVar(&r.SentinelMaster, "redis-sentinel-master", "", "`name` of the master, which makes the URL's hosts Sentinels")
	flags.StringVar(&r.SentinelUsername, "redis-sentinel-username", "", "ACL `user` at the Sentinels")
	flags.StringVar(&r.SentinelPasswordFile, "redis-sentinel-password-file", "", "`file` with the password at the Sentinels")
	flags.BoolVar(&r.Cluster, "redis-cluster", false, "the URL's hosts are nodes of a Redis Cluster")
	flags.StringVar(&r.CAFile, "redis-ca-file", "", "PEM `file` of the authorities that may sign the server's certificate, instead of the system's; needs rediss")
	flags.StringVar(&r.CertFile, "redis-cert-file", "", "PEM `file` of the client's certificate; read again for each connection, as its key is")
	flags.StringVar(&r.KeyFile, "redis-key-file", "", "PEM `file` of the client's key")
	flags.StringVar(&r.ServerName, "redis-server-name", "", "`name` in the server's certificate, where it is not the host's")
	flags.BoolVar(&r.AllowInsecure, "allow-insecure-redis", false, "send a password to other hosts without TLS")
}

// RegisterEviction adds the flag of programs that rely on what Redis holds.
func (r *RedisFlags) RegisterEviction(flags *pflag.FlagSet) {
	flags.BoolVar(&r.AllowEviction, "allow-eviction", false, "work on a Redis whose maxmemory-policy may evict streams, and so lose events")
}

// RedisConfig is how Redis is reached, checked.
type RedisConfig struct {
	options   *redis.UniversalOptions
	single    *redis.Options // for the network of a socket
	form      redisForm
	secrets   *Secrets
	evictable bool
	where     string
}

// Config checks the flags and returns what they say, or every fault. What is a secret is
// added to secrets.
func (r *RedisFlags) Config(program string, secrets *Secrets) (*RedisConfig, []error) {
	u, err := parseRedisURL(r.URL, r.SentinelMaster, r.Cluster)
	if err != nil {
		return nil, []error{fmt.Errorf("--redis-url: %w", err)}
	}
	secrets.Add(u.password)
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	o := universal(u, program)
	o.Username, o.Password = u.username, u.password
	if u.username == "" {
		o.Username = r.Username
	} else if r.Username != "" {
		fault("--redis-username and the URL name a user each")
	}
	hasPassword := u.password != ""
	if r.PasswordFile != "" {
		if hasPassword {
			fault("--redis-password-file and the URL give a password each")
		}
		hasPassword = true
		if _, err := readSecret(r.PasswordFile, secrets); err != nil {
			fault("--redis-password-file: %w", err)
		}
		username, file := o.Username, r.PasswordFile
		o.CredentialsProviderContext = func(context.Context) (string, string, error) {
			password, err := readSecret(file, secrets)
			return username, password, err
		}
	}
	o.SentinelUsername = r.SentinelUsername
	if r.SentinelPasswordFile != "" {
		if o.SentinelPassword, err = readSecret(r.SentinelPasswordFile, secrets); err != nil {
			fault("--redis-sentinel-password-file: %w", err)
		}
		hasPassword = true
	}
	if u.form != formSentinel && (r.SentinelUsername != "" || r.SentinelPasswordFile != "") {
		fault("--redis-sentinel-username and --redis-sentinel-password-file go with a Sentinel, which the URL does not name")
	}
	tlsConfig, tlsFaults := r.tls(u)
	faults = append(faults, tlsFaults...)
	o.TLSConfig = tlsConfig
	if hasPassword && !r.AllowInsecure {
		faults = append(faults, r.guard(u, o)...)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return &RedisConfig{options: o, single: u.options, form: u.form, secrets: secrets, evictable: r.AllowEviction, where: strings.Join(u.hosts, ", ")}, nil
}

// universal returns the options that the URL's parameters set.
func universal(u redisURL, program string) *redis.UniversalOptions {
	p := u.options
	return &redis.UniversalOptions{
		Addrs: u.hosts, MasterName: u.master, DB: p.DB, IdentitySuffix: program, Protocol: p.Protocol, ClientName: p.ClientName,
		MaxRetries: p.MaxRetries, MinRetryBackoff: p.MinRetryBackoff, MaxRetryBackoff: p.MaxRetryBackoff,
		DialTimeout: p.DialTimeout, ReadTimeout: p.ReadTimeout, WriteTimeout: p.WriteTimeout, ContextTimeoutEnabled: true,
		PipelinePoolSize: p.PipelinePoolSize, PipelineReadBufferSize: p.PipelineReadBufferSize, PipelineWriteBufferSize: p.PipelineWriteBufferSize,
		PoolFIFO: p.PoolFIFO, PoolSize: p.PoolSize, PoolTimeout: p.PoolTimeout, MinIdleConns: p.MinIdleConns, MaxIdleConns: p.MaxIdleConns,
		MaxActiveConns: p.MaxActiveConns, MaxConcurrentDials: p.MaxConcurrentDials,
		ConnMaxIdleTime: p.ConnMaxIdleTime, ConnMaxLifetime: p.ConnMaxLifetime, ConnMaxLifetimeJitter: p.ConnMaxLifetimeJitter,
	}
}

// readSecret reads a secret's file, without the line's end that editors add.
func readSecret(file string, secrets *Secrets) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(content), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	secrets.Add(secret)
	return secret, nil
}

// tls returns the TLS config of a rediss URL, and nil for the others.
func (r *RedisFlags) tls(u redisURL) (*tls.Config, []error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !u.tls {
		for _, f := range []struct{ flag, value string }{
			{"--redis-ca-file", r.CAFile}, {"--redis-cert-file", r.CertFile}, {"--redis-key-file", r.KeyFile}, {"--redis-server-name", r.ServerName},
		} {
			if f.value != "" {
				fault("%s needs TLS: a URL that starts with rediss", f.flag)
			}
		}
		return nil, faults
	}
	// The name to check is that of each server's address, unless one is given.
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: r.ServerName}
	if r.CAFile != "" {
		pem, err := os.ReadFile(r.CAFile)
		c.RootCAs = x509.NewCertPool()
		if err != nil {
			fault("--redis-ca-file: %w", err)
		} else if !c.RootCAs.AppendCertsFromPEM(pem) {
			fault("--redis-ca-file: %s holds no PEM certificate", r.CAFile)
		}
	}
	if (r.CertFile == "") != (r.KeyFile == "") {
		fault("--redis-cert-file and --redis-key-file go together")
	} else if r.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(r.CertFile, r.KeyFile); err != nil {
			fault("--redis-cert-file and --redis-key-file: %w", err)
		}
		certFile, keyFile := r.CertFile, r.KeyFile
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(certFile, keyFile)
			return &pair, err
		}
	}
	return c, faults
}

// guard refuses to send a password where it could be read on the way: to the URL's hosts, and
// to those that a Sentinel or a Cluster names later.
func (r *RedisFlags) guard(u redisURL, o *redis.UniversalOptions) []error {
	if u.tls || u.form == formSocket {
		return nil
	}
	for _, addr := range u.hosts {
		if !isLoopback(addr) {
			return []error{fmt.Errorf("--redis-url: a password would travel to %s without TLS; use a URL that starts with rediss, or accept it with --allow-insecure-redis", addr)}
		}
	}
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: time.Minute}
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if network != "unix" && !isLoopback(addr) {
			return nil, fmt.Errorf("a password would travel to %s without TLS; use a URL that starts with rediss, or accept it with --allow-insecure-redis", addr)
		}
		return dialer.DialContext(ctx, network, addr)
	}
	return nil
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || (ip != nil && ip.IsLoopback())
}

// Open returns a client; nothing is sent yet. The caller closes it.
func (c *RedisConfig) Open() redis.UniversalClient { return c.open(*c.options) }

// openForCheck returns a client that tries nothing again: what went wrong first is told.
func (c *RedisConfig) openForCheck() redis.UniversalClient {
	o := *c.options
	o.DialerRetries, o.MaxRetries, o.MinIdleConns = 1, -1, 0
	return c.open(o)
}

func (c *RedisConfig) open(o redis.UniversalOptions) redis.UniversalClient {
	switch c.form {
	case formSentinel:
		return redis.NewFailoverClient(o.Failover())
	case formCluster:
		return redis.NewClusterClient(o.Cluster())
	}
	simple := o.Simple()
	simple.Network = c.single.Network
	return redis.NewClient(simple)
}

// Where returns the addresses, for messages.
func (c *RedisConfig) Where() string { return c.where }
