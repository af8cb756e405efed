package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// PostgresConfig says how a Postgres server runs.
type PostgresConfig struct {
	// Durable makes commits survive a power cut, as in production (fsync and full_page_writes on). The
	// default is faster, and survives the end of the server, StopImmediate included, but not the machine's.
	Durable bool

	// Settings are parameters as in postgresql.conf, such as max_prepared_transactions: values come without
	// quotes. They win over the field above and over max_connections = 200.
	Settings map[string]string
}

// Postgres is a server that StartPostgres started. Its methods may be called from several goroutines.
type Postgres struct {
	process *process
	port    int
	data    string
}

// StartPostgres makes a new database cluster and starts a server on it, on a free port of 127.0.0.1. Its
// superuser is "streamkeel", let in without a password; it listens on no other address and on no
// unix socket. It returns once the server takes connections; ctx bounds that wait (30 s without a deadline) and
// nothing else: the server runs until Close, or until this process ends.
//
// Root starts it as the user postgres, or nobody, since Postgres refuses to run as root. It fails with
// ErrNotInstalled where there are no programs. After a failure nothing is left behind.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	bin, err := FindPostgres()
	if err != nil {
		return nil, err
	}
	p, err := initPostgres(ctx, bin)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		if err = p.configure(cfg); err == nil {
			err = p.Start(ctx)
		}
		if err == nil {
			return p, nil
		}
		taken := strings.Contains(p.Log(), "Address already in use")
		if !taken || attempt == 5 {
			return nil, errors.Join(err, p.Close())
		}
	}
}

// initPostgres makes the folder and runs initdb in it.
func initPostgres(ctx context.Context, bin string) (_ *Postgres, err error) {
	user, temp, err := unprivileged()
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp(temp, "streamkeel-postgres-")
	if err != nil {
		return nil, fmt.Errorf("servers: %w", err)
	}
	guard, err := startGuard("QUIT", folder)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	p := &Postgres{data: filepath.Join(folder, "data"), process: &process{
		name:    "postgres",
		program: filepath.Join(bin, "postgres"),
		env:     append(os.Environ(), "LC_ALL=C", "TZ=UTC"),
		user:    user,
		folder:  folder,
		guard:   guard,
		orphan:  syscall.SIGQUIT, // SIGKILL would leave shared memory behind
	}}
	p.process.args = []string{"-D", p.data}
	if user != nil {
		if err := os.Chown(folder, user.uid, user.gid); err != nil {
			return nil, errors.Join(fmt.Errorf("servers: %w", err), p.Close())
		}
	}
	if err := p.initdb(ctx, filepath.Join(bin, "initdb")); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Postgres) initdb(ctx context.Context, program string) error {
	cmd := exec.CommandContext(ctx, program, "-D", p.data, "--username=streamkeel", "--auth=trust",
		"--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
	cmd.Dir, cmd.Env = p.process.folder, p.process.env
	cmd.SysProcAttr = detached()
	endWithThread(cmd.SysProcAttr, syscall.SIGKILL)
	if p.process.user != nil {
		runAs(cmd.SysProcAttr, p.process.user)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("servers: initdb: %w\n%s", errors.Join(err, ctx.Err()), output)
	}
	return nil
}

// configure adds to postgresql.conf, where the last of several lines wins, with a port that looks free.
func (p *Postgres) configure(cfg PostgresConfig) (err error) {
	if p.port, err = freePort(); err != nil {
		return err
	}
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    fmt.Sprint(p.port),
		"unix_socket_directories": "",
		"max_connections":         "200",
		// In the server's folder, where it goes with the folder even if the server is killed.
		"dynamic_shared_memory_type": "mmap",
	}
	if !cfg.Durable {
		settings["fsync"], settings["full_page_writes"] = "off", "off"
	}
	maps.Copy(settings, cfg.Settings)
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&lines, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	file, err := os.OpenFile(filepath.Join(p.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	_, err = file.WriteString(lines.String())
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	return nil
}

// URL returns the address of the database "postgres", as pgx takes it. It stays the same until Close.
func (p *Postgres) URL() string {
	return "postgres://streamkeel@" + loopback(p.port) + "/postgres?sslmode=disable"
}

// Pid returns the process id of the server's first process, or 0 while it is down.
func (p *Postgres) Pid() int { return p.process.pid() }

// Log returns the last lines of the server's log.
func (p *Postgres) Log() string { return p.process.logTail() }

// Start starts the server again after Stop or StopImmediate, on the same port and data, and waits
// as StartPostgres does. It fails if the server is running, or if somebody else took the port.
func (p *Postgres) Start(ctx context.Context) error { return p.process.start(ctx, p.answer) }

// Stop shuts the server down (fast: connections are cut, transactions rolled back, data written), and
// returns when it is gone.
func (p *Postgres) Stop() error { return p.process.end(syscall.SIGINT) }

// StopImmediate ends the server as a crash would (immediate: nothing is written any more, and the next start
// recovers from the log), and returns when it is gone.
func (p *Postgres) StopImmediate() error { return p.process.end(syscall.SIGQUIT) }

// Close ends the server as StopImmediate does and removes its folder. A second call does nothing.
func (p *Postgres) Close() error { return p.process.close(syscall.SIGQUIT) }

// answer fails until the server takes connections, and until it is this one that does: on a port that
// two servers wanted it could be the other.
func (p *Postgres) answer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, p.URL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	result := conn.ExecParams(ctx, "SHOW data_directory", nil, nil, nil, nil).Read()
	if result.Err != nil {
		return result.Err
	}
	if len(result.Rows) != 1 || string(result.Rows[0][0]) != p.data {
		return fmt.Errorf("another server answers at %s", loopback(p.port))
	}
	return nil
}
