package pyroscope

import (
	"context"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/partial"
	"github.com/kalypso-dev/kalypso/exporter/transport"
)

// pushPath is the method as Connect has it: a POST with one message in its body.
const pushPath = "/push.v1.PusherService/Push"

// Sender delivers push requests.
type Sender struct {
	transport *transport.HTTP
	ledger    partial.Ledger
}

// NewSender makes a sender. It does not connect before the first request.
func NewSender(c transport.Config) (*Sender, error) {
	t, err := transport.NewHTTP(c)
	if err != nil {
		return nil, err
	}
	return &Sender{transport: t}, nil
}

// pushesAtOnce are the pushes of one request under way at a time. Each takes
// some 0.4 s, until what it brought is stored.
const pushesAtOnce = 8

// Send sends a request and waits for the answers: each profile is a push of its
// own, because the answer to a push of several does not say which of them were
// stored. The profiles are compressed, so that the message need not be.
func (s *Sender) Send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	messages := s.ledger.Each(r)
	answers := make([]error, len(messages))
	var group errgroup.Group
	group.SetLimit(pushesAtOnce)
	for i, message := range messages {
		if message == nil {
			continue
		}
		group.Go(func() error {
			header := http.Header{"Content-Type": {"application/proto"}, "Connect-Protocol-Version": {"1"}}
			_, answers[i] = s.transport.Post(ctx, pushPath, header, message)
			return nil
		})
	}
	_ = group.Wait() // every answer is looked at
	return s.ledger.SettleEach(r, answers)
}

// Close closes the connections.
func (s *Sender) Close() error {
	s.transport.Close()
	return nil
}
