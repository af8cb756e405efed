// Command withservers runs a command with a Redis and a Postgres server for its tests:
//
//	withservers [--containers] [--ensure-programs] [--only redis,postgres] -- command args...
//
// The command finds their addresses in STREAMKEEL_TEST_REDIS_URL and STREAMKEEL_TEST_POSTGRES_URL. Each server
// comes from the first of these that can be had:
//
//  1. the one that its variable names already;
//  2. programs on this machine (REDIS_BIN_DIR and POSTGRES_BIN_DIR name their folders where they are not in PATH);
//  3. a container, where a Docker daemon answers that holds the image
//     (STREAMKEEL_TEST_REDIS_IMAGE, default redis:8; STREAMKEEL_TEST_POSTGRES_IMAGE, default postgres:18);
//  4. programs that apt-get installs, for root.
//
// With --containers it is always a container, of an image that is pulled where it is missing. With --ensure-programs the
// command starts its own servers: programs are found or installed but not started, and a
// variable is set only where there is but a container.
//
// Signals go to the command. When it ends, or an interrupt comes before it has started, all that was
// started is removed again, and withservers exits as the command did. Standard output is the command's alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	os.Exit(run(os.Args[1:], newWorld(os.Stderr), signals, os.Stderr))
}

// options is what the command line says.
type options struct {
	containers bool
	ensure     bool
	servers    []server
	command    []string
}

func parse(args []string, all []server, stderr io.Writer) (options, error) {
	var o options
	var only string
	flags := flag.NewFlagSet("withservers", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&o.containers, "containers", false, "use containers, whatever is installed")
	flags.BoolVar(&o.ensure, "ensure-programs", false, "only see to it that the servers' programs are installed")
	flags.StringVar(&only, "only", "redis,postgres", "the servers that are needed")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: withservers [--containers] [--ensure-programs] [--only redis,postgres] -- command args...")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(all, func(s server) bool { return s.name == name })
		if i < 0 {
			return o, fmt.Errorf("--only %s: there is redis and postgres", only)
		}
		o.servers = append(o.servers, all[i])
	}
	if o.command = flags.Args(); len(o.command) == 0 {
		return o, errors.New("no command to run")
	}
	return o, nil
}

// Long enough to pull images on a slow line, and to remove containers on a busy machine.
const (
	setUpTimeout    = 15 * time.Minute
	tearDownTimeout = time.Minute
)

// run returns the exit code.
func run(args []string, w world, signals <-chan os.Signal, stderr io.Writer) (code int) {
	say := func(format string, args ...any) { fmt.Fprintf(stderr, "withservers: "+format+"\n", args...) }
	o, err := parse(args, w.servers(), stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		say("%v", err)
		return 2
	}

	var started []running
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), tearDownTimeout)
		defer cancel()
		for _, r := range slices.Backward(started) {
			if err := r.close(ctx); err != nil {
				say("%v", err)
				code = max(code, 1)
			}
		}
	}()
	env := os.Environ()
	interrupt := untilSignal(signals, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, setUpTimeout)
		defer cancel()
		for _, s := range o.servers {
			var r running
			if r, err = provide(ctx, w, s, o); err != nil {
				return
			}
			if r.what != "" {
				say("%s", r.what)
			}
			if r.close != nil {
				started = append(started, r)
				env = append(env, s.variable+"="+r.url)
			}
		}
	})
	switch {
	case interrupt != nil:
		return exitCode(interrupt)
	case err != nil:
		say("%v", err)
		return 1
	}
	code, err = execute(o.command, env, signals)
	if err != nil {
		say("%v", err)
	}
	return code
}

// provide gets one server, and starts it if it has to be started.
func provide(ctx context.Context, w world, s server, o options) (running, error) {
	source, err := decide(ctx, w, s, o.containers)
	if err != nil {
		return running{}, err
	}
	switch {
	case source == given:
		return running{what: fmt.Sprintf("%s: the one in %s", s.name, s.variable)}, nil
	case source == container:
		image := s.imageName(w)
		r, err := s.contain(ctx, image)
		if err != nil {
			return running{}, fmt.Errorf("%s: container %s: %w", s.name, image, err)
		}
		r.what = fmt.Sprintf("%s: container of %s at %s", s.name, image, r.url)
		return r, nil
	case o.ensure:
		return running{}, nil
	default:
		r, err := s.start(ctx)
		if err != nil {
			return running{}, fmt.Errorf("%s: %w", s.name, err)
		}
		r.what = fmt.Sprintf("%s: local at %s", s.name, r.url)
		return r, nil
	}
}
