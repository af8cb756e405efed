// Package servers starts throwaway Redis and Postgres servers from the programs installed on this
// machine, for the demo and for tests: on loopback, on a free port, in a temporary folder.
//
// A server lives until it is closed, and never longer than the process that started it: when that
// process dies, by SIGKILL too, its servers are ended and their folders removed.
package servers

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNotInstalled is what a start fails with, wrapped, where the server's programs are not on this
// machine. The whole message says what to install.
var ErrNotInstalled = errors.New("not installed")

// Where packages put the Postgres programs outside PATH; the star is the version.
var postgresFolders = []string{
	"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                   // Red Hat
	"/opt/homebrew/opt/postgresql@*/bin", // macOS, ARM
	"/usr/local/opt/postgresql@*/bin",    // macOS, Intel
}

// FindRedis returns the path of a Redis server program: in the folder that REDIS_BIN_DIR names, which
// may hold valkey-server instead, else in PATH. It fails with ErrNotInstalled, also when REDIS_BIN_DIR
// names a folder without either.
func FindRedis() (string, error) {
	names := []string{"redis-server", "valkey-server"}
	if dir := os.Getenv("REDIS_BIN_DIR"); dir != "" {
		for _, name := range names {
			if path := filepath.Join(dir, name); isProgram(path) {
				return filepath.Abs(path)
			}
		}
		return "", fmt.Errorf("servers: redis-server (or valkey-server): %w in REDIS_BIN_DIR=%s", ErrNotInstalled, dir)
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("servers: redis-server: %w: install it (apt-get install redis-server, brew install redis), "+
		"or set REDIS_BIN_DIR to the folder of redis-server or valkey-server", ErrNotInstalled)
}

// FindPostgres returns the folder that holds the programs postgres and initdb: the one that
// POSTGRES_BIN_DIR names, else one in PATH, else the newest version where packages put them. It fails with
// ErrNotInstalled, also when POSTGRES_BIN_DIR names a folder that lacks one of them.
func FindPostgres() (string, error) {
	if dir := os.Getenv("POSTGRES_BIN_DIR"); dir != "" {
		if holdsPostgres(dir) {
			return filepath.Abs(dir)
		}
		return "", fmt.Errorf("servers: postgres and initdb: %w in POSTGRES_BIN_DIR=%s", ErrNotInstalled, dir)
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if dir != "" && holdsPostgres(dir) {
			return filepath.Abs(dir)
		}
	}
	for _, pattern := range postgresFolders {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("servers: %w", err)
		}
		dirs = slices.DeleteFunc(dirs, func(dir string) bool { return !holdsPostgres(dir) })
		if len(dirs) > 0 {
			star := strings.Index(pattern, "*")
			return slices.MaxFunc(dirs, func(a, b string) int { return cmp.Compare(leadingNumber(a[star:]), leadingNumber(b[star:])) }), nil
		}
	}
	return "", fmt.Errorf("servers: postgres and initdb: %w: install them (apt-get install postgresql, "+
		"brew install postgresql), or set POSTGRES_BIN_DIR to their folder", ErrNotInstalled)
}

func holdsPostgres(dir string) bool {
	return isProgram(filepath.Join(dir, "postgres")) && isProgram(filepath.Join(dir, "initdb"))
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// leadingNumber returns the number that a text begins with: "15/bin" has 15.
func leadingNumber(text string) int {
	end := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(text)
	}
	n, _ := strconv.Atoi(text[:end]) // without digits, or with far too many, it is no version
	return n
}
