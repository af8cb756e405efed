package command_test

import (
	"errors"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
)

// For how long what is waited for is, and what is not.
const brief, patience = 2 * time.Second, 30 * time.Second

func check(t *testing.T, flags command.RedisFlags, timeout time.Duration) error {
	t.Helper()
	cfg, faults := flags.Config("prog", &command.Secrets{})
	require.NoError(t, errors.Join(faults...))
	err := command.CheckRedis(t.Context(), cfg, timeout)
	if err != nil {
		require.True(t, command.IsUnfit(err))
		require.NotContains(t, err.Error(), commandtest.Canary)
	}
	return err
}

func TestTLSVerifiesTheServerAndShowsACertificate(t *testing.T) {
	t.Parallel()
	certs := commandtest.NewCertificates(t, "")
	addr := commandtest.TLSRedis(t, certs, commandtest.Canary)
	good := command.RedisFlags{
		URL:    "rediss://" + url.UserPassword("default", commandtest.Canary).String() + "@" + addr,
		CAFile: certs.CA, CertFile: certs.ClientCert, KeyFile: certs.ClientKey,
	}
	require.NoError(t, check(t, good, patience))

	other := commandtest.NewCertificates(t, "")
	for _, c := range []struct {
		edit    func(*command.RedisFlags)
		timeout time.Duration
		part    string
	}{
		{func(f *command.RedisFlags) { f.CAFile = "" }, patience, "name the authority with --redis-ca-file"},
		{func(f *command.RedisFlags) { f.CAFile = other.CA }, patience, "name the authority with --redis-ca-file"},
		{func(f *command.RedisFlags) { f.ServerName = "redis.example.com" }, patience, "--redis-server-name"},
		{func(f *command.RedisFlags) { f.CertFile, f.KeyFile = "", "" }, brief, "--redis-cert-file"},
		{func(f *command.RedisFlags) { f.CertFile, f.KeyFile = other.ClientCert, other.ClientKey }, brief, "--redis-cert-file"},
		{func(f *command.RedisFlags) {
			f.URL, f.CAFile, f.CertFile, f.KeyFile = "redis://"+addr, "", "", ""
		}, brief, "whether it wants TLS"},
	} {
		flags := good
		c.edit(&flags)
		require.ErrorContains(t, check(t, flags, c.timeout), c.part)
	}
}

func TestServerNameStandsInForTheHost(t *testing.T) {
	t.Parallel()
	certs := commandtest.NewCertificates(t, "redis.example.com")
	addr := commandtest.TLSRedis(t, certs, commandtest.Canary)
	flags := command.RedisFlags{
		URL:    "rediss://" + url.UserPassword("", commandtest.Canary).String() + "@" + addr,
		CAFile: certs.CA, CertFile: certs.ClientCert, KeyFile: certs.ClientKey,
	}
	require.ErrorContains(t, check(t, flags, patience), "--redis-server-name")
	flags.ServerName = "redis.example.com"
	require.NoError(t, check(t, flags, patience))
}

func TestRenewedCertificateIsUsedWithoutARestart(t *testing.T) {
	t.Parallel()
	certs, other := commandtest.NewCertificates(t, ""), commandtest.NewCertificates(t, "")
	addr := commandtest.TLSRedis(t, certs, commandtest.Canary)
	flags := command.RedisFlags{
		URL:    "rediss://" + url.UserPassword("", commandtest.Canary).String() + "@" + addr,
		CAFile: certs.CA, CertFile: other.ClientCert, KeyFile: other.ClientKey,
	}
	cfg, faults := flags.Config("prog", &command.Secrets{})
	require.Empty(t, faults)
	require.Error(t, command.CheckRedis(t.Context(), cfg, time.Second))
	for from, to := range map[string]string{certs.ClientCert: other.ClientCert, certs.ClientKey: other.ClientKey} {
		content, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to, content, 0o600))
	}
	require.NoError(t, command.CheckRedis(t.Context(), cfg, patience))
}
