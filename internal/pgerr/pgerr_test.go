package pgerr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/pgerr"
)

func TestErrorsOfPostgresAreToldApart(t *testing.T) {
	t.Parallel()
	code := func(code string) error { return fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code}) }
	_, refused := pgx.Connect(t.Context(), "postgres://streamkeel@127.0.0.1:1/none?connect_timeout=5")
	for _, c := range []struct {
		err                            error
		unavailable, conflict, noTable bool
	}{
		{err: nil},
		{err: errors.New("of the caller")},
		{err: context.Canceled},
		{err: fmt.Errorf("timed out: %w: %w", &net.OpError{Op: "read", Err: io.EOF}, context.Canceled)},
		{err: refused, unavailable: true},
		{err: &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}, unavailable: true},
		{err: io.EOF, unavailable: true},
		{err: fmt.Errorf("read: %w", io.ErrUnexpectedEOF), unavailable: true},
		{err: net.ErrClosed, unavailable: true},
		{err: code("08006"), unavailable: true}, // connection failure
		{err: code("53100"), unavailable: true}, // disk full
		{err: code("53300"), unavailable: true}, // too many connections
		{err: code("57P01"), unavailable: true}, // admin shutdown
		{err: code("57P03"), unavailable: true}, // cannot connect now
		{err: code("58030"), unavailable: true}, // I/O error
		{err: code("25006"), unavailable: true}, // read-only: a standby
		{err: code("25P03"), unavailable: true}, // idle in transaction
		{err: code("57014")},                    // query cancelled: statement_timeout
		{err: code("40001"), conflict: true},    // serialization failure
		{err: code("40P01"), conflict: true},    // deadlock
		{err: code("55P03"), conflict: true},    // lock not available
		{err: code("42P01"), noTable: true},     // undefined table
		{err: code("3F000"), noTable: true},     // undefined schema
		{err: code("42501")},                    // permission denied
		{err: code("23505")},                    // unique violation
		{err: code("22001")},                    // too long
	} {
		require.Equal(t, c.unavailable, pgerr.IsUnavailable(c.err), "unavailable: %v", c.err)
		require.Equal(t, c.conflict, pgerr.IsConflict(c.err), "conflict: %v", c.err)
		require.Equal(t, c.noTable, pgerr.IsNoTable(c.err), "no table: %v", c.err)
	}
	require.Equal(t, "23505", pgerr.Code(code("23505")))
	require.Empty(t, pgerr.Code(io.EOF))
}
