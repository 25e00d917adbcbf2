package spool

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"time"

	"github.com/kalypso-dev/kalypso/exporter"
)

// A spool file is a header and a body. All numbers are little-endian.
//
//	 0  8  magic "KLPSPOOL"
//	 8  2  version of the format
//	10  2  length of the header, its checksum included
//	12  4  profiles in the request
//	16  8  samples in them
//	24  8  time of the request, nanoseconds since 1970
//	32  4  length of the request's body
//	36  4  length of the body as stored, gzipped
//	40  4  CRC-32C of the body as stored
//	44  4  CRC-32C of the header before this
//	48     the body
//
// Every later version has the first twelve bytes and ends its header with the
// checksum, so that a file of a newer version can be told from a broken one.
const (
	magic        = "KLPSPOOL"
	version      = 1
	headerSize   = 48
	maxHeader    = 512 // of any version
	checksumSize = 4
)

// MaxBody is the size of the largest request that a spool takes. It bounds what
// reading a file may cost in memory, whatever its header says.
const MaxBody = 64 << 20

// maxStored is the size of the largest body as stored: gzip adds 5 bytes to
// each 64 KiB that it cannot make smaller, and 18 for its own header.
const maxStored = MaxBody + MaxBody>>10

var (
	errCorrupt = errors.New("corrupt spool file")
	errNewer   = errors.New("spool file of a newer version")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what a spool file says of its request.
type header struct {
	time     time.Time
	profiles int
	samples  uint64
	body     int // length
	stored   int // length, gzipped
	checksum uint32
}

// size is that of the whole file.
func (h *header) size() int64 { return headerSize + int64(h.stored) }

// count is what the request adds to a figure of Stats.
func (h *header) count() Count { return Count{Requests: 1, Samples: h.samples} }

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errCorrupt, fmt.Sprintf(format, args...))
}

// encode gives the bytes of a request's file.
func encode(r *exporter.Request, zip *gzip.Writer) (header, []byte) {
	var out bytes.Buffer
	out.Grow(headerSize + len(r.Body)/4)
	out.Write(make([]byte, headerSize))
	zip.Reset(&out)
	// A bytes.Buffer takes everything, so neither call has an error to give.
	_, _ = zip.Write(r.Body)
	_ = zip.Close()
	file := out.Bytes()
	h := header{
		time:     time.Unix(0, r.Time.UnixNano()),
		profiles: r.Profiles,
		samples:  r.Samples,
		body:     len(r.Body),
		stored:   len(file) - headerSize,
		checksum: crc32.Checksum(file[headerSize:], castagnoli),
	}
	h.put(file[:headerSize])
	return h, file
}

func (h *header) put(b []byte) {
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint16(b[8:], version)
	le.PutUint16(b[10:], headerSize)
	le.PutUint32(b[12:], uint32(h.profiles))
	le.PutUint64(b[16:], h.samples)
	le.PutUint64(b[24:], uint64(h.time.UnixNano()))
	le.PutUint32(b[32:], uint32(h.body))
	le.PutUint32(b[36:], uint32(h.stored))
	le.PutUint32(b[40:], h.checksum)
	le.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
}

// parseHeader reads the header that a file begins with. The error is
// errCorrupt or errNewer, with details.
func parseHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	if len(b) < headerSize {
		return header{}, corrupt("%d bytes, shorter than a header", len(b))
	}
	if string(b[:len(magic)]) != magic {
		return header{}, corrupt("does not begin with %q", magic)
	}
	length := int(le.Uint16(b[10:]))
	if length < headerSize || length > maxHeader || length > len(b) {
		return header{}, corrupt("a header of %d bytes", length)
	}
	if end := length - checksumSize; crc32.Checksum(b[:end], castagnoli) != le.Uint32(b[end:]) {
		return header{}, corrupt("checksum of the header")
	}
	switch v := le.Uint16(b[8:]); {
	case v > version:
		return header{}, fmt.Errorf("%w: %d", errNewer, v)
	case v < version || length != headerSize:
		return header{}, corrupt("version %d with a header of %d bytes", v, length)
	}
	h := header{
		time:     time.Unix(0, int64(le.Uint64(b[24:]))),
		samples:  le.Uint64(b[16:]),
		checksum: le.Uint32(b[40:]),
	}
	profiles, body, stored := le.Uint32(b[12:]), le.Uint32(b[32:]), le.Uint32(b[36:])
	if profiles > math.MaxInt32 || body > MaxBody || stored > maxStored {
		return header{}, corrupt("says %d profiles, a body of %d bytes, stored in %d", profiles, body, stored)
	}
	h.profiles, h.body, h.stored = int(profiles), int(body), int(stored)
	return h, nil
}

// decode gives the request of a file. The error is errCorrupt or errNewer,
// with details. It takes no more memory than a body of MaxBody.
func decode(file []byte) (*exporter.Request, error) {
	h, err := parseHeader(file)
	if err != nil {
		return nil, err
	}
	if int64(len(file)) != h.size() {
		return nil, corrupt("%d bytes, where its header says %d", len(file), h.size())
	}
	stored := file[headerSize:]
	if crc32.Checksum(stored, castagnoli) != h.checksum {
		return nil, corrupt("checksum of the body")
	}
	zip, err := gzip.NewReader(bytes.NewReader(stored))
	if err != nil {
		return nil, corrupt("%v", err)
	}
	zip.Multistream(false)
	var body bytes.Buffer
	// Deflate makes at most 1032 bytes out of one: a length above that is a
	// lie, and not a reason to ask for memory.
	body.Grow(min(h.body, 1032*h.stored) + bytes.MinRead)
	n, err := io.Copy(&body, io.LimitReader(zip, int64(h.body)+1))
	if err != nil {
		return nil, corrupt("%v", err)
	}
	if n != int64(h.body) {
		return nil, corrupt("a body of other length than the %d bytes its header says", h.body)
	}
	return &exporter.Request{Time: h.time, Profiles: h.profiles, Samples: h.samples, Body: body.Bytes()}, nil
}
