// Package command holds what Streamkeel's programs share: flags that are environment
// variables too, connections, logging without secrets, health, and exit codes.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
)

// The exit codes.
const (
	// ExitClean is the end that was asked for.
	ExitClean = 0
	// ExitFailure is a failure on the way, which a restart may mend.
	ExitFailure = 1
	// ExitUnfit is bad usage, a bad config, or a server that is away at the start or unfit:
	// somebody has to change something.
	ExitUnfit = 2
)

// Process is what a program gets from its surroundings.
type Process struct {
	Args           []string // without the program's name
	Env            []string // NAME=value
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Main runs a program and ends the process with the code that it returns. ctx ends with the
// first SIGTERM or SIGINT; the second one ends the process at once.
func Main(run func(ctx context.Context, p Process) int) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals) // before anybody sees that ctx ended: the next one does what it does by itself
		cancel()
	}()
	routeRedisLog()
	os.Exit(run(ctx, Process{Args: os.Args[1:], Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
}

// unfitError is an error that ends the program with ExitUnfit.
type unfitError struct{ error }

func (e unfitError) Unwrap() error { return e.error }

// Unfit marks an error as one that somebody has to mend before the program can run.
func Unfit(err error) error {
	if err == nil {
		return nil
	}
	return unfitError{err}
}

// Unfitf is Unfit of a new error.
func Unfitf(format string, args ...any) error { return unfitError{fmt.Errorf(format, args...)} }

// IsUnfit reports whether err was marked by Unfit.
func IsUnfit(err error) bool {
	var unfit unfitError
	return errors.As(err, &unfit)
}

// loggedError is an error that was logged: nothing more is said about it.
type loggedError struct{ error }

func (e loggedError) Unwrap() error { return e.error }

// UnlessEnded returns nil in place of an error where ctx ended: it comes of that.
func UnlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Exit writes an error to stderr, as one line without secrets, and returns the exit code.
func Exit(stderr io.Writer, program string, err error, secrets *Secrets) int {
	if err == nil {
		return ExitClean
	}
	var logged loggedError
	if !errors.As(err, &logged) {
		fmt.Fprintf(stderr, "%s: %s\n", program, Visible(secrets.Redact(OneLine(err))))
	}
	if IsUnfit(err) {
		return ExitUnfit
	}
	return ExitFailure
}

// OneLine returns the text of an error in one line: those of several that were joined are
// separated by semicolons.
func OneLine(err error) string {
	var b strings.Builder
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			continue
		case strings.HasSuffix(b.String(), "?"), strings.HasSuffix(b.String(), ":"):
			b.WriteByte(' ')
		case b.Len() > 0:
			b.WriteString("; ")
		}
		b.WriteString(line)
	}
	return b.String()
}

// Version returns the version of this build, as far as the Go toolchain has recorded it.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version, revision, dirty := info.Main.Version, "", ""
	if version == "" {
		version = "(devel)"
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = " " + s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	return version + revision + dirty
}
