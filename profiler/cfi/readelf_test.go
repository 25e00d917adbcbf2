package cfi

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// knownRow is one line of readelf's interpreted table, the columns we keep.
type knownRow struct {
	pc          uint64
	cfa, fp, ra string // "" where the table has no such column
}

type knownFDE struct {
	start, end uint64
	signal     bool
	debug      bool // from .debug_frame
	rows       []knownRow
	// Where rows say "exp": the entry's instructions with expressions, as
	// "CFA (…)", "rbp (…)" and "ra (…)".
	expressions []string
	at          string // offset in the section
}

// readelfFrames parses `readelf --debug-dump=frames-interp`.
func readelfFrames(t testing.TB, path, fpName string) []knownFDE {
	t.Helper()
	cmd := exec.Command("readelf", "--debug-dump=frames-interp,no-follow-links", "--wide", path)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("readelf, of binutils, is what rows are compared with: %v", err)
	}
	var (
		list    []knownFDE
		cur     *knownFDE
		columns []string
		debug   bool
		signals = map[string]bool{} // CIE offset → 'S'
		intern  = map[string]string{}
	)
	word := func(s string) string {
		if w, ok := intern[s]; ok {
			return w
		}
		s = strings.Clone(s)
		intern[s] = s
		return s
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(make([]byte, 64<<10), 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if rest, ok := strings.CutPrefix(line, "Contents of the "); ok {
			debug = strings.HasPrefix(rest, ".debug_frame")
			clear(signals)
			cur = nil
			continue
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch {
		case len(f) >= 5 && f[3] == "CIE":
			signals[f[0]] = strings.Contains(f[4], "S")
			cur = nil
		case len(f) >= 6 && f[3] == "FDE":
			low, high, ok := strings.Cut(strings.TrimPrefix(f[5], "pc="), "..")
			start, err1 := strconv.ParseUint(low, 16, 64)
			end, err2 := strconv.ParseUint(high, 16, 64)
			if !ok || err1 != nil || err2 != nil {
				t.Fatalf("%s: readelf line %q", path, line)
			}
			list = append(list, knownFDE{at: strings.Clone(f[0]), start: start, end: end, debug: debug, signal: signals[strings.TrimPrefix(f[4], "cie=")]})
			cur, columns = &list[len(list)-1], nil
		case f[0] == "LOC":
			columns = append(columns[:0:0], f...)
		default:
			pc, err := strconv.ParseUint(f[0], 16, 64)
			if cur == nil || err != nil || len(f[0]) != 16 {
				continue
			}
			r := knownRow{pc: pc}
			// A register is shown as "r1 (rdx)".
			f = slices.DeleteFunc(f, func(s string) bool { return strings.HasPrefix(s, "(") })
			if len(f) != len(columns) {
				t.Fatalf("%s: readelf line %q under columns %q", path, line, columns)
			}
			for i, name := range columns {
				switch name {
				case "CFA":
					r.cfa = word(f[i])
				case fpName:
					r.fp = word(f[i])
				case "ra":
					r.ra = word(f[i])
				}
			}
			cur.rows = append(cur.rows, r)
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	_ = cmd.Wait() // readelf complains of odd files with status 1 and prints on
	if slices.ContainsFunc(list, func(k knownFDE) bool {
		return slices.ContainsFunc(k.rows, func(r knownRow) bool { return r.cfa == "exp" || r.fp == "exp" || r.ra == "exp" })
	}) {
		readelfExpressions(t, path, fpName, list)
	}
	return list
}

// readelfExpressions adds to list the expressions that
// `readelf --debug-dump=frames` prints for the registers we keep.
func readelfExpressions(t testing.TB, path, fpName string, list []knownFDE) {
	t.Helper()
	type place struct {
		debug bool
		at    string
	}
	byPlace := make(map[place]int, len(list))
	for i := range list {
		byPlace[place{list[i].debug, list[i].at}] = i
	}
	cmd := exec.Command("readelf", "--debug-dump=frames,no-follow-links", "--wide", path)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(make([]byte, 64<<10), 1<<20)
	debug, cur := false, -1
	for sc.Scan() {
		line := sc.Text()
		if rest, ok := strings.CutPrefix(line, "Contents of the "); ok {
			debug = strings.HasPrefix(rest, ".debug_frame")
			continue
		}
		if !strings.HasPrefix(line, " ") {
			f := strings.Fields(line)
			if len(f) >= 4 && f[3] == "FDE" {
				if i, ok := byPlace[place{debug, f[0]}]; ok {
					cur = i
				}
			} else if len(f) >= 4 {
				cur = -1
			}
			continue
		}
		if cur < 0 {
			continue
		}
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "DW_CFA_def_cfa_expression "); ok {
			list[cur].expressions = append(list[cur].expressions, "CFA "+rest)
		} else if rest, ok := strings.CutPrefix(line, "DW_CFA_expression: "); ok {
			// "r6 (rbp) (DW_OP_breg6 (rbp): 0)"
			f := strings.SplitN(rest, " ", 3)
			switch {
			case len(f) == 3 && f[1] == "("+fpName+")":
				list[cur].expressions = append(list[cur].expressions, fpName+" "+f[2])
			case len(f) == 3 && (f[1] == "(rip)" || f[1] == "(x30)"):
				list[cur].expressions = append(list[cur].expressions, "ra "+f[2])
			}
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	_ = cmd.Wait()
}

// written gives the expressions that would make r, as readelf prints them.
func written(r Rule, m elf.Machine) (cfa, fp, ra []string) {
	sp, frame := "DW_OP_breg7 (rsp): ", "DW_OP_breg6 (rbp): "
	if m == elf.EM_AARCH64 {
		sp, frame = "DW_OP_breg31 (sp): ", "DW_OP_breg29 (x29): "
	}
	name := sp
	switch r.CFA {
	case CFADerefFP:
		name = frame
		fallthrough
	case CFADerefSP:
		e := fmt.Sprintf("CFA (%s%d; DW_OP_deref", name, r.CFAOff)
		cfa = append(cfa, fmt.Sprintf("%s; DW_OP_plus_uconst: %d)", e, r.Off2))
		if r.Off2 == 0 {
			cfa = append(cfa, e+")")
		}
	case CFAPLT:
		cfa = append(cfa, fmt.Sprintf("CFA (%s8; DW_OP_breg16 (rip): 0; DW_OP_lit15; DW_OP_and; DW_OP_lit%d; DW_OP_ge; DW_OP_lit3; DW_OP_shl; DW_OP_plus)", sp, r.Off2))
	case CFASP:
		cfa = append(cfa, fmt.Sprintf("CFA (%s%d)", sp, r.CFAOff))
	case CFAFP:
		cfa = append(cfa, fmt.Sprintf("CFA (%s%d)", frame, r.CFAOff))
	}
	saved := func(column string, kind uint8, off int16) []string {
		base := frame
		switch kind {
		case RegDerefSP:
			base = sp
		case RegCFA: // the CFA is on the expression's stack
			base = "DW_OP_plus_uconst: "
		}
		return []string{fmt.Sprintf("%s (%s%d)", column, base, off)}
	}
	column := "rbp"
	if m == elf.EM_AARCH64 {
		column = "x29"
	}
	return cfa, saved(column, r.FPKind, r.FPOff), saved("ra", r.RAKind, r.RAOff)
}

var x86Names = map[string]uint8{"rax": 0, "rdx": 1, "rcx": 2, "rbx": 3, "rsi": 4, "rdi": 5, "rbp": 6, "rsp": 7,
	"r8": 8, "r9": 9, "r10": 10, "r11": 11, "r12": 12, "r13": 13, "r14": 14, "r15": 15}

func registerNumber(name string, m elf.Machine) (uint8, bool) {
	if m == elf.EM_X86_64 {
		n, ok := x86Names[name]
		return n, ok
	}
	if name == "sp" {
		return 31, true
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(name, "x"), 10, 5)
	return uint8(n), err == nil && strings.HasPrefix(name, "x")
}

// agree compares a rule with readelf's row. It returns "" when they say the
// same, "!…" when they differ, and otherwise the reason why they cannot be
// compared or why the rule says less.
func agree(r Rule, k *knownRow, in *knownFDE, m elf.Machine) string {
	differ := func(what string) string {
		return fmt.Sprintf("!%s: rule %+v, readelf cfa %q fp %q ra %q", what, r, k.cfa, k.fp, k.ra)
	}
	arm := m == elf.EM_AARCH64
	switch r.CFA {
	case CFANone, CFAFrame:
		return differ("no information")
	case CFAStop:
		if k.ra == "u" || k.cfa == "" {
			return ""
		}
		return differ("stop")
	case CFASignal:
		if in.signal && (k.cfa == "exp" || arm) {
			return "signal frame"
		}
		return differ("signal")
	case CFAUnsupported:
		switch {
		case k.cfa == "exp":
			return "unsupported: CFA expression"
		case k.ra == "exp" || k.fp == "exp":
			return "unsupported: register expression"
		case k.ra != "" && !strings.HasPrefix(k.ra, "c"):
			return "unsupported: return address " + k.ra
		}
		return differ("unsupported")
	}

	cfa, fp, ra := written(r, m)
	has := func(wants []string) bool {
		return slices.ContainsFunc(wants, func(want string) bool { return slices.Contains(in.expressions, want) })
	}
	i := strings.LastIndexAny(k.cfa, "+-")
	switch {
	case k.cfa == "exp":
		if !has(cfa) {
			return differ(fmt.Sprintf("CFA is none of %q", in.expressions))
		}
	case r.CFA == CFADerefSP || r.CFA == CFADerefFP || r.CFA == CFAPLT:
		return differ("CFA")
	default:
		if i < 0 {
			return differ("CFA")
		}
		reg, ok := registerNumber(k.cfa[:i], m)
		off, err := strconv.ParseInt(k.cfa[i:], 10, 64)
		if !ok || err != nil || off != int64(r.CFAOff) {
			return differ("CFA offset")
		}
		sp, fp := uint8(7), uint8(6)
		if arm {
			sp, fp = 31, 29
		}
		want := CFAReg
		switch reg {
		case sp:
			want = CFASP
		case fp:
			want = CFAFP
		}
		if r.CFA != want || want == CFAReg && r.Reg != reg {
			return differ("CFA register")
		}
	}
	if why, ok := agreeSaved(r, r.RAKind, r.RAOff, k.ra, has(ra)); !ok {
		return differ("return address")
	} else if why != "" {
		return "return address " + why
	}
	if why, ok := agreeSaved(r, r.FPKind, r.FPOff, k.fp, has(fp)); !ok {
		return differ("frame pointer")
	} else if why != "" {
		return "frame pointer " + why
	}
	return ""
}

// agreeSaved compares one register's rule; written tells whether the entry has
// the expression that makes it. readelf shows u both for undefined registers
// and for those that no instruction has mentioned yet.
func agreeSaved(r Rule, kind uint8, off int16, known string, written bool) (reason string, ok bool) {
	switch kind {
	case RegSame:
		return "", known == "" || known == "u" || known == "s"
	case RegUndefined:
		switch {
		case known == "u":
			return "", true
		case known == "exp" || strings.HasPrefix(known, "v"):
			return "lost: " + known, true
		case known != "" && !strings.HasPrefix(known, "c") && known != "s":
			return "lost: in another register", true
		}
		return "", false
	case RegCFA:
		return "", known == fmt.Sprintf("c%+d", off) || known == "exp" && written
	}
	// Offsets that need more than 16 bits are kept relative to the CFA's base.
	far := int64(off) - int64(r.CFAOff)
	if (kind == RegDerefSP && r.CFA == CFASP || kind == RegDerefFP && r.CFA == CFAFP) && far < -1<<15 && known == fmt.Sprintf("c%+d", far) {
		return "", true
	}
	return "", known == "exp" && written
}

// comparison counts what comparing files came to.
type comparison struct {
	files, fdes, rows int
	reasons           map[string]int
	differences       []string
	differing         int
	padding           int // gaps of padding that the row before covers
}

func (c *comparison) count(reason string) { c.reasons[reason]++ }

func (c *comparison) differ(format string, args ...any) {
	c.differing++
	if len(c.differences) < 40 {
		c.differences = append(c.differences, fmt.Sprintf(format, args...))
	}
}

// compareFile checks every row of the file at path against readelf's: at each
// address where either has a row, and behind each FDE.
func compareFile(t testing.TB, c *comparison, path string) {
	t.Helper()
	f, err := elffile.Open(path)
	if err != nil {
		return // not ELF
	}
	defer f.Close()
	var fpName string
	switch f.Machine() {
	case elf.EM_X86_64:
		fpName = "rbp"
	case elf.EM_AARCH64:
		fpName = "x29"
	default:
		return
	}
	if f.ELF.Class != elf.ELFCLASS64 || f.ELF.Type != elf.ET_EXEC && f.ELF.Type != elf.ET_DYN {
		return
	}
	x, err := Open(f)
	if err != nil && !errors.Is(err, ErrNoCFI) {
		c.differ("%s: %v", path, err)
		return
	}
	var rows []Row
	if x != nil {
		rows = allRows(t, x, f)
	}
	at := func(pc uint64) Rule {
		i := sort.Search(len(rows), func(i int) bool { return rows[i].PC > pc }) - 1
		if i < 0 {
			return Rule{}
		}
		return rows[i].Rule
	}

	fdes := readelfFrames(t, path, fpName)
	inCode := func(pc uint64) bool {
		return slices.ContainsFunc(f.Segments(), func(p elf.ProgHeader) bool {
			return p.Flags&elf.PF_X != 0 && pc >= p.Vaddr && pc < p.Vaddr+p.Filesz
		})
	}
	// What linkers leave behind of discarded functions has address 0 or no code.
	fdes = slices.DeleteFunc(fdes, func(k knownFDE) bool {
		return k.end <= k.start || !inCode(k.start) || k.debug && isGo(f)
	})
	// .debug_frame only counts where .eh_frame says nothing.
	slices.SortStableFunc(fdes, func(a, b knownFDE) int {
		switch {
		case a.debug != b.debug && a.debug:
			return 1
		case a.debug != b.debug:
			return -1
		case a.start < b.start:
			return -1
		case a.start > b.start:
			return 1
		}
		return 0
	})
	var spans []span
	covered := func(pc uint64) bool {
		i := sort.Search(len(spans), func(i int) bool { return spans[i].low > pc }) - 1
		return i >= 0 && pc < spans[i].high
	}
	var add []span
	c.files++
	for n := range fdes {
		k := &fdes[n]
		if k.debug && (n == 0 || !fdes[n-1].debug) {
			spans = append(spans, add...)
			add = nil
		}
		if k.debug && covered(k.start) {
			continue
		}
		end := k.end
		if n+1 < len(fdes) && fdes[n+1].debug == k.debug && fdes[n+1].start < end {
			c.count("overlapping entries")
			end = fdes[n+1].start
			if end == k.start {
				continue
			}
		}
		c.fdes++
		add = append(add, span{k.start, end})
		check := func(pc uint64, row *knownRow) {
			c.rows++
			switch why := agree(at(pc), row, k, f.Machine()); {
			case why == "":
			case why[0] == '!':
				if r := at(pc); r.CFA == CFASignal && n+1 < len(fdes) && fdes[n+1].signal && pc+1 == fdes[n+1].start {
					c.count("byte before a signal frame")
					return
				}
				c.differ("%s %#x: %s", path, pc, why[1:])
			default:
				c.count(why)
			}
		}
		// Ours in between: same known row, the last at or before.
		mine := sort.Search(len(rows), func(i int) bool { return rows[i].PC >= k.start })
		for i := range k.rows {
			row := &k.rows[i]
			if row.pc >= end {
				break
			}
			next := end
			if i+1 < len(k.rows) {
				next = min(end, k.rows[i+1].pc)
			}
			if next == row.pc {
				continue // replaced at the same address
			}
			check(row.pc, row)
			for ; mine < len(rows) && rows[mine].PC < next; mine++ {
				if rows[mine].PC > row.pc {
					check(rows[mine].PC, row)
				}
			}
		}
	}
	spans = append(spans, add...)
	slices.SortFunc(spans, func(a, b span) int {
		if a.low < b.low {
			return -1
		}
		return 1
	})
	for _, s := range spans {
		if covered(s.high) || at(s.high).CFA == CFANone {
			continue
		}
		end := s.high
		for end < s.high+16 && !covered(end) && at(end) == at(s.high-1) {
			end++
		}
		if end > s.high && end < s.high+16 {
			// Bridged: there must be nothing but nops, traps and zeros.
			code := make([]byte, end-s.high)
			if err := f.ReadVaddr(code, s.high); err != nil {
				t.Fatal(err)
			}
			fill := "\x00\x90\xcc\x66\x2e\x0f\x1f\x40\x44\x80\x84"
			if f.Machine() == elf.EM_AARCH64 {
				fill = "\x00\x1f\x20\x03\xd5"
			}
			if len(bytes.Trim(code, fill)) == 0 {
				c.padding++
				continue
			}
		}
		c.gap(path, s.high, at(s.high))
	}
	for _, r := range rows {
		if r.Rule.CFA != CFANone && !covered(r.PC) {
			c.gap(path, r.PC, r.Rule)
		}
	}
}

// gap judges a rule where readelf knows nothing.
func (c *comparison) gap(path string, pc uint64, r Rule) {
	switch {
	case r.CFA == CFASignal:
		c.count("no CFI: signal stub")
	case r.CFA == CFAStop:
		c.count("no CFI: start code")
	case r.CFA == CFAPLT, r.CFA == CFASP && (r.CFAOff == 8 || r.CFAOff == 0):
		c.count("no CFI: linkage stub")
	default:
		c.differ("%s %#x: rule %+v, readelf has none", path, pc, r)
	}
}

// allRows builds the rows of all code, a page at a time like the agent.
func allRows(t testing.TB, x *Index, f *elffile.File) []Row {
	t.Helper()
	const page = 64 << 10
	var rows []Row
	for _, p := range f.Segments() {
		if p.Flags&elf.PF_X == 0 {
			continue
		}
		for low := p.Vaddr; low < p.Vaddr+p.Filesz; {
			high := min(low&^(page-1)+page, p.Vaddr+p.Filesz)
			var err error
			if rows, err = x.Rows(rows, low, high); err != nil {
				t.Fatal(err)
			}
			low = high
		}
		rows = append(rows, Row{PC: p.Vaddr + p.Filesz})
	}
	return rows
}

// elfFiles lists the ELF files under dirs, once per inode, sorted by path.
func elfFiles(t testing.TB, dirs ...string) []string {
	t.Helper()
	var paths []string
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			continue // the cross compiler's libraries are not everywhere
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // what cannot be read is not compared
			}
			f, err := os.Open(path)
			if err != nil {
				return nil //nolint:nilerr // as above
			}
			defer f.Close()
			var magic [20]byte
			if n, _ := f.Read(magic[:]); n == len(magic) && string(magic[:4]) == elf.ELFMAG && (magic[16] == 2 || magic[16] == 3) {
				paths = append(paths, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(paths)
	return paths
}

// TestRowsMatchReadelf compares our rows with readelf's for ELF files of this
// machine: a fixed spread, or all of them with KALYPSO_UNWIND_ALL=1.
func TestRowsMatchReadelf(t *testing.T) {
	all := os.Getenv("KALYPSO_UNWIND_ALL") == "1"
	budget := 60 * time.Second
	if testing.Short() {
		budget = 10 * time.Second
	}
	paths := elfFiles(t, "/usr/bin", "/usr/lib", "/usr/sbin", "/usr/aarch64-linux-gnu")
	if !all {
		paths = spread(paths)
	}
	c := comparison{reasons: map[string]int{}}
	start := time.Now()
	for i, path := range paths {
		if !all && time.Since(start) > budget {
			t.Logf("time is up after %d of %d files", i, len(paths))
			break
		}
		compareFile(t, &c, path)
	}
	c.report(t)
	t.Logf("%v", time.Since(start).Round(time.Second))
}

func (c *comparison) report(t testing.TB) {
	t.Helper()
	explained := 0
	var reasons []string
	for why, n := range c.reasons {
		explained += n
		reasons = append(reasons, fmt.Sprintf("%9d  %s", n, why))
	}
	slices.Sort(reasons)
	t.Logf("%d files, %d FDEs, %d rows compared, %d differ; %d gaps of padding bridged; %d (%.4f %%) explained:\n%s", c.files, c.fdes, c.rows,
		c.differing, c.padding, explained, 100*float64(explained)/float64(max(c.rows, 1)), strings.Join(reasons, "\n"))
	for _, d := range c.differences {
		t.Error(d)
	}
	if c.rows == 0 {
		t.Error("nothing was compared")
	}
	if explained*1000 > c.rows {
		t.Errorf("%d of %d rows are explained away, more than 0.1 %%", explained, c.rows)
	}
}

// spread picks the files that matter most and every Nth of the others.
func spread(paths []string) []string {
	const maxBytes, others = 4 << 20, 300
	var picked, rest []string
	for _, p := range paths {
		name := filepath.Base(p)
		switch {
		case name == "libc.so.6", strings.HasPrefix(name, "ld-linux-"), strings.HasPrefix(name, "libcrypto.so."),
			strings.HasPrefix(name, "libstdc++.so.6."), strings.HasPrefix(name, "libm.so."):
			picked = append(picked, p)
		default:
			if st, err := os.Stat(p); err == nil && st.Size() <= maxBytes {
				rest = append(rest, p)
			}
		}
	}
	for i := 0; i < len(rest); i += max(1, len(rest)/others) {
		picked = append(picked, rest[i])
	}
	return picked
}
