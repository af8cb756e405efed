package command

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/streamkeel/streamkeel/internal/pgerr"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/migrations"
	"github.com/streamkeel/streamkeel/stream"
)

// StartFlags bound the start.
type StartFlags struct{ Timeout time.Duration }

// Register adds the flag, with its default.
func (s *StartFlags) Register(flags *pflag.FlagSet, timeout time.Duration) {
	flags.DurationVar(&s.Timeout, "start-timeout", timeout, "how long a server that is away at the start is waited for; later outages are always waited for")
}

// Validate returns the faults.
func (s *StartFlags) Validate() []error {
	if s.Timeout <= 0 {
		return []error{fmt.Errorf("--start-timeout %s must be more than 0", s.Timeout)}
	}
	return nil
}

const tryAgainAfter = 200 * time.Millisecond

// Patiently calls fn until it succeeds, fails for good, or the time is over.
func Patiently(ctx context.Context, timeout time.Duration, worthIt func(error) bool, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last error
	for {
		err := fn(ctx)
		if err == nil {
			return nil
		}
		// The last look was cut off by the end of time: the one before tells why.
		if last == nil || !errors.Is(err, context.DeadlineExceeded) {
			last = err
		}
		if !worthIt(err) || !redisx.Pause(ctx, tryAgainAfter) {
			return last
		}
	}
}

// CheckRedis waits for Redis and refuses one that cannot carry Streamkeel. The error is Unfit
// and says what to do.
func CheckRedis(ctx context.Context, cfg *RedisConfig, timeout time.Duration) error {
	rdb := cfg.openForCheck()
	defer func() { _ = rdb.Close() }() // nothing is in hand
	err := Patiently(ctx, timeout, redisx.IsUnavailable, func(ctx context.Context) error {
		cluster, ok := rdb.(*redis.ClusterClient)
		if !ok {
			return stream.CheckServer(ctx, rdb, cfg.evictable)
		}
		return cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
			return stream.CheckServer(ctx, node, cfg.evictable)
		})
	})
	return RedisFault(cfg, err)
}

// RedisFault makes an error of Redis one that says what to do, and Unfit.
func RedisFault(cfg *RedisConfig, err error) error {
	var hint string
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var unknown x509.UnknownAuthorityError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, stream.ErrUnsupportedServer):
		hint = "use a newer server"
	case errors.Is(err, stream.ErrEviction):
		hint = "CONFIG SET maxmemory-policy noeviction, or accept lost events with --allow-eviction"
	case errors.Is(err, stream.ErrLayout):
		hint = "use the version of Streamkeel that wrote it, or another --namespace"
	case redisx.IsAuth(err):
		hint = "check the user and password in --redis-url or --redis-password-file"
	case redisx.IsNoPerm(err):
		hint = "give the ACL user what docs/operations.md lists for this role"
	case errors.As(err, &unknown):
		hint = "name the authority with --redis-ca-file"
	case errors.As(err, &certificate):
		hint = "check --redis-ca-file and --redis-server-name"
	case errors.As(err, &record):
		hint = "this port speaks no TLS; use redis:// instead of rediss://"
	case isAlert(err):
		hint = "check --redis-cert-file and --redis-key-file: the server refuses the handshake"
	case redisx.IsUnavailable(err) && cfg.options.TLSConfig != nil:
		// A server that takes no client without a certificate of its own says so, but may close the connection before that is read.
		hint = "check --redis-url, that the server runs and speaks TLS at this port, and --redis-cert-file if it asks for a certificate"
	case redisx.IsUnavailable(err):
		hint = "check --redis-url, and that the server runs, and whether it wants TLS (rediss://)"
	default:
		hint = "check --redis-url"
	}
	return fault("Redis at "+cfg.Where(), err, hint)
}

// isAlert reports whether the other side has ended a TLS handshake with an alert.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// hinted is an error with what to do about it.
type hinted struct {
	text string
	err  error
}

func (h hinted) Error() string { return h.text }
func (h hinted) Unwrap() error { return h.err }

// fault says where an error comes from and what to do. That the server was being checked goes
// without saying.
func fault(where string, err error, hint string) error {
	text := strings.ReplaceAll(err.Error(), "stream: check Redis: ", "")
	if errors.Is(err, context.DeadlineExceeded) {
		text = "no answer in time"
	}
	return Unfit(hinted{where + ": " + text + "; " + hint, err})
}

const oldestPostgres = 140000

var (
	errOldPostgres = errors.New("unsupported server: Postgres")
	errMigrations  = errors.New("missing")
)

// CheckPostgres waits for Postgres and refuses one that is too old or lacks a migration of this
// version. The error is Unfit and says what to do.
func CheckPostgres(ctx context.Context, pool *pgxpool.Pool, tables migrations.Schema, timeout time.Duration) error {
	cfg := pool.Config()
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }() // only what wraps the pool
	if err := CheckDatabase(ctx, cfg, db, timeout); err != nil {
		return err
	}
	return PostgresFault(cfg, checkMigrations(ctx, tables, db))
}

// CheckDatabase waits for Postgres and refuses one that is too old. The error is Unfit and says
// what to do.
func CheckDatabase(ctx context.Context, cfg *pgxpool.Config, db *sql.DB, timeout time.Duration) error {
	err := Patiently(ctx, timeout, pgerr.IsUnavailable, func(ctx context.Context) error {
		var version int
		if err := db.QueryRowContext(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
			return err
		}
		if version < oldestPostgres {
			return fmt.Errorf("%w %d; Streamkeel needs 14 at least", errOldPostgres, version/10000)
		}
		return nil
	})
	return PostgresFault(cfg, err)
}

func checkMigrations(ctx context.Context, tables migrations.Schema, db *sql.DB) error {
	statuses, err := tables.Status(ctx, db)
	if err != nil {
		return err
	}
	var missing []string
	for _, s := range statuses {
		if s.AppliedAt.IsZero() {
			missing = append(missing, s.Name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%d migrations are %w, the first is %s", len(missing), errMigrations, missing[0])
	}
	return nil
}

const insufficientPrivilege = "42501"

// IsDenied reports whether Postgres said that the role lacks a right.
func IsDenied(err error) bool { return pgerr.Code(err) == insufficientPrivilege }

// PostgresFault makes an error of Postgres one that says what to do, and Unfit.
func PostgresFault(cfg *pgxpool.Config, err error) error {
	var hint string
	switch code := pgerr.Code(err); {
	case err == nil:
		return nil
	case errors.Is(err, errOldPostgres):
		hint = "use a newer server"
	case errors.Is(err, errMigrations), pgerr.IsNoTable(err):
		hint = "apply them: streamkeel migrate up --postgres-url …, with the same --schema"
	case code == "28P01", code == "28000":
		hint = "check the user and password in --postgres-url or --postgres-password-file"
	case code == "3D000":
		hint = "create the database, or name another in --postgres-url"
	case code == insufficientPrivilege:
		hint = "grant the role what docs/operations.md lists"
	case pgerr.IsUnavailable(err):
		hint = "check --postgres-url, and that the server runs"
	default:
		hint = "check --postgres-url"
	}
	return fault("Postgres at "+wherePostgres(cfg), err, hint)
}
