package servers

import (
	_ "embed"
	"fmt"
	"io"
	"os/exec"
)

//go:embed guard.sh
var guardScript string

// guard is a small shell process that ends one server and removes its folder as soon as the pipe
// from this process closes: by close, or because this process died, however it died.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startGuard guards a server that endSignal (such as "KILL") ends cleanly. Its folder is removed, unless it is "".
func startGuard(endSignal, folder string) (*guard, error) {
	// Not bound to a context: it has to outlive everything here. Its output goes nowhere, so that nobody
	// who reads this process's output waits for the guard.
	cmd := exec.Command("/bin/sh", "-c", guardScript, "streamkeel-guard", endSignal, folder)
	cmd.Dir = "/"
	cmd.SysProcAttr = detached()
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("servers: start guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("servers: start guard: %w", err)
	}
	return &guard{cmd: cmd, pipe: pipe}, nil
}

// watch tells the guard which process to end.
func (g *guard) watch(pid int) error {
	_, err := fmt.Fprintln(g.pipe, pid)
	return err
}

// unwatch tells the guard that the process has ended: its pid may be another's by now.
func (g *guard) unwatch() error {
	_, err := fmt.Fprintln(g.pipe)
	return err
}

// close lets the guard do its work, and waits for it.
func (g *guard) close() error {
	_ = g.pipe.Close() // fails only if the guard was killed, which Wait reports
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("servers: remove server's folder: %w", err)
	}
	return nil
}
