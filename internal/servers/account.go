package servers

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// account is a user that a server runs as.
type account struct{ uid, gid int }

// unprivileged returns whom a server that refuses to run as root runs as, nil for this process's own
// user, and a folder for temporary files that this user can reach.
func unprivileged() (*account, string, error) {
	if os.Geteuid() != 0 {
		return nil, os.TempDir(), nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 != nil || err2 != nil {
			continue
		}
		for _, dir := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
			if openToAll(dir) {
				return &account{uid: uid, gid: gid}, dir, nil
			}
		}
		return nil, "", fmt.Errorf("servers: no temporary folder that user %s can reach: set TMPDIR to one", name)
	}
	return nil, "", fmt.Errorf("servers: Postgres refuses to run as root, and there is neither a user postgres nor a user nobody to run it as")
}

// openToAll reports whether any user can pass through the folder and all above it.
func openToAll(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}
