//go:build !linux

package servers

import "syscall"

// endWithThread does nothing: only Linux has it. Elsewhere the guard alone ends orphans.
func endWithThread(*syscall.SysProcAttr, syscall.Signal) {}
