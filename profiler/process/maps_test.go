package process

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseMaps(t *testing.T) {
	device := unix.Mkdev(0xfe, 1)
	tests := []struct {
		name, text string
		want       []Mapping
		bad        bool
	}{
		{"only code", "1000-2000 r--p 00000000 fe:01 7 /a\n2000-3000 r-xp 00001000 fe:01 7 /a\n3000-4000 rw-p 00000000 fe:01 7 /a\n",
			[]Mapping{{0x2000, 0x3000, 0x1000, device, 7, "/a"}}, false},
		{"shared and writable code", "2000-3000 rwxs 0 fe:01 7 /a\n", []Mapping{{0x2000, 0x3000, 0, device, 7, "/a"}}, false},
		{"a deleted file", "2000-3000 r-xp 0 fe:01 7      /tmp/x (deleted)\n", []Mapping{{0x2000, 0x3000, 0, device, 7, "/tmp/x"}}, false},
		{"a path with spaces", "2000-3000 r-xp 0 fe:01 7                 /opt/my app/a  b.so\n",
			[]Mapping{{0x2000, 0x3000, 0, device, 7, "/opt/my app/a  b.so"}}, false},
		{"no file", "2000-3000 rwxp 0 00:00 0 \n", []Mapping{{Start: 0x2000, End: 0x3000}}, false},
		{"no file, nothing after the inode", "2000-3000 rwxp 0 00:00 0", []Mapping{{Start: 0x2000, End: 0x3000}}, false},
		{"the vDSO", "7ffd0000-7ffd2000 r-xp 00000000 00:00 0     [vdso]\n", []Mapping{{Start: 0x7ffd0000, End: 0x7ffd2000, Path: vdso}}, false},
		{"not the vsyscall page", "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]\n", nil, false},
		{"the largest numbers", "fffffffffffff000-ffffffffffffffff r-xp ffffffffffffffff fff:fffff 18446744073709551615 /x\n",
			[]Mapping{{0xfffffffffffff000, 1<<64 - 1, 1<<64 - 1, unix.Mkdev(0xfff, 0xfffff), 1<<64 - 1, "/x"}}, false},
		{"a number too large", "2000-3000 r-xp 0 fe:01 7 /a\n10000000000000000-20000000000000000 r-xp 0 00:00 0 /b\n",
			[]Mapping{{0x2000, 0x3000, 0, device, 7, "/a"}}, true},
		{"no numbers", "x-y r-xp z a:b c\n", nil, true},
		{"empty", "", nil, false},
		{"no line of maps", "hello\n\n- -\n", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMaps(strings.NewReader(tt.text))
			if (err != nil) != tt.bad {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

func TestParseMapsLimit(t *testing.T) {
	var text bytes.Buffer
	for i := range 2 * maxMappings {
		fmt.Fprintf(&text, "%x-%x r-xp 0 00:00 0\n", 0x1000*i+0x1000, 0x1000*i+0x2000)
	}
	if got, err := parseMaps(&text); len(got) != maxMappings || err != nil {
		t.Errorf("%d mappings, %v; want %d", len(got), err, maxMappings)
	}
}

func FuzzParseMaps(f *testing.F) {
	own, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("2000-3000 r-xp 0 fe:01 7      /tmp/x y (deleted)\n"))
	f.Add([]byte("ffffffffffffffff-0 r-xp ffffffffffffffff ffffffff:ffffffff 18446744073709551615 \n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ms, _ := parseMaps(bytes.NewReader(text)) // what came before an error counts
		if len(ms) > bytes.Count(text, []byte("\n"))+1 {
			t.Errorf("%d mappings of %d lines", len(ms), bytes.Count(text, []byte("\n")))
		}
		for _, m := range ms {
			if m.Path == "[vsyscall]" || strings.Contains(m.Path, "\n") {
				t.Errorf("mapping of %q", m.Path)
			}
		}
	})
}

// TestInsertMapping compares with an array that says of each byte which file
// it is of and at what offset.
func TestInsertMapping(t *testing.T) {
	type place struct{ inode, offset uint64 }
	const size = 64
	rnd := rand.New(rand.NewPCG(3, 4))
	for round := range 2000 {
		var ms []Mapping
		var model [size]place
		for step := range 12 {
			a, b := rnd.Uint64N(size), rnd.Uint64N(size+1)
			m := Mapping{Start: a, End: b, Offset: rnd.Uint64N(1000), Inode: uint64(step + 1)}
			for at := a; at < b; at++ {
				model[at] = place{m.Inode, m.Offset + at - a}
			}
			before := fmt.Sprint(ms)
			ms = insertMapping(ms, m)

			var got [size]place
			end := uint64(0)
			for _, m := range ms {
				if m.Start < end || m.Start >= m.End {
					t.Fatalf("round %d: %v is not sorted, after %v into %s", round, ms, m, before)
				}
				end = m.End
				for at := m.Start; at < m.End; at++ {
					got[at] = place{m.Inode, m.Offset + at - m.Start}
				}
			}
			if got != model {
				t.Fatalf("round %d: %v into %s gives %v", round, m, before, ms)
			}
		}
	}
}

func TestInsertMappingLimit(t *testing.T) {
	ms := make([]Mapping, maxMappings)
	for i := range ms {
		ms[i] = Mapping{Start: uint64(2 * i), End: uint64(2*i + 1)}
	}
	if got := insertMapping(ms, Mapping{Start: 1 << 40, End: 1 << 41}); len(got) != maxMappings {
		t.Errorf("%d mappings, want %d", len(got), maxMappings)
	}
}

func TestTidy(t *testing.T) {
	// See Executable.rows: gaps before and after segments meet rows at the same address.
	x := newExecutableForRows(t)
	rows, err := x.rows(0)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) == 0 || rows[0].PC != 0 {
		t.Fatalf("rows %v do not start with the page", rows)
	}
	for i, r := range rows {
		if r.PC >= 1<<pageShift {
			t.Errorf("row %d is at %#x, past the page", i, r.PC)
		}
		if i > 0 && r.PC <= rows[i-1].PC {
			t.Errorf("rows %d and %d are at %#x and %#x", i-1, i, rows[i-1].PC, r.PC)
		}
		if i > 0 && r.Rule == rows[i-1].Rule {
			t.Errorf("row %d repeats the rule before it", i)
		}
	}
}
