package cfi

import (
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
	"testing"
)

// agreement is how rows derived from code compare with those of entries, in
// bytes of instructions.
type agreement struct {
	same, wrong, none, lostFP int
	differences               []string
}

func (g *agreement) percent(n int) float64 {
	return 100 * float64(n) / float64(max(g.same+g.wrong+g.none, 1))
}

func (g *agreement) String() string {
	return fmt.Sprintf("%d bytes: same %.3f %%, wrong %.3f %%, none %.3f %%, frame pointer lost %.3f %%",
		g.same+g.wrong+g.none, g.percent(g.same), g.percent(g.wrong), g.percent(g.none), g.percent(g.lostFP))
}

// compareCode derives rows for all code of a file as if it had no entries, and
// compares them with those of its entries. starts: functions begin where
// entries do, as symbols would tell; else the code has to show it.
func compareCode(t testing.TB, path string, starts bool) *agreement {
	t.Helper()
	f, x := openIndex(t, path)
	g := &agreement{}
	bare := &Index{arch: x.arch, file: f, code: x.code, text: x.text, entry: x.entry, fromCode: true}
	bare.findInstructions()
	rd := &reader{}
	var rows []Row
	for _, s := range bare.instructions {
		if inPLT(x, s.low) {
			continue
		}
		for low := s.low; low < s.high; {
			high := min(low&^(codeBlock-1)+codeBlock, s.high)
			from, to := max(low-min(low, codeBefore), s.low), min(high+codeAfter, s.high)
			a := &analysis{ids: map[frameState]uint16{}}
			a.reset(x.arch, from, int(to-from))
			if !bare.readCode(a.code, from) {
				t.Fatalf("cannot read %#x to %#x of %s", from, to, path)
			}
			a.sweep(from == s.low)
			if starts {
				for _, tab := range x.tables {
					for i := max(tab.search(rd, from), 0); i < tab.n; i++ {
						start, _, ok := tab.entry(rd, i)
						if !ok || start >= to {
							break
						}
						// foo.cold begins in the middle of foo.
						if start >= from && x.entryAt(rd, start) {
							a.marks[start-from] |= markFunction
						}
					}
				}
			}
			entry := -1
			if x.entry >= from && x.entry < to {
				entry = int(x.entry - from)
			}
			a.analyse(entry)
			var err error
			if rows, err = x.Rows(rows[:0], low, high); err != nil {
				t.Fatal(err)
			}
			g.block(a, rows, low, high)
			low = high
		}
	}
	return g
}

// entryAt tells whether the entry at start begins like a function.
func (x *Index) entryAt(rd *reader, start uint64) bool {
	rows, err := x.Rows(nil, start, start+1)
	s := x.arch.atEntry()
	return err == nil && rows[0].Rule == s.rule(x.arch)
}

func inPLT(x *Index, pc uint64) bool {
	for _, p := range x.plt {
		if pc >= p.low && pc < p.high {
			return true
		}
	}
	return false
}

func (g *agreement) block(a *analysis, rows []Row, low, high uint64) {
	for i, r := range rows {
		end := high
		if i+1 < len(rows) {
			end = rows[i+1].PC
		}
		if r.Rule.CFA < CFASP || r.Rule.CFA == CFASignal || r.Rule.CFA == CFAPLT {
			continue
		}
		for pc := r.PC; pc < end; {
			at := int(pc - a.base)
			if a.found[at] == 0 {
				if a.marks[at]&markPadding != 0 {
					pc += uint64(max(a.padding(at), 1))
					continue
				}
				g.none++
				pc++
				continue
			}
			n := int(a.sizes[at])
			s := a.states[a.found[at]-1]
			g.compare(a, pc, n, r.Rule, &s)
			pc += uint64(max(n, 1))
		}
	}
}

func (g *agreement) compare(a *analysis, pc uint64, n int, want Rule, s *frameState) {
	got := s.rule(a.arch)
	if got.CFA < CFASP {
		if got.CFA == CFAStop {
			g.wrong += n
			g.differences = append(g.differences, fmt.Sprintf("%#x: stop, want %+v", pc, want))
			return
		}
		g.none += n
		return
	}
	bad := ""
	switch want.CFA {
	case CFASP:
		if v := s.values[valueSP]; got.CFA == CFASP && v != (frameValue{valueCFA, -want.CFAOff}) || v.kind == valueCFA && v.off != -want.CFAOff {
			bad = "cfa"
		}
	case CFAFP:
		if v := s.values[valueFP]; v.kind == valueCFA && v.off != -want.CFAOff {
			bad = "cfa"
		}
	default:
		if got.CFA != want.CFA {
			bad = "cfa kind"
		}
	}
	if a.arch.linkRegister && (got.RAKind != want.RAKind || got.RAOff != want.RAOff) && s.values[valueLR].kind != valueReturn {
		bad += " ra"
	}
	switch {
	case got.FPKind == want.FPKind && got.FPOff == want.FPOff:
	case s.values[valueFP].kind == valueCaller: // saved, but not yet changed, or restored
	case got.FPKind == RegUndefined:
		g.lostFP += n
	default:
		bad += " fp"
	}
	if bad == "" {
		g.same += n
		return
	}
	g.wrong += n
	g.differences = append(g.differences, fmt.Sprintf("%#x:%s got %d %d %d want %d %d %d", pc, bad, got.CFA, got.CFAOff, got.FPOff, want.CFA, want.CFAOff, want.FPOff))
}

func TestCodeAgreesWithEntries(t *testing.T) {
	files := []string{libc(t)}
	for _, name := range []string{"ld-linux-x86-64.so.2", "libstdc++.so.6"} {
		if out, err := exec.Command("gcc", "-print-file-name="+name).Output(); err == nil && strings.HasPrefix(string(out), "/") {
			files = append(files, strings.TrimSpace(string(out)))
		}
	}
	files = append(files, strings.Fields(os.Getenv("CODE_FILES"))...)
	for _, path := range files {
		for _, starts := range []bool{true, false} {
			g := compareCode(t, path, starts)
			t.Logf("%s starts=%v: %v", path, starts, g)
			if os.Getenv("CODE_SHOW") != "" {
				sort.Strings(g.differences)
				for _, d := range g.differences[:min(len(g.differences), 40)] {
					t.Log(d)
				}
			}
		}
	}
}
