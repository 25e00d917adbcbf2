package transport

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
)

// Header is one header of a request: of HTTP, or metadata of gRPC.
type Header struct{ Name, Value string }

// headers reads what says who we are. An error names the file and the line,
// never what stands there.
func (c *Config) headers() ([]Header, error) {
	var out []Header
	if c.Tenant != "" {
		if !validValue(c.Tenant) {
			return nil, errors.New("the tenant has characters that no header can carry")
		}
		out = append(out, Header{"X-Scope-Orgid", c.Tenant})
	}
	switch {
	case c.TokenFile != "":
		token, err := readSecret(c.TokenFile)
		if err != nil {
			return nil, err
		}
		out = append(out, Header{"Authorization", "Bearer " + token})
	case c.PasswordFile != "":
		password, err := readSecret(c.PasswordFile)
		if err != nil {
			return nil, err
		}
		out = append(out, Header{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+password))})
	}
	if c.HeadersFile == "" {
		return out, nil
	}
	more, err := readHeaders(c.HeadersFile)
	if err != nil {
		return nil, err
	}
	for _, h := range more {
		if slices.ContainsFunc(out, func(o Header) bool { return o.Name == h.Name }) {
			return nil, fmt.Errorf("%s has %s, which another option sets as well", c.HeadersFile, h.Name)
		}
	}
	return append(out, more...), nil
}

// readSecret reads a file that is one secret. The newline that editors put at
// its end is not part of it.
func readSecret(path string) (string, error) {
	data, err := readFile(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(data), "\r\n")
	switch {
	case secret == "":
		return "", fmt.Errorf("%s is empty", path)
	case !validValue(secret):
		return "", fmt.Errorf("%s has characters that no header can carry", path)
	}
	return secret, nil
}

// reserved are headers that belong to the protocols. Setting them would break
// requests in ways that are hard to find.
var reserved = []string{
	"Connection", "Content-Encoding", "Content-Length", "Content-Type", "Host",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent",
}

// readHeaders reads "Name: value" lines. Empty lines and those that begin
// with # are skipped. No name may come twice: gRPC and HTTP disagree on what
// that means.
func readHeaders(path string) ([]Header, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var out []Header
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, fileLimit+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || !validName(name) || !validValue(value) {
			return nil, fmt.Errorf(`%s: line %d is not "Name: value"`, path, n)
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if slices.Contains(reserved, name) || strings.HasPrefix(name, "Grpc-") {
			return nil, fmt.Errorf("%s: line %d sets a header that belongs to the protocol", path, n)
		}
		if slices.ContainsFunc(out, func(h Header) bool { return h.Name == name }) {
			return nil, fmt.Errorf("%s: line %d names a header for the second time", path, n)
		}
		out = append(out, Header{name, value})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

// validName takes what both protocols take: letters, digits, '-', '_' and '.'.
func validName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return s != ""
}

// validValue takes what both protocols take: printable ASCII.
func validValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
