package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"github.com/kalypso-dev/kalypso/profiler"
)

// socketPrefix is what addresses of Unix sockets begin with.
const socketPrefix = "unix:"

// Listen listens on HOST:PORT of this machine, or on unix:PATH, which only the
// user who runs the agent can open. An address that other machines can reach is
// refused unless allowRemote says that they may ask, too.
func Listen(address string, allowRemote bool) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, socketPrefix); ok {
		return listenUnix(path)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &profiler.Fault{
			What: fmt.Sprintf("cannot listen on %q", address), Why: errors.New("an address is HOST:PORT, or unix:PATH"),
			Fix: "--listen " + DefaultAddress + " is the default",
		}
	}
	if !allowRemote && !loopback(host) {
		return nil, &profiler.Fault{
			What: fmt.Sprintf("will not listen on %s", address), Why: errors.New("other machines can reach it"),
			Fix: "--listen " + DefaultAddress + ", or allow them to read metrics and health",
		}
	}
	at := address
	if host == localhost { // whatever a resolver makes of it: RFC 6761, section 6.3
		at = net.JoinHostPort("127.0.0.1", port)
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return nil, listenFault(address, err)
	}
	return l, nil
}

const localhost = "localhost"

func loopback(host string) bool {
	if host == localhost {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

func listenUnix(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, listenFault(socketPrefix+path, err)
	}
	// The file gets the mode of the socket (net/unix/af_unix.c, unix_bind_bsd),
	// so there is no moment in which others can open it.
	cfg := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	l, err := cfg.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, listenFault(socketPrefix+path, err)
	}
	return l, nil
}

// removeStale removes a socket that an agent which was killed left behind, and
// nothing else.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return syscall.EADDRINUSE
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

func listenFault(address string, err error) error {
	f := &profiler.Fault{What: "cannot listen on " + address, Why: reason(err), Fix: "choose another address with --listen"}
	if errors.Is(err, syscall.EADDRINUSE) {
		f.Why = errors.New("something listens there already")
		f.Fix = "kalypso-agent top --listen " + address + "   tells whether it is an agent; --listen chooses another address"
	}
	return f
}

// reason is the error without the call and the address that it is about.
func reason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err
	}
	return err
}

// Limits of a server. Everybody on this machine can connect to it.
const (
	maxConnections = 64
	maxHeaderBytes = 16 << 10
	readTimeout    = 5 * time.Second  // of a request's head
	writeTimeout   = 30 * time.Second // of an answer, once it is made
	idleTimeout    = time.Minute
	endTimeout     = 2 * time.Second // for answers that are under way at the end
)

// Serve serves h on l until ctx ends, and closes l. Requests end with ctx.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: readTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		if server.Shutdown(end) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(netutil.LimitListener(l, maxConnections))
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}
