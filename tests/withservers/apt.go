package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// install installs packages with apt-get, for root only. Their services are not started, now or at the next boot,
// and postgresql makes no database cluster. Interrupting it would leave half-installed packages
// behind: it does not end with ctx.
func (m machine) install(ctx context.Context, packages ...string) error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return err
	}
	fmt.Fprintf(m.stderr, "withservers: installing %s with apt-get\n", strings.Join(packages, " "))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Minute)
	defer cancel()
	restore, err := putRules(aptRules)
	if err != nil {
		return errors.Join(err, restore())
	}
	err = aptGet(ctx, append([]string{"install"}, packages...)...)
	if err != nil { // perhaps for want of package lists
		if err = aptGet(ctx, "update"); err == nil {
			err = aptGet(ctx, append([]string{"install"}, packages...)...)
		}
	}
	if systemctl, none := exec.LookPath("systemctl"); err == nil && none == nil {
		// Their services have the packages' names.
		err = exec.CommandContext(ctx, systemctl, append([]string{"--quiet", "disable"}, packages...)...).Run()
	}
	return errors.Join(err, restore())
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{
		"-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::http::Timeout=30",
	}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl+C is not for it
	if output, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(output)), "\n")
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
	return nil
}

// aptRules are files that the packages' scripts obey: the first forbids to start services, the second to
// make a database cluster.
var aptRules = map[string]string{
	"/usr/sbin/policy-rc.d":                                   "#!/bin/sh\nexit 101\n",
	"/etc/postgresql-common/createcluster.d/withservers.conf": "create_main_cluster = false\n",
}

// putRules writes the files. What they replaced, or that there was nothing, is brought back by restore,
// which is to be called after an error too.
func putRules(rules map[string]string) (restore func() error, err error) {
	var undo []func() error
	restore = func() error {
		var errs []error
		for _, u := range undo {
			errs = append(errs, u())
		}
		return errors.Join(errs...)
	}
	for path, content := range rules {
		before, err := os.ReadFile(path)
		switch {
		case err == nil:
			undo = append(undo, func() error { return os.WriteFile(path, before, 0o755) })
		case errors.Is(err, fs.ErrNotExist):
			undo = append(undo, func() error { return os.Remove(path) })
		default:
			return restore, err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return restore, err
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			return restore, err
		}
	}
	return restore, nil
}
