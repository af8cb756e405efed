package servers

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Program is another program, started by [StartProgram]. Its methods may be called from several
// goroutines.
type Program struct{ process *process }

// StartProgram starts a program, in a new temporary folder that holds its output, and returns
// without waiting for it to serve. name is for messages; env is added to this process's environment. Like a server
// it ends when it is closed, and never lives longer than this process.
func StartProgram(name, path string, env []string, args ...string) (*Program, error) {
	folder, err := os.MkdirTemp("", "streamkeel-program-")
	if err != nil {
		return nil, fmt.Errorf("servers: %w", err)
	}
	p := &process{name: name, program: path, args: args, env: append(os.Environ(), env...), folder: folder, orphan: syscall.SIGKILL}
	if p.guard, err = startGuard("KILL", folder); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	if _, err := p.launch(); err != nil {
		return nil, errors.Join(fmt.Errorf("servers: start %s: %w", name, err), p.close(syscall.SIGKILL))
	}
	return &Program{p}, nil
}

// Restart starts the program again after Kill, or after it ended by itself.
func (p *Program) Restart() error {
	if _, err := p.process.launch(); err != nil {
		return fmt.Errorf("servers: start %s: %w", p.process.name, err)
	}
	return nil
}

// Name returns the name that it was started with.
func (p *Program) Name() string { return p.process.name }

// Pid returns the program's process id, or 0 if it has ended.
func (p *Program) Pid() int { return p.process.pid() }

// Log returns the last lines of its output.
func (p *Program) Log() string { return p.process.logTail() }

// Kill ends the program as a crash would (SIGKILL), and returns when it is gone.
func (p *Program) Kill() error { return p.process.end(syscall.SIGKILL) }

// Stop asks the program to end (SIGTERM), and returns when it is gone.
func (p *Program) Stop() error { return p.process.end(syscall.SIGTERM) }

// Pause stops the program where it is (SIGSTOP).
func (p *Program) Pause() error { return p.process.signal(sigPause) }

// Resume lets a paused program go on.
func (p *Program) Resume() error { return p.process.signal(sigResume) }

// Close kills the program and removes its folder. A second call does nothing.
func (p *Program) Close() error { return p.process.close(syscall.SIGKILL) }
