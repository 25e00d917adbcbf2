package transport

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// GRPC makes connections to a backend for gRPC.
type GRPC struct {
	config   Config
	endpoint endpoint
}

// NewGRPC makes the way to a backend. It does not connect yet.
func NewGRPC(c Config) (*GRPC, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	e, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	return &GRPC{config: c, endpoint: e}, nil
}

// Timeout is how long one request may take.
func (g *GRPC) Timeout() time.Duration { return g.config.timeout() }

// Address is HOST:PORT of the backend.
func (g *GRPC) Address() string { return g.endpoint.address }

// Connect makes a connection, which opens with its first call. It lasts for as
// long as the backend does: one that failed is to be closed and made anew,
// since gRPC would wait before its next try, and who calls has a back-off of
// their own.
func (g *GRPC) Connect() (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("dns:///"+g.endpoint.address,
		grpc.WithTransportCredentials(g.credentials()),
		grpc.WithUserAgent(g.config.userAgent()),
		grpc.WithUnaryInterceptor(g.identify),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: dialTimeout}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", g.endpoint.address, err)
	}
	return conn, nil
}

// identify puts what says who we are into the metadata of a call.
func (g *GRPC) identify(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	headers, err := g.config.headers()
	if err != nil {
		return fmt.Errorf("tell who we are: %w", err)
	}
	for _, h := range headers {
		ctx = metadata.AppendToOutgoingContext(ctx, h.Name, h.Value)
	}
	return invoke(ctx, method, request, answer, conn, options...)
}

func (g *GRPC) credentials() credentials.TransportCredentials {
	if !g.endpoint.tls {
		return insecure.NewCredentials()
	}
	return &freshTLS{config: g.config, endpoint: g.endpoint}
}

// freshTLS is TLS that reads its files for every connection.
type freshTLS struct {
	config   Config
	endpoint endpoint
}

// ClientHandshake reads the files and does the handshake. The name that the
// certificate must have is the configured one, which need not be the authority.
func (f *freshTLS) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := f.config.tlsConfig(f.endpoint)
	if err != nil {
		return nil, nil, fmt.Errorf("read TLS files: %w", err)
	}
	return credentials.NewTLS(c).ClientHandshake(ctx, c.ServerName, conn)
}

// ServerHandshake is not for us.
func (f *freshTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("these are a client's credentials")
}

// Info says what the protocol is.
func (f *freshTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone gives the same: there is nothing in it that changes.
func (f *freshTLS) Clone() credentials.TransportCredentials { return f }

// OverrideServerName is deprecated in the interface, and the name is set.
func (f *freshTLS) OverrideServerName(string) error { return nil }
