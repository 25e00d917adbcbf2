package otlp

import (
	"bytes"
	"context"
	"net/http"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/internal/gz"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/partial"
	"github.com/kalypso-dev/kalypso/exporter/transport"
)

// httpPath is where OTLP profiles are taken.
const httpPath = "/v1development/profiles"

// contentType is one of the three that Pyroscope takes, letter by letter.
const contentType = "application/x-protobuf"

type httpSender struct {
	transport *transport.HTTP
	ledger    partial.Ledger
}

func newHTTPSender(c transport.Config) (*httpSender, error) {
	t, err := transport.NewHTTP(c)
	if err != nil {
		return nil, err
	}
	return &httpSender{transport: t}, nil
}

// Send sends a request and waits for the answer.
func (s *httpSender) Send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	receipt, err := s.post(ctx, s.ledger.Left(r))
	return s.ledger.Settle(r, receipt, err)
}

func (s *httpSender) post(ctx context.Context, message []byte) (exporter.Receipt, error) {
	var body bytes.Buffer
	if err := gz.Write(&body, gz.Small, message); err != nil {
		return exporter.Receipt{}, err
	}
	header := http.Header{"Content-Type": {contentType}, "Content-Encoding": {"gzip"}}
	answer, err := s.transport.Post(ctx, httpPath, header, body.Bytes())
	if err != nil {
		return exporter.Receipt{}, err
	}
	return readReceipt(answer), nil
}

// Close closes the connections.
func (s *httpSender) Close() error {
	s.transport.Close()
	return nil
}
