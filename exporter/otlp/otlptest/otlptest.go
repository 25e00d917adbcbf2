// Package otlptest is a backend for tests: it takes OTLP profiles over gRPC and
// HTTP on one port, as Pyroscope does, with the server that pdata has. It can
// be told to behave as badly as backends do, and keeps what it took, so that a
// test can compare sums to the sample.
//
// It is for tests only; nothing that ships imports it.
package otlptest

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pprofile"
	"go.opentelemetry.io/collector/pdata/pprofile/pprofileotlp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // takes compressed requests
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Mode is how a receiver treats the requests to come.
type Mode uint8

// The modes. Only Accept, Slow and HalfAccept take samples.
const (
	Accept          Mode = iota
	Slow                 // takes the request, and answers after Options.Delay
	HalfAccept           // takes every other profile, and says how many it did not
	Refuse               // InvalidArgument, HTTP 400
	RefuseOddly          // the same with the words of Pyroscope under another code: Unknown, HTTP 500
	TooLarge             // HTTP 413, and gRPC's own words for a message over the limit
	Unauthenticated      // Unauthenticated, HTTP 401
	RateLimit            // ResourceExhausted, HTTP 429, with no word on when to come again
	RateLimitAfter       // the same with Options.RetryAfter
	Unavailable          // Unavailable, HTTP 503
	Stall                // no answer until the sender leaves
	Reset                // the connection is reset when the request was read
	LoseAnswer           // takes the request, and resets the connection instead of an answer
)

// Options are what a receiver is from the start.
type Options struct {
	TLS        bool          // with a certificate for 127.0.0.1 and localhost; see CAFile
	Expired    bool          // the certificate has expired; see Renew
	ClientCert bool          // asks for a client certificate; see ClientFiles
	Header     http.Header   // that each request must have; else Unauthenticated
	Mode       Mode          // from the start
	Delay      time.Duration // of Slow
	RetryAfter time.Duration // of RateLimitAfter, in whole seconds for HTTP
	// Away leaves the port closed until Listen is called.
	Away bool
	// Discard keeps only sums of what was taken, for tests that take long.
	Discard bool
}

// Received is a request that was taken.
type Received struct {
	At       time.Time
	Header   http.Header // or the metadata of gRPC
	Bytes    int         // of the message, not compressed
	Profiles pprofile.Profiles
	Samples  uint64 // of the profiles that were accepted
}

// Receiver is a backend that runs until the test ends.
type Receiver struct {
	t       testing.TB
	options Options
	address string
	pki     *pki

	mu       sync.Mutex
	server   *http.Server
	grpc     *grpc.Server
	done     chan struct{} // the server's goroutine has ended
	mode     Mode
	received []Received
	samples  uint64
	rejected uint64
	attempts int
}

// Start starts a receiver.
func Start(t testing.TB, o Options) *Receiver {
	t.Helper()
	r := &Receiver{t: t, options: o, mode: o.Mode}
	if o.TLS {
		r.pki = newPKI(t, o.Expired)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	r.address = listener.Addr().String()
	if o.Away {
		listener.Close()
	} else {
		r.serve(listener)
	}
	t.Cleanup(r.Leave)
	return r
}

// Endpoint is HOST:PORT of the receiver, there or away.
func (r *Receiver) Endpoint() string { return r.address }

// Fail sets how requests are treated from now on; Accept ends it.
func (r *Receiver) Fail(m Mode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mode = m
}

// Leave closes the port and every connection. Requests that were taken are
// answered first: where the answer is lost, it is sent again and comes twice, which
// is for LoseAnswer to bring about and not for chance.
func (r *Receiver) Leave() {
	r.mu.Lock()
	server, grpcServer, done := r.server, r.grpc, r.done
	r.server = nil
	r.mu.Unlock()
	if server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	if server.Shutdown(ctx) != nil { // one that is stalled
		server.Close()
	}
	<-done
	grpcServer.Stop()
}

// leaveLimit is far more than an answer takes, and less than any outage in a test.
const leaveLimit = 500 * time.Millisecond

// Listen opens the port again.
func (r *Receiver) Listen() {
	r.t.Helper()
	var listener net.Listener
	var err error
	// Somebody's outgoing connection may have the port for a moment.
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if listener, err = net.Listen("tcp", r.address); err == nil {
			r.serve(listener)
			return
		}
	}
	r.t.Fatalf("listen on %s again: %v", r.address, err)
}

// Samples is the sum of the values of all samples that were taken.
func (r *Receiver) Samples() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.samples
}

// Rejected is the sum of the values of samples that were not taken while
// others of their request were.
func (r *Receiver) Rejected() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rejected
}

// Attempts is the number of requests, taken or not.
func (r *Receiver) Attempts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attempts
}

// Received gives the requests that were taken, oldest first.
func (r *Receiver) Received() []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Received(nil), r.received...)
}

// Wait waits until the receiver took that many samples, and fails the test if
// it does not within the time, or takes more.
func (r *Receiver) Wait(samples uint64, within time.Duration) {
	r.t.Helper()
	for deadline := time.Now().Add(within); r.Samples() < samples && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if got := r.Samples(); got != samples {
		r.t.Fatalf("the receiver took %d samples within %s, want %d", got, within, samples)
	}
}

type connKey struct{}

func (r *Receiver) serve(listener net.Listener) {
	// The streams of gRPC end with the connections of the HTTP server.
	g := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	pprofileotlp.RegisterGRPCServer(g, &service{receiver: r})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1development/profiles", r.http)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Protocols:   protocols,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:    discardLog(),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.ProtoMajor == 2 && strings.HasPrefix(q.Header.Get("Content-Type"), "application/grpc") {
				g.ServeHTTP(w, q)
				return
			}
			mux.ServeHTTP(w, q)
		}),
	}
	if r.pki != nil {
		server.TLSConfig = r.pki.serverConfig(r.options.ClientCert)
		server.TLSConfig.NextProtos = []string{"h2", "http/1.1"}
		listener = tls.NewListener(listener, server.TLSConfig)
	}
	done := make(chan struct{})
	r.mu.Lock()
	r.server, r.grpc, r.done = server, g, done
	r.mu.Unlock()
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends with Leave
	}()
}

// begin counts an attempt and says how to treat it.
func (r *Receiver) begin() Mode {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attempts++
	return r.mode
}

func (r *Receiver) knows(h http.Header) bool {
	for name, values := range r.options.Header {
		if h.Get(name) != values[0] {
			return false
		}
	}
	return true
}

// take keeps what a request brought and gives the number of profiles that it
// does not accept.
func (r *Receiver) take(m Mode, header http.Header, bytes int, p pprofile.Profiles) int64 {
	var taken, left uint64
	var rejected int64
	n := 0
	for _, rp := range p.ResourceProfiles().All() {
		for _, sp := range rp.ScopeProfiles().All() {
			for _, profile := range sp.Profiles().All() {
				if n++; m == HalfAccept && n%2 == 0 {
					left += sum(profile)
					rejected++
				} else {
					taken += sum(profile)
				}
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.samples += taken
	r.rejected += left
	if !r.options.Discard {
		r.received = append(r.received, Received{time.Now(), header.Clone(), bytes, p, taken})
	}
	return rejected
}

func sum(p pprofile.Profile) uint64 {
	var n uint64
	for _, s := range p.Samples().All() {
		for _, v := range s.Values().All() {
			n += uint64(v)
		}
	}
	return n
}

// linger is what the modes do that have no answer. It says whether there is
// still somebody to answer.
func (r *Receiver) linger(ctx context.Context, m Mode) bool {
	switch m {
	case Slow:
		select {
		case <-time.After(r.options.Delay):
		case <-ctx.Done():
			return false
		}
	case Stall:
		<-ctx.Done()
		return false
	case Reset, LoseAnswer:
		if c, ok := ctx.Value(connKey{}).(net.Conn); ok {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetLinger(0) // closing sends a reset
			}
			c.Close()
		}
		return false
	}
	return true
}

const (
	oddRefusal  = "failed to make a GRPC request: rpc error: code = InvalidArgument desc = profile refused by the test"
	notAllOfIt  = "every other profile refused by the test"
	tooLarge    = "grpc: received message larger than max (5000000 vs. 4194304)"
	rateLimited = "push rate limit (4 MiB) exceeded while adding 600 KiB"
)

// service is the gRPC side.
type service struct {
	pprofileotlp.UnimplementedGRPCServer
	receiver *Receiver
}

// Export treats a request as the mode says.
func (s *service) Export(ctx context.Context, q pprofileotlp.ExportRequest) (pprofileotlp.ExportResponse, error) {
	r, m := s.receiver, s.receiver.begin()
	none := pprofileotlp.NewExportResponse()
	header := fromMetadata(ctx)
	if !r.knows(header) {
		m = Unauthenticated
	}
	switch m {
	case Refuse:
		return none, status.Error(codes.InvalidArgument, "profile refused by the test")
	case RefuseOddly:
		return none, status.Error(codes.Unknown, oddRefusal)
	case TooLarge:
		return none, status.Error(codes.ResourceExhausted, tooLarge)
	case Unauthenticated:
		return none, status.Error(codes.Unauthenticated, "no org id")
	case RateLimit:
		return none, status.Error(codes.ResourceExhausted, rateLimited)
	case RateLimitAfter:
		st, err := status.New(codes.ResourceExhausted, rateLimited).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(r.options.RetryAfter)})
		if err != nil {
			return none, err
		}
		return none, st.Err()
	case Unavailable:
		return none, status.Error(codes.Unavailable, "going away")
	}
	if m == Stall || m == Reset {
		r.linger(ctx, m)
		return none, status.FromContextError(ctx.Err()).Err()
	}
	body, err := q.MarshalProto()
	if err != nil {
		return none, err
	}
	rejected := r.take(m, header, len(body), q.Profiles())
	r.linger(ctx, m)
	answer := pprofileotlp.NewExportResponse()
	if rejected > 0 {
		answer.PartialSuccess().SetRejectedProfiles(rejected)
		answer.PartialSuccess().SetErrorMessage(notAllOfIt)
	}
	return answer, nil
}

// http treats a request over HTTP as the mode says.
func (r *Receiver) http(w http.ResponseWriter, q *http.Request) {
	m := r.begin()
	if !r.knows(q.Header) {
		m = Unauthenticated
	}
	body, ok := read(w, q)
	if !ok {
		return
	}
	switch m {
	case Refuse:
		http.Error(w, "profile refused by the test", http.StatusBadRequest)
		return
	case RefuseOddly:
		http.Error(w, oddRefusal, http.StatusInternalServerError)
		return
	case TooLarge:
		http.Error(w, "uncompressed profile payload size exceeds limit of 4 MB", http.StatusRequestEntityTooLarge)
		return
	case Unauthenticated:
		http.Error(w, `{"code":"unauthenticated","message":"no org id"}`, http.StatusUnauthorized)
		return
	case RateLimitAfter:
		w.Header().Set("Retry-After", strconv.Itoa(int(r.options.RetryAfter/time.Second)))
		fallthrough
	case RateLimit:
		http.Error(w, rateLimited, http.StatusTooManyRequests)
		return
	case Unavailable:
		http.Error(w, "going away", http.StatusServiceUnavailable)
		return
	case Stall, Reset:
		r.linger(q.Context(), m)
		return
	}
	r.accept(w, q, m, body)
}

func (r *Receiver) accept(w http.ResponseWriter, q *http.Request, m Mode, body []byte) {
	request := pprofileotlp.NewExportRequest()
	if err := request.UnmarshalProto(body); err != nil {
		http.Error(w, "Failed to parse protobuf request", http.StatusBadRequest)
		return
	}
	rejected := r.take(m, q.Header, len(body), request.Profiles())
	if !r.linger(q.Context(), m) {
		return
	}
	answer := pprofileotlp.NewExportResponse()
	if rejected > 0 {
		answer.PartialSuccess().SetRejectedProfiles(rejected)
		answer.PartialSuccess().SetErrorMessage(notAllOfIt)
	}
	out, err := answer.MarshalProto()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(out)
}

// read reads a body as Pyroscope does: these content types, gzip or nothing.
func read(w http.ResponseWriter, q *http.Request) ([]byte, bool) {
	switch q.Header.Get("Content-Type") {
	case "application/x-protobuf", "application/protobuf":
	default:
		http.Error(w, "Unsupported Content-Type", http.StatusUnsupportedMediaType)
		return nil, false
	}
	var from io.Reader = q.Body
	if q.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(q.Body)
		if err != nil {
			http.Error(w, "Failed to read request body", http.StatusBadRequest)
			return nil, false
		}
		from = z
	}
	body, err := io.ReadAll(from)
	if err != nil {
		http.Error(w, "Failed to read request body", http.StatusBadRequest)
		return nil, false
	}
	return body, true
}
