package commandtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// Certificates are files with an authority's certificate, and with a server's and a client's
// that it has signed.
type Certificates struct {
	CA                    string
	ServerCert, ServerKey string
	ClientCert, ClientKey string
	authority             *x509.Certificate
	key                   *ecdsa.PrivateKey
	folder                string
}

// NewCertificates makes certificates for the name that the server's is for; it is for 127.0.0.1
// where the name is empty.
func NewCertificates(t testing.TB, serverName string) *Certificates {
	t.Helper()
	c := &Certificates{folder: t.TempDir()}
	var err error
	c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c.authority = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c.authority, c.authority, c.key.Public(), c.key)
	require.NoError(t, err)
	c.CA = c.write(t, "ca.pem", "CERTIFICATE", der)
	server := &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if serverName == "" {
		server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	} else {
		server.DNSNames = []string{serverName}
	}
	c.ServerCert, c.ServerKey = c.issue(t, "server", server)
	c.ClientCert, c.ClientKey = c.issue(t, "client", &x509.Certificate{Subject: pkix.Name{CommonName: "client"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return c
}

func (c *Certificates) issue(t testing.TB, name string, template *x509.Certificate) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, c.authority, key.Public(), c.key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return c.write(t, name+".pem", "CERTIFICATE", der), c.write(t, name+".key", "PRIVATE KEY", keyDER)
}

func (c *Certificates) write(t testing.TB, name, kind string, der []byte) string {
	t.Helper()
	file := filepath.Join(c.folder, name)
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return file
}

// TLSRedis starts a Redis that speaks TLS at the address that it returns, wants a client's
// certificate, and has a password. Where the program was built without TLS the test is skipped.
func TLSRedis(t testing.TB, c *Certificates, password string) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, listener.Close())
	testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true, Settings: map[string]string{
		"tls-port": strconv.Itoa(port), "tls-cert-file": c.ServerCert, "tls-key-file": c.ServerKey, "tls-ca-cert-file": c.CA,
		"tls-auth-clients": "yes", "requirepass": strconv.Quote(password),
	}})
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}
