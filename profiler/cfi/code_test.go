package cfi

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
			a.reset(x.arch, from, int(to-from), low)
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

// TestCodeAgreesWithEntries takes the entries away from files that have them.
// The limits leave room for other compilers' code; what was measured is in the
// comments. "none" is honest, "wrong" costs a stack.
func TestCodeAgreesWithEntries(t *testing.T) {
	files := []string{libc(t)}
	for _, name := range []string{"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"} {
		if out, err := exec.Command("gcc", "-print-file-name="+name).Output(); err == nil && strings.HasPrefix(string(out), "/") {
			files = append(files, strings.TrimSpace(string(out)))
		}
	}
	// Of a cross compiler, where installed.
	for _, path := range []string{"/usr/aarch64-linux-gnu/lib/libc.so.6", "/usr/x86_64-linux-gnu/lib/libc.so.6"} {
		if _, err := os.Stat(path); err == nil {
			files = append(files, path)
		}
	}
	for _, path := range files {
		for _, tt := range []struct {
			name        string
			starts      bool
			same, wrong float64
		}{
			// 98 to 99.8 % the same, 0.03 to 0.22 % wrong
			{"functions known", true, 95, 0.5},
			// 89 to 97 % the same, 0.06 to 0.4 % wrong
			{"functions guessed", false, 80, 0.7},
		} {
			t.Run(filepath.Base(path)+", "+tt.name, func(t *testing.T) {
				g := compareCode(t, path, tt.starts)
				t.Logf("%s: %v", path, g)
				if g.percent(g.same) < tt.same || g.percent(g.wrong) > tt.wrong || g.percent(g.lostFP) > 1 {
					slices.Sort(g.differences)
					t.Errorf("%v; for example:\n%s", g, strings.Join(g.differences[:min(len(g.differences), 20)], "\n"))
				}
			})
		}
	}
}

// TestInstructionLengths compares with objdump: one wrong length spoils all
// that follows.
func TestInstructionLengths(t *testing.T) {
	f, x := openIndex(t, libc(t))
	if f.Machine() != elf.EM_X86_64 {
		t.Skip("all instructions of aarch64 have 4 bytes")
	}
	out, err := exec.Command("objdump", "-d", "-w", "--no-show-raw-insn", "-j", ".text", f.Path()).Output()
	if err != nil {
		t.Fatal(err)
	}
	x.findInstructions()
	var in x86Inst
	var last uint64
	var code [16]byte
	n, text := 0, ""
	for line := range strings.Lines(string(out)) {
		at, rest, ok := strings.Cut(strings.TrimSpace(line), ":\t")
		if !ok {
			continue
		}
		pc, err := strconv.ParseUint(at, 16, 64)
		if err != nil {
			continue
		}
		size := pc - last
		if last != 0 && size <= 15 && !strings.Contains(text, "(bad)") && !strings.HasPrefix(text, "fwait") {
			if !x.readCode(code[:size], last) {
				t.Fatalf("no code at %#x", last)
			}
			n++
			if !decodeX86(code[:size], &in) || in.size != int(size) {
				t.Errorf("%#x: %x %s: got %d bytes", last, code[:size], strings.TrimSpace(text), in.size)
			}
		}
		last, text = pc, rest
	}
	if n < 100_000 {
		t.Errorf("only %d instructions compared", n)
	}
}

// TestCodeRules names the rules of code without any entries.
func TestCodeRules(t *testing.T) {
	checkRules(t, `
.globl _start
_start:	xor %rbp, %rbp
	mov %rsp, %rdi
	and $-16, %rsp
	call main
main:	push %rbp
in_main:	mov %rsp, %rbp
framed:	sub $0x20, %rsp
	test %edi, %edi
	je out
	lea pointed(%rip), %rdi
	call clone
	call saves
out:	leave
left:	ret
saves:	push %rbx
	push %rbp
	sub $24, %rsp
	xor %ebp, %ebp
deep:	call leaf
	cmp $3, %eax
	ja done
	jmp *%rdx
case:	add $24, %rsp
	pop %rbp
restored:	pop %rbx
	ret
done:	add $24, %rsp
	pop %rbp
	pop %rbx
	jmp leaf
leaf:	mov -8(%rsp), %eax
	ret
clone:	mov $56, %eax
	syscall
	test %eax, %eax
	jnz parent
	xor %ebp, %ebp
child:	pop %rdi
	call *%r9
	hlt
parent:	ret
pointed:	sub $0x88, %rsp
in_pointed:	call leaf
	add $0x88, %rsp
	ret
crazy:	jz half
	push %rax
half:	nop
joined:	call leaf
	ret
after:	call crazy
	ret
`, map[string]string{
		"_start":     "stop",
		"main":       "rsp+8 same c-8",
		"in_main":    "rsp+16 c-16 c-8",
		"framed":     "rbp+16 c-16 c-8",
		"out":        "rbp+16 c-16 c-8",
		"left":       "rsp+8 same c-8",
		"saves":      "rsp+8 same c-8",
		"deep":       "rsp+48 c-24 c-8",
		"case":       "rsp+48 c-24 c-8",
		"restored":   "rsp+16 same c-8",
		"done":       "rsp+48 c-24 c-8",
		"leaf":       "rsp+8 same c-8",
		"clone":      "rsp+8 same c-8",
		"child":      "stop",
		"parent":     "rsp+8 same c-8",
		"pointed":    "rsp+8 same c-8",
		"in_pointed": "rsp+144 same c-8",
		"crazy":      "none",
		"joined":     "none",
	})
}

// TestCodeOfBuiltins names the rules of code as V8 makes it, which nothing but the
// traps before a function tells from the middle of another.
func TestCodeOfBuiltins(t *testing.T) {
	checkRules(t, `
.macro builtin name
	.fill 4, 1, 0xcc
	.balign 32, 0xcc
\name:
.endm
.globl _start
_start:	hlt
builtin handler # ends by a jump to the next one, and makes its frame late
	movzbl 1(%rdi), %eax
	cmp %eax, %esi
	jne slow
	jmp *%rcx
slow:	push %rbp
	mov %rsp, %rbp
	push $0x22
in_slow:	call *%rdx
	mov %rbp, %rsp
	pop %rbp
	jmp *%rcx
builtin divides # by ten, which is no trap
	push %rbx
	sub $16, %rsp
	.balign 32
	.fill 22, 1, 0x90
	movabs $0xcccccccccccccccd, %rax
magic:	call *%rdx
	add $16, %rsp
	pop %rbx
	ret
builtin moves # its return address behind arguments
	pop %rax
	push %rbx
	push %rdi
popped:	push %rax
	push %rbp
	mov %rsp, %rbp
moved:	call *%rdx
	mov %rbp, %rsp
	pop %rbp
	pop %rcx
	add %rbx, %rsp
	push %rcx
	ret
builtin throws # its own away, and goes to what is found instead
	test $0xe, %cl
	jne own
	pop %r15
	push %rbp
	mov %rsp, %rbp
	push %r15
	ret
own:	add $8, %rsp
thrown:	cmp $2, %ecx
	jne other
	push %rbp
	mov %rsp, %rbp
	push $0x26
tail:	call *%rdx
	mov %rbp, %rsp
	pop %rbp
	jmp *%rcx
other:	push %rcx
	ret
builtin enters # the bytecode of a frame that is there: returned to here
	mov -24(%rbp), %r12
	call *%rdx
	.set before_enters, enters - 1
builtin reads # what it is given
	mov -24(%rdx), %r12
	ret
	.set before_reads, reads - 1
`, map[string]string{
		"before_enters": "rbp+16 c-16 c-8",
		"before_reads":  "none",
		"handler":       "rsp+8 same c-8",
		"slow":          "rsp+8 same c-8",
		"in_slow":       "rbp+16 c-16 c-8",
		"magic":         "rsp+32 same c-8",
		"popped":        "unsupported",
		"moved":         "rbp+16 c-16 c-8",
		"throws":        "rsp+8 same c-8",
		"thrown":        "unsupported",
		"tail":          "rbp+16 c-16 c-8",
	})
}

// checkRules assembles a program and compares the rules of its labels.
func checkRules(t *testing.T, program string, want map[string]string) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the assembly is for x86-64")
	}
	dir := t.TempDir()
	source, out := filepath.Join(dir, "a.s"), filepath.Join(dir, "a")
	if err := os.WriteFile(source, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "gcc", "-nostdlib", "-static", "-o", out, source)
	f := openFile(t, out)
	x, err := Options{Code: true}.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	addrs := symbolAddresses(t, f)
	got := map[string]string{}
	for label := range want {
		got[label] = ruleText(t, x, addrs[label])
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("rules (-got +want):\n%s", diff)
	}
}

// The same on arm64, for which CI has no assembler.
func TestCodeOfBuiltinsOfArm(t *testing.T) {
	const base = 1 << 20
	traps := strings.Repeat("\xcc", 28)
	code := "\xc0\x03\x5f\xd6" + traps + // ret
		"\xb4\x03\x5e\xf8\xc0\x03\x5f\xd6" + traps[:24] + // ldur x20, [x29, #-32]; ret
		"\xb4\x00\x5e\xf8\xc0\x03\x5f\xd6" // ldur x20, [x5, #-32]; ret
	a := &analysis{ids: map[frameState]uint16{}}
	a.reset(&aarch64, base, len(code), base)
	copy(a.code, code)
	a.sweep(true)
	a.analyse(-1)
	w := writer{low: base, high: base + uint64(len(code))}
	w.put(base, Rule{})
	a.put(&w, base, w.high)
	for before, want := range map[uint64]string{32: "x29+16 c-16 c-8", 64: "sp+0 same same"} {
		var rule Rule
		for _, r := range w.rows {
			if r.PC < base+before {
				rule = r.Rule
			}
		}
		if cfa, fp, ra := rule.Text(elf.EM_AARCH64); cfa+" "+fp+" "+ra != want {
			t.Errorf("before %d: %s %s %s, want %s", before, cfa, fp, ra, want)
		}
	}
}

// FuzzCode follows random bytes.
func FuzzCode(f *testing.F) {
	f.Add([]byte("\x55\x48\x89\xe5\xe8\x00\x00\x00\x00\x5d\xc3"), false)
	f.Add([]byte("\x48\x83\xec\x08\x74\xfa\xff\xe0\x48\x83\xc4\x08\xc3\xc8\x10\x00\x00\xc9"), false)
	f.Add([]byte("\x62\xf1\x7c\x48\x28\x00\xc5\xf8\x77\xc4\xe2\x7b\xf7\xc0\x0f\x38\xf0\x00\xc3"), false)
	f.Add([]byte("\xfd\x7b\xbe\xa9\xfd\x03\x00\x91\x00\x00\x00\x94\xfd\x7b\xc2\xa8\xc0\x03\x5f\xd6"), true)
	f.Add([]byte("\x0c\x02\x82\xd2\xff\x63\x2c\xcb\x40\x00\x1f\xd6\xff\x63\x2c\x8b\xc0\x03\x5f\xd6"), true)
	a := &analysis{ids: map[frameState]uint16{}}
	f.Fuzz(func(t *testing.T, code []byte, arm bool) {
		m, ar := elf.EM_X86_64, &x8664
		if arm {
			m, ar = elf.EM_AARCH64, &aarch64
		}
		code = code[:min(len(code), 4<<10)]
		const base = 1 << 20
		high := uint64(base + len(code))
		a.reset(ar, base, len(code), base)
		copy(a.code, code)
		start := time.Now()
		a.sweep(true)
		a.analyse(len(code)/2 - 1)
		w := writer{low: base, high: high}
		w.put(base, Rule{})
		a.put(&w, base, high)
		if d := time.Since(start); d > time.Second {
			t.Fatalf("took %v", d)
		}
		if len(code) > 0 {
			checkRows(t, w.rows, base, high)
		}
		for _, r := range w.rows {
			if cfa, _, _ := r.Rule.Text(m); cfa == "" || r.Rule.Reg >= 32 || r.Rule.RAKind == RegUndefined || r.Rule.CFA >= CFAFrame {
				t.Fatalf("rule outside the contract: %+v", r.Rule)
			}
		}
	})
}
