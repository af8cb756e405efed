// Package pgerr classifies what Postgres and its driver answer, in one place.
package pgerr

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Code returns the SQLSTATE of an error that the server sent, or "".
func Code(err error) string {
	var reply *pgconn.PgError
	if errors.As(err, &reply) {
		return reply.Code
	}
	return ""
}

// IsUnavailable reports whether err says that Postgres is away, or takes no work now, so that the same
// work may succeed later: lost and refused connections, too few resources, a server that starts, stops or
// became a standby. A cancelled context is not one.
func IsUnavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	switch code := Code(err); {
	case code == "":
	case strings.HasPrefix(code, "08"), // connection
		strings.HasPrefix(code, "53"),  // resources: disk, memory, connections
		strings.HasPrefix(code, "57P"), // shutdown, starting up, dropped, session timeouts
		strings.HasPrefix(code, "58"),  // system
		code == "25006",                // the server is read-only, a standby
		code == "25P03":                // the session idled in its transaction
		return true
	default:
		return false
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// IsConflict reports whether err says that the transaction lost against another one, and may succeed when it
// is run again: a serialization failure, a deadlock, or a lock that was not to be had.
func IsConflict(err error) bool {
	switch Code(err) {
	case "40001", "40P01", "55P03":
		return true
	}
	return false
}

// IsNoTable reports whether a table is missing: the migrations were not applied.
func IsNoTable(err error) bool {
	code := Code(err)
	return code == "42P01" || code == "3F000"
}
