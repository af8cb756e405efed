package servers

import "syscall"

// endWithThread makes the kernel send the signal to the child as soon as the thread that started it
// ends: the caller keeps that thread for as long as the child runs.
func endWithThread(attr *syscall.SysProcAttr, signal syscall.Signal) {
	attr.Pdeathsig = signal
}
