package otlp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"go.opentelemetry.io/collector/pdata/pprofile/pprofileotlp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/partial"
	"github.com/kalypso-dev/kalypso/exporter/transport"
)

// exportMethod is the OTLP profiles service.
const exportMethod = "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export"

// grpcSender sends over one connection, which it makes anew after it failed.
type grpcSender struct {
	transport *transport.GRPC
	ledger    partial.Ledger

	mu   sync.Mutex
	conn *grpc.ClientConn // nil: none yet, or it failed
}

func newGRPCSender(c transport.Config) (*grpcSender, error) {
	t, err := transport.NewGRPC(c)
	if err != nil {
		return nil, err
	}
	return &grpcSender{transport: t}, nil
}

// Send sends a request and waits for the answer.
func (s *grpcSender) Send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	receipt, err := s.export(ctx, s.ledger.Left(r))
	return s.ledger.Settle(r, receipt, err)
}

func (s *grpcSender) export(ctx context.Context, message []byte) (exporter.Receipt, error) {
	conn, err := s.connection()
	if err != nil {
		return exporter.Receipt{}, err
	}
	call, cancel := context.WithTimeout(ctx, s.transport.Timeout())
	defer cancel()
	var answer []byte
	err = conn.Invoke(call, exportMethod, message, &answer, grpc.ForceCodecV2(bytesCodec{}), grpc.UseCompressor(gzip.Name))
	if err == nil {
		return readReceipt(answer), nil
	}
	if ctx.Err() != nil {
		return exporter.Receipt{}, ctx.Err()
	}
	if lost(err) {
		s.drop(conn)
	}
	return exporter.Receipt{}, s.classify(err)
}

// Close closes the connection.
func (s *grpcSender) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn = nil
	return conn.Close()
}

func (s *grpcSender) connection() (*grpc.ClientConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return s.conn, nil
	}
	conn, err := s.transport.Connect()
	if err != nil {
		return nil, err
	}
	s.conn = conn
	return conn, nil
}

// drop gives a connection up: the next request looks up the name again, reads
// the certificates again and tells why it fails now, not why one failed before.
func (s *grpcSender) drop(conn *grpc.ClientConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn {
		s.conn = nil
	}
	conn.Close()
}

// lost says whether an error may be the connection's.
func lost(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Unknown:
		return true
	}
	return false
}

// classify says what an answer means for the request.
func (s *grpcSender) classify(err error) error {
	address := s.transport.Address()
	st, ok := status.FromError(err)
	if !ok {
		return transport.Explain(address, err)
	}
	said := &transport.Said{Text: st.Message()}
	refused := &exporter.RefusedError{Err: transport.Answered(address, said, "")}
	switch st.Code() {
	case codes.InvalidArgument:
		return refused
	case codes.ResourceExhausted:
		// gRPC's own words for a message that this server will never take.
		if strings.Contains(st.Message(), "message larger than max") {
			return &exporter.RefusedError{Err: transport.Answered(address, said, "raise the server's limit on message sizes")}
		}
		return busy(transport.Answered(address, said, ""), st)
	case codes.Unauthenticated, codes.PermissionDenied:
		return transport.Unaccepted(address, said)
	case codes.Unimplemented:
		return transport.Missing(address, exportMethod)
	case codes.Unknown, codes.Internal:
		if transport.Invalid(st.Message()) {
			return refused
		}
		return transport.Explain(address, errors.New(st.Message()))
	case codes.Unavailable:
		err := transport.Explain(address, errors.New(st.Message()))
		if retryInfo(st) != nil {
			return busy(err, st)
		}
		return err
	case codes.DeadlineExceeded:
		return transport.Explain(address, context.DeadlineExceeded)
	}
	return transport.Answered(address, fmt.Errorf("%w (%s)", said, st.Code()), "")
}

func busy(err error, st *status.Status) error {
	out := &exporter.BusyError{Err: err}
	if info := retryInfo(st); info != nil {
		out.After = transport.RetryAfter(info.GetRetryDelay().AsDuration())
	}
	return out
}

func retryInfo(st *status.Status) *errdetails.RetryInfo {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info
		}
	}
	return nil
}

// readReceipt reads the answer to a request that was taken. One that cannot be
// read changes nothing about that.
func readReceipt(answer []byte) exporter.Receipt {
	response := pprofileotlp.NewExportResponse()
	if err := response.UnmarshalProto(answer); err != nil {
		return exporter.Receipt{Message: "taken, with an answer that cannot be read"}
	}
	partial := response.PartialSuccess()
	return exporter.Receipt{
		RejectedProfiles: int(partial.RejectedProfiles()),
		Message:          transport.Line(partial.ErrorMessage()),
	}
}

// bytesCodec sends bytes as they are and gives the answer's bytes: requests
// were encoded once, maybe by an agent that is no more.
type bytesCodec struct{}

// Marshal takes a []byte.
func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("send a %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal takes a *[]byte.
func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("receive into a %T", v)
	}
	*b = data.Materialize()
	return nil
}

// Name is that of the codec whose messages these are.
func (bytesCodec) Name() string { return "proto" }

var _ encoding.CodecV2 = bytesCodec{}
