package dwarf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

const fuzzText = 0x401000

// wrap makes an ELF file of a code section and debug sections.
func wrap(sections map[string][]byte) []byte {
	names := []string{"info", "abbrev", "line", "ranges", "rnglists", "addr", "str", "line_str", "str_offsets", "aranges", "types"}
	strtab := []byte("\x00.text\x00.shstrtab\x00")
	type header struct {
		name, kind            uint32
		flags, addr, off, len uint64
	}
	headers := []header{{}, {name: 1, kind: uint32(elf.SHT_NOBITS), flags: uint64(elf.SHF_ALLOC | elf.SHF_EXECINSTR), addr: fuzzText, off: 64, len: 0x1000}}
	body := make([]byte, 64)
	for _, n := range names {
		if len(sections[n]) == 0 {
			continue
		}
		headers = append(headers, header{name: uint32(len(strtab)), kind: uint32(elf.SHT_PROGBITS), off: uint64(len(body)), len: uint64(len(sections[n]))})
		strtab = append(strtab, ".debug_"+n+"\x00"...)
		body = append(body, sections[n]...)
	}
	headers = append(headers, header{name: 7, kind: uint32(elf.SHT_STRTAB), off: uint64(len(body)), len: uint64(len(strtab))})
	body = append(body, strtab...)
	le := binary.LittleEndian
	copy(body, "\x7fELF\x02\x01\x01")
	le.PutUint16(body[16:], uint16(elf.ET_EXEC))
	le.PutUint16(body[18:], uint16(elf.EM_X86_64))
	le.PutUint32(body[20:], 1)
	le.PutUint64(body[40:], uint64(len(body)))
	le.PutUint16(body[52:], 64)
	le.PutUint16(body[54:], 56)
	le.PutUint16(body[58:], 64)
	le.PutUint16(body[60:], uint16(len(headers)))
	le.PutUint16(body[62:], uint16(len(headers)-1))
	for _, h := range headers {
		body = le.AppendUint32(body, h.name)
		body = le.AppendUint32(body, h.kind)
		for _, v := range []uint64{h.flags, h.addr, h.off, h.len, 0, 1, 0} {
			body = le.AppendUint64(body, v)
		}
	}
	return body
}

func openBytes(file []byte, o Options) (*Data, error) {
	f, err := elffile.NewFile(bytes.NewReader(file), int64(len(file)), "fuzz")
	if err != nil {
		return nil, err
	}
	return o.Open(f, nil)
}

// probe looks many addresses up and checks what holds for any input.
func probe(t *testing.T, d *Data, addrs []uint64) {
	t.Helper()
	start := time.Now()
	for _, a := range addrs {
		calls, err := d.Lookup(nil, a)
		if err == nil && len(calls) == 0 {
			t.Fatalf("Lookup(%#x): neither calls nor an error", a)
		}
		for i, c := range calls {
			if i < len(calls)-1 && !c.Inlined {
				t.Fatalf("Lookup(%#x): call %d of %d is not inlined", a, i, len(calls))
			}
		}
		if d.cache.bytes > d.cache.budget {
			t.Fatalf("cache has %d bytes, budget %d", d.cache.bytes, d.cache.budget)
		}
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Fatalf("took %v", took)
	}
}

func fuzzAddrs() []uint64 {
	var a []uint64
	for i := uint64(0); i < 0x1000; i += 0x81 {
		a = append(a, fuzzText+i)
	}
	return append(a, fuzzText+0xfff, 0, ^uint64(0))
}

// seedFiles are programs of this machine's compilers, as far as installed.
func seedFiles(f *testing.F) (files [][]byte) {
	f.Helper()
	dir := source(f)
	for _, args := range [][]string{
		{"gcc", "-O2", "-g", "-gdwarf-5", "calls.c", "tree.c"},
		{"gcc", "-O2", "-g", "-gdwarf-4", "calls.c", "tree.c"},
		{"gcc", "-O2", "-g", "-gdwarf-2", "tree.c", "calls.c"},
		{"clang-19", "-O2", "-g", "-gdwarf-5", "calls.c", "tree.c"},
		{"gcc", "-O2", "-g", "-gz=zlib", "calls.c", "tree.c"},
	} {
		out := filepath.Join(dir, "seed")
		cmd := exec.Command(args[0], append(args[1:], "-o", out)...)
		cmd.Dir = dir
		if cmd.Run() != nil {
			continue
		}
		if data, err := os.ReadFile(out); err == nil {
			files = append(files, data)
		}
	}
	return files
}

func sectionOf(f *testing.F, file []byte, name string) []byte {
	f.Helper()
	ef, err := elffile.NewFile(bytes.NewReader(file), int64(len(file)), "seed")
	if err != nil {
		f.Fatal(err)
	}
	data, _ := ef.SectionData(".debug_" + name)
	return data
}

// FuzzDIEs feeds abbreviations and a unit's DIEs: functions, inlined calls,
// names and their origins.
func FuzzDIEs(f *testing.F) {
	f.Add(handAbbrev(), handInfo(), []byte("main\x00inner\x00"))
	for _, file := range seedFiles(f) {
		f.Add(sectionOf(f, file, "abbrev"), sectionOf(f, file, "info"), sectionOf(f, file, "str"))
	}
	f.Fuzz(func(t *testing.T, abbrev, info, str []byte) {
		d, err := openBytes(wrap(map[string][]byte{"abbrev": abbrev, "info": info, "str": str, "types": info}), Options{Budget: 1 << 20})
		if err != nil {
			return
		}
		probe(t, d, fuzzAddrs())
		for off := uint64(0); off < uint64(len(info)); off += 7 {
			d.work = maxWork
			d.name(&d.main.info, off, 0)
		}
	})
}

// FuzzLineProgram feeds a line table to a well-formed unit.
func FuzzLineProgram(f *testing.F) {
	for _, file := range seedFiles(f) {
		f.Add(sectionOf(f, file, "line"), sectionOf(f, file, "line_str"))
	}
	f.Add(handLine(), []byte("dir\x00file\x00"))
	f.Fuzz(func(t *testing.T, line, lineStr []byte) {
		d, err := openBytes(wrap(map[string][]byte{
			"abbrev": handAbbrev(), "info": handInfo(), "line": line, "line_str": lineStr, "str": []byte("main\x00inner\x00"),
		}), Options{Budget: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		probe(t, d, fuzzAddrs())
		if u, err := d.unit(&d.main.info.units[0]); err == nil {
			for i := range uint32(20) {
				d.fileName(u, i)
			}
		}
	})
}

// FuzzRanges feeds range lists, addresses and .debug_aranges.
func FuzzRanges(f *testing.F) {
	for _, file := range seedFiles(f) {
		f.Add(sectionOf(f, file, "ranges"), sectionOf(f, file, "rnglists"), sectionOf(f, file, "addr"), sectionOf(f, file, "aranges"), uint64(0), true)
	}
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7}, []byte{7, 0, 0x10, 0x40, 0, 0, 0, 0, 0, 0x20, 0}, []byte{}, []byte{}, uint64(0), false)
	f.Fuzz(func(t *testing.T, ranges, rnglists, addr, aranges []byte, off uint64, byIndex bool) {
		d, err := openBytes(wrap(map[string][]byte{
			"abbrev": handAbbrev(), "info": handInfo(), "ranges": ranges, "rnglists": rnglists, "addr": addr, "aranges": aranges,
		}), Options{Budget: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		probe(t, d, fuzzAddrs())
		v := value{form: formSecOffset, u: off}
		if byIndex {
			v.form = formRnglistx
		}
		for _, version := range []uint8{2, 4, 5} {
			for _, size := range []uint8{4, 8} {
				d.work = 1 << 14
				h := unitHead{version: version, addrSize: size}
				d.rangeList(d.main, &h, &bases{low: fuzzText, rnglist: 12, addr: 8}, v, func(low, high uint64) bool {
					if from, to, ok := d.clip(low, high); ok && (from >= to || to > 0x1000) {
						t.Fatalf("clip(%#x, %#x) gave %#x, %#x", low, high, from, to)
					}
					return true
				})
			}
		}
	})
}

// FuzzLookup overwrites parts of real programs.
func FuzzLookup(f *testing.F) {
	files := seedFiles(f)
	for i := range files {
		f.Add(uint8(i), uint8(0), uint32(20), []byte{0xff, 0xff})
		f.Add(uint8(i), uint8(1), uint32(3), []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01})
		f.Add(uint8(i), uint8(2), uint32(12), []byte{0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, which, section uint8, at uint32, patch []byte) {
		if len(files) == 0 || len(patch) == 0 {
			return
		}
		file := bytes.Clone(files[int(which)%len(files)])
		ef, err := elf.NewFile(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		names := []string{".debug_info", ".debug_abbrev", ".debug_line", ".debug_aranges", ".debug_rnglists", ".debug_ranges", ".debug_str_offsets", ".debug_addr", ".debug_line_str"}
		if s := ef.Section(names[int(section)%len(names)]); s != nil && s.FileSize > 0 {
			copy(file[s.Offset+uint64(at)%s.FileSize:s.Offset+s.FileSize], patch)
		}
		d, err := openBytes(file, Options{Budget: 1 << 20, InflateBytes: 4 << 20})
		if err != nil {
			return
		}
		var addrs []uint64
		text := ef.Section(".text")
		for a := text.Addr; a < text.Addr+text.Size; a += 37 {
			addrs = append(addrs, a)
		}
		probe(t, d, addrs)
	})
}

// handAbbrev is: 1 a unit, 2 a function, 3 an inlined call by ref4, 4 an
// abstract function.
func handAbbrev() []byte {
	return []byte{
		1, 0x11, 1, attrLowPC, formAddr, attrHighPC, formData4, attrStmtList, formSecOffset, 0, 0,
		2, tagSubprogram, 1, attrName, formStrp, attrLowPC, formAddr, attrHighPC, formData4, 0, 0,
		3, tagInlined, 0, attrAbstract, formRef4, attrLowPC, formAddr, attrHighPC, formData4, attrCallFile, formData1, attrCallLine, formData1, 0, 0,
		4, tagSubprogram, 0, attrName, formStrp, 0, 0,
		5, tagSubprogram, 0, attrAbstract, formRef4, attrOrigSpec, formRef4, 0, 0,
		6, tagSubprogram, 0, attrName, formStrp, attrRanges, formSecOffset, 0, 0,
		0,
	}
}

// handInfo is one DWARF 5 unit: main at 0x401000 with an inlined call of inner
// at 0x401010, and a function that is its own origin.
func handInfo() []byte {
	le := binary.LittleEndian
	var b []byte
	addr := func(a uint64) { b = le.AppendUint64(b, a) }
	word := func(v uint32) { b = le.AppendUint32(b, v) }
	word(0)
	b = append(b, 5, 0, unitCompile, 8)
	word(0)
	b = append(b, 1)
	addr(fuzzText)
	word(0x1000)
	word(0)
	abstract := uint32(len(b))
	b = append(b, 4)
	word(5)
	loop := uint32(len(b))
	b = append(b, 5)
	word(loop)
	word(loop)
	b = append(b, 6)
	word(5)
	word(0)
	b = append(b, 2)
	word(0)
	addr(fuzzText)
	word(0x100)
	b = append(b, 3)
	word(abstract)
	addr(fuzzText + 0x10)
	word(0x20)
	b = append(b, 1, 42)
	b = append(b, 3)
	word(loop)
	addr(fuzzText + 0x40)
	word(0x20)
	b = append(b, 1, 43)
	b = append(b, 0, 0)
	le.PutUint32(b, uint32(len(b)-4))
	return b
}

// handLine is a DWARF 4 table with rows at 0x401000 (line 1), 0x401010 (line
// 11) and an end at 0x401100.
func handLine() []byte {
	le := binary.LittleEndian
	tables := append([]byte("inc\x00\x00a.c\x00"), 1, 0, 0, 0)
	head := []byte{1, 1, 1, 0xfb, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1}
	prog := []byte{0, 9, 2}
	prog = le.AppendUint64(prog, fuzzText)
	prog = append(prog, 1, 2, 0x10, 3, 10, 1, 2, 0xf0, 0x01, 0, 1, 1)
	b := le.AppendUint32(nil, uint32(2+4+len(head)+len(tables)+len(prog)))
	b = append(b, 4, 0)
	b = le.AppendUint32(b, uint32(len(head)+len(tables)))
	b = append(b, head...)
	b = append(b, tables...)
	return append(b, prog...)
}
