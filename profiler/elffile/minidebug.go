package elffile

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

const (
	maxMiniCompressed = 16 << 20 // Fedora's largest, of libxul, is about 8 MiB
	maxMiniBytes      = 64 << 20
	maxMiniDictionary = 16 << 20 // xz -6, the default, uses 8 MiB
)

var errXZ = errors.New("malformed or unsupported xz data")

// addMiniDebug adds the symbols of .gnu_debugdata: an ELF file, compressed
// with xz, whose .symtab holds the functions that .dynsym lacks. It returns
// the index of their string table, or -1.
func (b *builder) addMiniDebug() int {
	s := b.file.Section(".gnu_debugdata")
	if s == nil || s.Type == elf.SHT_NOBITS || s.FileSize > maxMiniCompressed {
		return -1
	}
	data, err := b.file.SectionData(".gnu_debugdata")
	if err != nil {
		return -1
	}
	data, err = unxz(data, maxMiniBytes)
	if err != nil {
		return -1
	}
	mini, err := NewFile(bytes.NewReader(data), int64(len(data)), ".gnu_debugdata")
	if err != nil || mini.ELF.Class != b.file.ELF.Class || mini.ELF.Data != b.file.ELF.Data {
		return -1
	}
	first := len(b.sources)
	b.addSections(mini, elf.SHT_SYMTAB)
	if len(b.sources) != first+1 {
		b.sources = b.sources[:first] // none, or a file no packager made
		return -1
	}
	return first
}

// unxz decompresses an .xz file of LZMA2 blocks (the .xz file format 1.1.0)
// into at most limit bytes. The container is taken apart here, because the
// library would take whatever dictionary size a block header asks for, up to
// 4 GiB. Checksums are not verified: who can change the file can change them.
func unxz(data []byte, limit int) ([]byte, error) {
	if len(data) < 12 || string(data[:6]) != "\xfd7zXZ\x00" {
		return nil, errXZ
	}
	check := int(data[7] & 15)
	if check > 0 {
		check = 4 << ((check - 1) / 3) // section 2.1.1.2: 4, 8, 16, 32, 64 bytes
	}
	rest := data[12:]
	var out bytes.Buffer
	for len(rest) > 0 && rest[0] != 0 { // a 0 starts the index
		size := (int(rest[0]) + 1) * 4
		if size > len(rest) {
			return nil, errXZ
		}
		dict, err := blockDictionary(rest[:size])
		if err != nil {
			return nil, err
		}
		in := bytes.NewReader(rest[size:])
		r, err := lzma.Reader2Config{DictCap: dict}.NewReader2(in)
		if err != nil {
			return nil, fmt.Errorf("decompress: %w", err)
		}
		if _, err := io.Copy(&out, io.LimitReader(r, int64(limit+1-out.Len()))); err != nil {
			return nil, fmt.Errorf("decompress: %w", err)
		}
		if out.Len() > limit {
			return nil, fmt.Errorf("decompress: more than %d bytes: %w", limit, ErrTooLarge)
		}
		used := len(rest) - in.Len() // the header and the compressed data
		used = (used+3)&^3 + check
		if used > len(rest) {
			return nil, errXZ
		}
		rest = rest[used:]
	}
	return out.Bytes(), nil
}

// blockDictionary reads a block header (section 3.1) that has LZMA2 as its only
// filter and returns the size of the dictionary.
func blockDictionary(head []byte) (int, error) {
	flags := head[1]
	if flags&0x3f != 0 { // more filters, or reserved bits
		return 0, errXZ
	}
	p := head[2:]
	for bit := byte(0x40); bit != 0; bit <<= 1 { // compressed, uncompressed size
		if flags&bit != 0 {
			_, n := binary.Uvarint(p)
			if n <= 0 {
				return 0, errXZ
			}
			p = p[n:]
		}
	}
	if len(p) < 3 || p[0] != 0x21 || p[1] != 1 {
		return 0, errXZ
	}
	size, err := lzma.DecodeDictCap(p[2])
	if err != nil {
		return 0, errXZ
	}
	if size > maxMiniDictionary {
		return 0, fmt.Errorf("xz dictionary of %d bytes: %w", size, ErrTooLarge)
	}
	return int(size), nil
}
