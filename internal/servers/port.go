package servers

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
)

// Below the ports that systems give to outgoing connections, one of which could otherwise take a
// server's port while the server is down. With busOffset added they still are.
const (
	firstPort, lastPort = 11_000, 21_999

	busOffset = 10_000 // a Redis Cluster node's bus port, by Redis's default
)

// freePort returns a loopback port that was free a moment ago, together with its bus port. Somebody
// else may take it before the server does: then the start fails, and is tried on another port.
func freePort() (int, error) {
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if isFree(port) && isFree(port+busOffset) {
			return port, nil
		}
	}
	return 0, errors.New("servers: no free port found on 127.0.0.1")
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
