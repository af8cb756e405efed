package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// execute runs the command and returns its exit code, as a shell gives it. Signals that come meanwhile are its own.
func execute(argv, env []string, signals <-chan os.Signal) (int, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 127, err
	}
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if fromKeyboard(s) && inForeground() {
				continue // the terminal sent it to the command too
			}
			_ = cmd.Process.Signal(s) // fails only if the command has ended
		case err := <-ended:
			var exit *exec.ExitError
			switch {
			case err == nil:
				return 0, nil
			case !errors.As(err, &exit):
				return 1, err
			}
			status, ok := exit.Sys().(syscall.WaitStatus)
			if ok && status.Signaled() {
				return exitCode(status.Signal()), nil
			}
			return exit.ExitCode(), nil
		}
	}
}

// exitCode is that of a program which a signal ended.
func exitCode(s os.Signal) int {
	number, _ := s.(syscall.Signal)
	return 128 + int(number)
}

func fromKeyboard(s os.Signal) bool { return s == os.Interrupt || s == syscall.SIGQUIT }

// inForeground reports whether the terminal sends its signals to this process, and so to the command.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

var errInterrupted = errors.New("interrupted")

// untilSignal calls f with a context that the first signal ends, and returns that signal, or nil if
// none came.
func untilSignal(signals <-chan os.Signal, f func(context.Context)) (caught os.Signal) {
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case caught = <-signals:
			cancel(fmt.Errorf("%w by %s", errInterrupted, caught))
		case <-done:
		}
	})
	f(ctx)
	close(done)
	wg.Wait()
	cancel(nil)
	return caught
}
