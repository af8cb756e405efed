package servers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// RedisConfig says how a Redis server runs. The zero value is a server that keeps nothing on disk.
type RedisConfig struct {
	// Dir is where the server keeps its files. The default is a new folder, which Close removes; a folder
	// named here must exist, is used with what is in it, and stays.
	Dir string

	// AppendOnly makes data survive Kill, Stop and Start (appendfsync everysec: but for what Redis puts off while the disk is
	// busy, which a Kill loses; always puts nothing off). Without it the server is
	// empty after each start.
	AppendOnly bool

	// ReplicaOf is the address (host:port) of the master that the server copies. A start does not wait
	// for the first copy. Default: it is a master.
	ReplicaOf string

	// Cluster makes it a node of a Redis Cluster, without slots: StartCluster makes whole clusters.
	Cluster bool

	// UnixSocket makes the server listen on a unix socket too: see Socket.
	UnixSocket bool

	// Quiet keeps everything below warnings out of the server's log.
	Quiet bool

	// Settings are further lines of redis.conf, directive and value as they stand there: strings that
	// need quotes come with them. They win over the fields above.
	Settings map[string]string
}

// Redis is a server that StartRedis started. Its methods may be called from several goroutines.
type Redis struct {
	process *process
	port    int
	socket  string
}

// StartRedis starts a Redis (or Valkey) server on a free port of 127.0.0.1, without a password. It
// returns once the server has loaded its data and answers PING; ctx bounds that wait (30 s without a
// deadline) and nothing else: the server runs until Close, or until this process ends.
//
// It fails with ErrNotInstalled where there is no program. After a failure nothing is left behind.
func StartRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	program, err := FindRedis()
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		r, err := newRedis(program, cfg)
		if err != nil {
			return nil, err
		}
		err = r.Start(ctx)
		if err == nil {
			return r, nil
		}
		taken := strings.Contains(r.Log(), "Address already in use")
		err = errors.Join(err, r.Close())
		if !taken || attempt == 5 {
			return nil, err
		}
	}
}

// newRedis makes the folder with its redis.conf, on a port that looks free.
func newRedis(program string, cfg RedisConfig) (_ *Redis, err error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p := &process{name: filepath.Base(program), program: program, orphan: syscall.SIGKILL}
	r := &Redis{process: p, port: port}
	remove := ""
	if p.folder = cfg.Dir; p.folder == "" {
		if p.folder, err = os.MkdirTemp("", "streamkeel-redis-"); err != nil {
			return nil, fmt.Errorf("servers: %w", err)
		}
		remove = p.folder
	}
	if p.folder, err = filepath.Abs(p.folder); err != nil {
		return nil, fmt.Errorf("servers: %w", err)
	}
	if cfg.UnixSocket {
		r.socket = filepath.Join(p.folder, "redis.sock")
	}
	if p.guard, err = startGuard("KILL", remove); err != nil {
		return nil, errors.Join(err, os.RemoveAll(remove))
	}
	config := filepath.Join(p.folder, "redis.conf")
	if err := os.WriteFile(config, []byte(r.config(cfg)), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("servers: %w", err), r.Close())
	}
	p.args = []string{config}
	return r, nil
}

// config returns the content of redis.conf.
func (r *Redis) config(cfg RedisConfig) string {
	yes := map[bool]string{true: "yes", false: "no"}
	lines := []string{
		"bind 127.0.0.1",
		"protected-mode yes",
		"port " + strconv.Itoa(r.port),
		"dir " + strconv.Quote(r.process.folder),
		"daemonize no",
		"save \"\"",
		"appendonly " + yes[cfg.AppendOnly],
		"appendfsync everysec",
		"repl-diskless-sync-delay 0", // a first replica is not made to wait for a second
		"cluster-enabled " + yes[cfg.Cluster],
	}
	if r.socket != "" {
		lines = append(lines, "unixsocket "+strconv.Quote(r.socket))
	}
	if cfg.ReplicaOf != "" {
		lines = append(lines, "replicaof "+strings.Replace(cfg.ReplicaOf, ":", " ", 1))
	}
	if cfg.Quiet {
		lines = append(lines, "loglevel warning")
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Settings)) {
		lines = append(lines, name+" "+cfg.Settings[name])
	}
	return strings.Join(lines, "\n") + "\n"
}

// Addr returns the server's address, host:port. It stays the same until Close.
func (r *Redis) Addr() string { return loopback(r.port) }

// URL returns the address as redis.ParseURL takes it, with database 0.
func (r *Redis) URL() string { return "redis://" + r.Addr() + "/0" }

// Socket returns the path of the unix socket, or "" without one.
func (r *Redis) Socket() string { return r.socket }

// Pid returns the server's process id, or 0 while it is down.
func (r *Redis) Pid() int { return r.process.pid() }

// Log returns the last lines of the server's log.
func (r *Redis) Log() string { return r.process.logTail() }

// Start starts the server again after Kill or Stop, on the same port and folder, and waits as
// StartRedis does. It fails if the server is running, or if somebody else took the port.
func (r *Redis) Start(ctx context.Context) error { return r.process.start(ctx, r.ping) }

// Kill ends the server as a crash would (SIGKILL), and returns when it is gone.
func (r *Redis) Kill() error { return r.process.end(syscall.SIGKILL) }

// Stop shuts the server down (SIGTERM), and returns when it is gone.
func (r *Redis) Stop() error { return r.process.end(syscall.SIGTERM) }

// Pause makes the server hang (SIGSTOP): connections stay open and are accepted, nothing is answered.
func (r *Redis) Pause() error { return r.process.signal(sigPause) }

// Resume lets a paused server go on. It then works off what arrived meanwhile.
func (r *Redis) Resume() error { return r.process.signal(sigResume) }

// Close kills the server and removes its folder, unless RedisConfig.Dir named it. A second call does nothing.
func (r *Redis) Close() error { return r.process.close(syscall.SIGKILL) }

// ping fails until the server answers PING, and until it is this one that answers: on a port that two
// servers wanted it could be the other.
func (r *Redis) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", r.Addr())
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	replies := bufio.NewReader(conn)
	if _, err := io.WriteString(conn, "PING\r\nINFO server\r\n"); err != nil {
		return err
	}
	pong, err := replies.ReadString('\n')
	if err != nil {
		return err
	}
	if isProtected(pong) {
		return nil // with a password from Settings nothing more can be seen
	}
	if !strings.HasPrefix(pong, "+PONG") {
		return errors.New(strings.TrimSpace(pong)) // -LOADING, mostly
	}
	for {
		line, err := replies.ReadString('\n')
		if err != nil {
			return err
		}
		if pid, found := strings.CutPrefix(line, "process_id:"); found {
			if strings.TrimSpace(pid) != strconv.Itoa(r.Pid()) {
				return fmt.Errorf("another server answers at %s", r.Addr())
			}
			return nil
		}
	}
}

func isProtected(reply string) bool {
	return strings.HasPrefix(reply, "-NOAUTH") || strings.HasPrefix(reply, "-NOPERM")
}
