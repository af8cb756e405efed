package main

import (
	"context"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestQuickstartWritesTheInvoiceOnce(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true}) // the topic stands in the default namespace
	pool := testenv.Postgres(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, server.URL(), pool.Config().ConnString()) }()
	require.Eventually(t, func() bool {
		var invoices, orders int
		err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM invoices i JOIN orders USING (cents) WHERE order_id = id), (SELECT count(*) FROM orders)`).Scan(&invoices, &orders)
		return err == nil && invoices == 1 && orders == 1
	}, 60*time.Second, 20*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

func TestReadmeShowsThisProgram(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	program, err := os.ReadFile("main.go")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.Len(t, blocks, 2)
	for _, block := range blocks {
		require.Contains(t, string(program), block[1])
	}
}
