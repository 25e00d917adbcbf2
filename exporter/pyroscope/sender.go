package pyroscope

import (
	"context"
	"net/http"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/transport"
)

// pushPath is the method as Connect has it: a POST with one message in its body.
const pushPath = "/push.v1.PusherService/Push"

// Sender delivers push requests.
type Sender struct{ transport *transport.HTTP }

// NewSender makes a sender. It does not connect before the first request.
func NewSender(c transport.Config) (*Sender, error) {
	t, err := transport.NewHTTP(c)
	if err != nil {
		return nil, err
	}
	return &Sender{t}, nil
}

// Send sends a request and waits for the answer. The profiles in it are
// compressed, so that the message need not be.
func (s *Sender) Send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	header := http.Header{"Content-Type": {"application/proto"}, "Connect-Protocol-Version": {"1"}}
	_, err := s.transport.Post(ctx, pushPath, header, r.Body)
	return exporter.Receipt{}, err
}

// Close closes the connections.
func (s *Sender) Close() error {
	s.transport.Close()
	return nil
}
