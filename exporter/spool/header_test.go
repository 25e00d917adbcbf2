package spool

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/exporter"
)

func encoded(t testing.TB, r *exporter.Request) []byte {
	t.Helper()
	zip, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	_, file := encode(r, zip)
	return file
}

func sample(t testing.TB) []byte {
	return encoded(t, &exporter.Request{
		Time: time.Unix(1795379475, 123456789), Profiles: 20, Samples: 9917,
		Body: bytes.Repeat([]byte("a stack, and another stack. "), 40),
	})
}

// sealed corrects the checksum of a header that was changed.
func sealed(file []byte, length int) []byte {
	binary.LittleEndian.PutUint32(file[length-4:], crc32.Checksum(file[:length-4], castagnoli))
	return file
}

func TestDecodeGivesWhatWasEncoded(t *testing.T) {
	for name, r := range map[string]*exporter.Request{
		"a request":                       {Time: time.Unix(1795379475, 1), Profiles: 7, Samples: 1 << 40, Body: []byte("body")},
		"an empty body":                   {Time: time.Unix(1795379475, 0), Profiles: 0, Samples: 0},
		"a time before 1970":              {Time: time.Unix(-5, 7), Samples: 1, Body: []byte("x")},
		"one that cannot be made smaller": incompressible(1, 100_000),
		"one that can very much":          {Time: time.Unix(1, 0), Body: make([]byte, 1<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decode(encoded(t, r))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(r, got, cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	file := sample(t)
	for i := range file {
		for bit := range 8 {
			broken := bytes.Clone(file)
			broken[i] ^= 1 << bit
			if _, err := decode(broken); !errors.Is(err, errCorrupt) {
				t.Errorf("bit %d of byte %d: %v", bit, i, err)
			}
		}
	}
}

func TestEveryTruncationIsNoticed(t *testing.T) {
	file := sample(t)
	for n := range file {
		if _, err := decode(file[:n]); !errors.Is(err, errCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, len(file), err)
		}
	}
	if _, err := decode(append(bytes.Clone(file), 0)); !errors.Is(err, errCorrupt) {
		t.Errorf("a byte too many: %v", err)
	}
}

func TestHeaderThatLies(t *testing.T) {
	le := binary.LittleEndian
	tests := map[string]struct {
		change func(file []byte)
		want   error
	}{
		"a body of 4 GiB":              {func(f []byte) { le.PutUint32(f[32:], 0xffffffff) }, errCorrupt},
		"a body longer than it is":     {func(f []byte) { le.PutUint32(f[32:], MaxBody) }, errCorrupt},
		"a body shorter than it is":    {func(f []byte) { le.PutUint32(f[32:], 3) }, errCorrupt},
		"stored in 4 GiB":              {func(f []byte) { le.PutUint32(f[36:], 0xffffffff) }, errCorrupt},
		"stored in nothing":            {func(f []byte) { le.PutUint32(f[36:], 0) }, errCorrupt},
		"stored in more than there is": {func(f []byte) { le.PutUint32(f[36:], maxStored) }, errCorrupt},
		"4 billion profiles":           {func(f []byte) { le.PutUint32(f[12:], 0xffffffff) }, errCorrupt},
		"version 0":                    {func(f []byte) { le.PutUint16(f[8:], 0) }, errCorrupt},
		"version 2":                    {func(f []byte) { le.PutUint16(f[8:], 2) }, errNewer},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			file := sample(t)
			tt.change(file)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := decode(sealed(file, headerSize))
			runtime.ReadMemStats(&after)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("decoding %d bytes took %d bytes of memory", len(file), n)
			}
		})
	}
	t.Run("a header of a newer version may be longer", func(t *testing.T) {
		file := append(sample(t)[:headerSize:headerSize], make([]byte, 200)...)
		le.PutUint16(file[8:], 7)
		le.PutUint16(file[10:], 200)
		if _, err := parseHeader(sealed(file, 200)); !errors.Is(err, errNewer) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	file := sample(f)
	f.Add(file)
	f.Add(file[:headerSize])
	f.Add(file[:len(file)-1])
	f.Add([]byte{})
	f.Add([]byte(magic))
	f.Add(encoded(f, &exporter.Request{}))
	newer := bytes.Clone(file)
	binary.LittleEndian.PutUint16(newer[8:], 2)
	f.Add(sealed(newer, headerSize))
	long := bytes.Clone(file)
	binary.LittleEndian.PutUint32(long[32:], MaxBody)
	f.Add(sealed(long, headerSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		// A checksum that is right lets the fuzzer past it.
		for _, file := range [][]byte{data, repaired(data)} {
			r, err := decode(file)
			switch {
			case errors.Is(err, errCorrupt), errors.Is(err, errNewer):
				continue
			case err != nil:
				t.Fatalf("neither corrupt nor newer: %v", err)
			}
			again, err := decode(encoded(t, r))
			if err != nil {
				t.Fatalf("decoded once, not twice: %v", err)
			}
			if !again.Time.Equal(r.Time) || again.Samples != r.Samples || again.Profiles != r.Profiles || !bytes.Equal(again.Body, r.Body) {
				t.Fatalf("%+v became %+v", r, again)
			}
		}
	})
}

// repaired is the file with both checksums as they should be.
func repaired(data []byte) []byte {
	if len(data) < headerSize {
		return data
	}
	file := bytes.Clone(data)
	binary.LittleEndian.PutUint32(file[40:], crc32.Checksum(file[headerSize:], castagnoli))
	return sealed(file, headerSize)
}
