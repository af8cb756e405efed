package tests

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// door is an address that stays the same while the server behind it changes, like the name of a service.
type door struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	to    string
	conns map[net.Conn]bool
}

func newDoor(t *testing.T, to string) *door {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d := &door{listener: listener, to: to, conns: map[net.Conn]bool{}}
	d.wg.Go(d.serve)
	t.Cleanup(func() {
		_ = listener.Close()
		d.lead("") // ends the connections
		d.wg.Wait()
	})
	return d
}

func (d *door) addr() string { return d.listener.Addr().String() }

// lead has the door lead to another server from now on, and cuts all connections.
func (d *door) lead(to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.to = to
	for conn := range d.conns {
		_ = conn.Close()
	}
	clear(d.conns)
}

func (d *door) serve() {
	for {
		in, err := d.listener.Accept()
		if err != nil {
			return
		}
		out := d.enter(in)
		if out == nil {
			_ = in.Close()
			continue
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			d.wg.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				_ = pair[0].Close()
				_ = pair[1].Close()
			})
		}
	}
}

// enter connects to the server, unless it is away.
func (d *door) enter(in net.Conn) net.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	out, err := net.Dial("tcp", d.to)
	if err != nil {
		return nil
	}
	d.conns[in], d.conns[out] = true, true
	return out
}
