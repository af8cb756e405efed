package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/streamkeel/streamkeel/internal/servers"
)

// children are the processes of a run: as in production nothing works within the one that
// publishes, except where a broken relay takes the place of the real ones.
type children struct {
	d       *Demo
	relays  []*servers.Program
	workers []*servers.Program
	all     []*servers.Program

	stopNaive func()
}

const (
	relays  = 2
	workers = 3
)

func newChildren(d *Demo) *children { return &children{d: d, stopNaive: func() {}} }

func (c *children) startAll(ctx context.Context) error {
	c.d.say("start %d outbox-relay, 1 reclaimer and %d workers", relays, workers)
	redisURL, postgresURL := "STREAMKEEL_REDIS_URL="+c.d.site.redisURL, "STREAMKEEL_POSTGRES_URL="+c.d.site.postgresURL
	if c.d.cfg.Break == BreakRelayBySeq {
		c.stopNaive = c.d.relayBySequence(ctx)
	} else {
		for i := range relays {
			p, err := c.start(relayName(i), filepath.Join(c.d.cfg.Bin, "outbox-relay"+exe), []string{redisURL, postgresURL},
				"--name", relayName(i), "--lease-ttl", c.d.cfg.LeaseTTL.String(), "--poll-min", "20ms", "--disable-http")
			if err != nil {
				return err
			}
			c.relays = append(c.relays, p)
		}
	}
	if _, err := c.start("reclaimer", filepath.Join(c.d.cfg.Bin, "reclaimer"+exe), []string{redisURL},
		"--namespace", c.d.site.namespace, "--disable-http"); err != nil {
		return err
	}
	for i := range workers {
		config, err := json.Marshal(WorkerConfig{
			Name: workerName(i), Namespace: c.d.site.namespace, RedisURL: c.d.site.redisURL, PostgresURL: c.d.site.postgresURL,
			Seed: c.d.cfg.Seed, MinIdle: c.d.cfg.MinIdle, Break: c.d.cfg.Break,
		})
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		p, err := c.start(workerName(i), c.d.cfg.Self, []string{WorkerVar + "=" + string(config)})
		if err != nil {
			return err
		}
		c.workers = append(c.workers, p)
	}
	return nil
}

// exe is what names of programs end in.
var exe = map[bool]string{true: ".exe"}[os.PathSeparator == '\\']

func relayName(i int) string  { return "relay-" + strconv.Itoa(i+1) }
func workerName(i int) string { return "worker-" + strconv.Itoa(i+1) }

func (c *children) start(name, path string, env []string, args ...string) (*servers.Program, error) {
	p, err := servers.StartProgram(name, path, env, args...)
	if err != nil {
		return nil, fmt.Errorf("demo: %w (make build builds the programs)", err)
	}
	c.all = append(c.all, p)
	return p, nil
}

// ended returns an error where one of the children ended by itself.
func (c *children) ended() error {
	for _, p := range c.all {
		if p.Pid() == 0 {
			return fmt.Errorf("demo: %s ended by itself; its log:\n%s", p.Name(), p.Log())
		}
	}
	return nil
}

// logs returns the last lines of what each child logged.
func (c *children) logs() string {
	var b strings.Builder
	for _, p := range c.all {
		fmt.Fprintf(&b, "--- %s\n%s\n", p.Name(), p.Log())
	}
	return b.String()
}

func (c *children) stopWorkers() error { return together((*servers.Program).Stop, c.workers) }

func (c *children) close() error {
	c.stopNaive()
	return together((*servers.Program).Close, c.all)
}

func together(do func(*servers.Program) error, all []*servers.Program) error {
	failed := make([]error, len(all))
	var wg sync.WaitGroup
	for i, p := range all {
		wg.Go(func() { failed[i] = do(p) })
	}
	wg.Wait()
	return errors.Join(failed...)
}
