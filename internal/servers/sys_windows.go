package servers

import "syscall"

// The package compiles on Windows, so that the demo's program does, but starts no server there: the
// guard needs a shell.
const (
	sigPause  = syscall.Signal(0x13)
	sigResume = syscall.Signal(0x12)
)

func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

func runAs(*syscall.SysProcAttr, *account) {}
