package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// How long a start may take if the caller's context has no deadline.
const startTimeout = 30 * time.Second

var errClosed = errors.New("server is closed")

// process is a server's program in its folder: started, signalled, ended, started again, and at last closed.
type process struct {
	name    string // for messages
	program string
	args    []string
	env     []string // nil: this process's
	user    *account // nil: this process's
	folder  string
	guard   *guard
	orphan  syscall.Signal // ends it cleanly when this process dies

	mu     sync.Mutex
	run    *run // the last start; nil before the first
	closed bool
}

// run is one life of the program.
type run struct {
	process *os.Process
	exited  chan struct{} // closed once the program has ended and was waited for
}

func (r *run) over() bool {
	select {
	case <-r.exited:
		return true
	default:
		return false
	}
}

// start starts the program and returns when ready says so. If the program ends before that, or ctx
// does, it is not running afterwards, and the error holds the last lines of its log.
func (p *process) start(ctx context.Context, ready func(context.Context) error) error {
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	r, err := p.launch()
	if err != nil {
		return fmt.Errorf("servers: start %s: %w", p.name, err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		notReady := ready(ctx)
		if notReady == nil {
			return nil
		}
		select {
		case <-r.exited:
			return fmt.Errorf("servers: start %s: it ended at once. Its log:\n%s", p.name, p.logTail())
		case <-ctx.Done():
			_ = p.end(syscall.SIGKILL) // SIGKILL cannot fail to end it
			return fmt.Errorf("servers: start %s: %w (last answer: %w). Its log:\n%s", p.name, context.Cause(ctx), notReady, p.logTail())
		case <-tick.C:
		}
	}
}

// launch starts the program without waiting until it serves.
func (p *process) launch() (*run, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, errClosed
	case p.run != nil && !p.run.over():
		return nil, errors.New("it is running already")
	}
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	cmd := exec.Command(p.program, p.args...)
	cmd.Dir, cmd.Env = p.folder, p.env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = detached()
	endWithThread(cmd.SysProcAttr, p.orphan)
	if p.user != nil {
		runAs(cmd.SysProcAttr, p.user)
	}

	started, exited := make(chan error), make(chan struct{})
	go func() {
		// One thread starts the program and waits for it: see endWithThread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			err = p.guard.watch(cmd.Process.Pid)
			if err != nil {
				_ = cmd.Process.Kill()
				_ = cmd.Wait() // reports the kill
			}
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait()        // how it ended is of no interest, and is in its log
		_ = p.guard.unwatch() // fails only after close
		close(exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.run = &run{process: cmd.Process, exited: exited}
	return p.run, nil
}

// signal sends a signal to the running program.
func (p *process) signal(signal syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil || p.run.over() {
		return fmt.Errorf("servers: signal %s: %w", p.name, os.ErrProcessDone)
	}
	if err := p.run.process.Signal(signal); err != nil {
		return fmt.Errorf("servers: signal %s: %w", p.name, err)
	}
	return nil
}

// end sends a signal that ends the program, and waits until it has ended; a program that is not running
// needs neither. One that has not ended after endTimeout is killed, and that is an error.
func (p *process) end(signal syscall.Signal) error {
	p.mu.Lock()
	r := p.run
	p.mu.Unlock()
	if r == nil {
		return nil
	}
	_ = r.process.Signal(signal)    // fails only if it has ended,
	_ = r.process.Signal(sigResume) // and a paused program heeds nothing but SIGKILL
	timer := time.NewTimer(endTimeout)
	defer timer.Stop()
	select {
	case <-r.exited:
		return nil
	case <-timer.C:
		_ = r.process.Kill()
		<-r.exited
		return fmt.Errorf("servers: %s did not end within %s of %s, and was killed", p.name, endTimeout, signal)
	}
}

// Longer than Postgres takes to end its own children in an immediate shutdown (5 s).
const endTimeout = 20 * time.Second

// close ends the program for good and has the guard remove the folder. Only the first call does something.
func (p *process) close(signal syscall.Signal) error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	return errors.Join(p.end(signal), p.guard.close())
}

// pid returns 0 if the program is not running.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil || p.run.over() {
		return 0
	}
	return p.run.process.Pid
}

func (p *process) logFile() string { return filepath.Join(p.folder, "server.log") }

// logTail returns the last lines of the log, or why there are none.
func (p *process) logTail() string {
	const lines = 20
	log, err := os.ReadFile(p.logFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
