package cluster

import (
	"errors"
	"io"
	"net"
	"sync"
)

// forward listens on a free port of 127.0.0.1 and carries each connection to an
// address in the network of a process.
func forward(pid int, target string) (port int, close func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	f := &forwarder{pid: pid, target: target, open: map[net.Conn]bool{}}
	f.wait.Go(func() { f.serve(listener) })
	return listener.Addr().(*net.TCPAddr).Port, func() {
		listener.Close()
		f.closeAll()
		f.wait.Wait()
	}, nil
}

type forwarder struct {
	pid    int
	target string
	wait   sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]bool
	closed bool
}

func (f *forwarder) serve(listener net.Listener) {
	for {
		in, err := listener.Accept()
		if err != nil {
			return
		}
		f.wait.Go(func() { f.carry(in) })
	}
}

func (f *forwarder) carry(in net.Conn) {
	defer f.forget(in)
	if !f.remember(in) {
		return
	}
	var out net.Conn
	err := inNetworkOf(f.pid, func() (err error) {
		// A literal address, so that its socket is made on this thread.
		out, err = net.Dial("tcp", f.target)
		return err
	})
	if err != nil {
		return
	}
	defer f.forget(out)
	if !f.remember(out) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { pipe(in, out) })
	pipe(out, in)
	back.Wait()
}

// pipe copies one direction, and passes its end on.
func pipe(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil && !errors.Is(err, net.ErrClosed) {
		from.Close()
	}
	to.(*net.TCPConn).CloseWrite()
}

func (f *forwarder) remember(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[c] = true
	return !f.closed
}

func (f *forwarder) forget(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
	c.Close()
}

func (f *forwarder) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for c := range f.open {
		c.Close()
	}
}
