package transport

import "crypto/tls"

// Static is for clients that bring their own way to connect, such as that of the
// agent's own metrics: certificates and headers as their files are now. What
// changes in the files later is not seen.
func (c *Config) Static() (*tls.Config, map[string]string, error) {
	if err := c.Validate(); err != nil {
		return nil, nil, err
	}
	e, err := c.endpoint()
	if err != nil {
		return nil, nil, err
	}
	certificates, err := c.tlsConfig(e)
	if err != nil {
		return nil, nil, err
	}
	list, err := c.headers()
	if err != nil {
		return nil, nil, err
	}
	headers := make(map[string]string, len(list))
	for _, h := range list {
		headers[h.Name] = h.Value
	}
	return certificates, headers, nil
}
