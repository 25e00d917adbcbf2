package otlp

import (
	"fmt"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/transport"
)

// Protocol is how requests travel.
type Protocol uint8

// The protocols of OTLP.
const (
	GRPC Protocol = iota
	HTTP
)

// NewSender makes a sender. It does not connect before the first request.
func NewSender(c transport.Config, p Protocol) (exporter.Sender, error) {
	switch p {
	case GRPC:
		return newGRPCSender(c)
	case HTTP:
		return newHTTPSender(c)
	}
	return nil, fmt.Errorf("no protocol %d", p)
}
