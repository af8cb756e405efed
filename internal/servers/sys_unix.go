//go:build unix

package servers

import "syscall"

const (
	sigPause  = syscall.SIGSTOP
	sigResume = syscall.SIGCONT
)

// detached gives a child its own process group, so that Ctrl+C in a terminal reaches this process
// only, which then ends its children in order.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// runAs makes the child another user's. It works for root only.
func runAs(attr *syscall.SysProcAttr, user *account) {
	attr.Credential = &syscall.Credential{Uid: uint32(user.uid), Gid: uint32(user.gid)}
}
