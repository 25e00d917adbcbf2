package bpf_test

import (
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// layout is the size of a struct and where its members are.
type layout struct {
	Size    uint32
	Members map[string]uint32
}

// layoutOf reads a struct from the BTF of a committed object.
func layoutOf(t testing.TB, object, name string) layout {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		t.Fatal(err)
	}
	var s *btf.Struct
	if err := spec.Types.TypeByName(name, &s); err != nil {
		t.Fatalf("%s: struct %s: %v", object, name, err)
	}
	l := layout{Size: s.Size, Members: map[string]uint32{}}
	for _, m := range s.Members {
		if !strings.HasPrefix(m.Name, "pad") {
			l.Members[m.Name] = m.Offset.Bytes()
		}
	}
	return l
}

// goLayout is that of a Go struct, with the kernel side's names for its fields.
func goLayout(v any, names map[string]string) layout {
	typ := reflect.TypeOf(v)
	l := layout{Size: uint32(typ.Size()), Members: map[string]uint32{}}
	for i := range typ.NumField() {
		if f := typ.Field(i); f.Name != "_" {
			l.Members[names[f.Name]] = uint32(f.Offset)
		}
	}
	return l
}

// TestStructsAgree: what Go writes and reads byte by byte is where C has it, in
// the committed objects of both machines. The records are compared in package
// sampler, which decodes them.
func TestStructsAgree(t *testing.T) {
	want := map[string]layout{
		"klp_rule": goLayout(cfi.Rule{}, map[string]string{
			"CFAOff": "cfa_off", "Off2": "off2", "FPOff": "fp_off", "RAOff": "ra_off",
			"CFA": "cfa", "FPKind": "fp_kind", "RAKind": "ra_kind", "Reg": "reg",
		}),
		"klp_key":        goLayout(bpf.Key{}, map[string]string{"Hash": "hash", "PID": "pid", "TID": "tid"}),
		"klp_regs":       goLayout(unwind.Regs{}, map[string]string{"PC": "pc", "SP": "sp", "FP": "fp", "LR": "lr", "R": "r"}),
		"klp_mapping":    {32, map[string]uint32{"start": 0, "end": 8, "bias": 16, "executable": 24, "kind": 28}},
		"klp_process":    {16, map[string]uint32{"first": 0, "count": 4, "flags": 8}},
		"klp_executable": {16, map[string]uint32{"pages": 0, "first_page": 4, "count": 8, "unavailable": 12}},
		"klp_page":       {16, map[string]uint32{"first": 0, "count": 4, "used": 8}},
		"klp_cgroup":     {16, map[string]uint32{"id": 0, "hierarchy": 8}},
		"klp_verdict":    {8, map[string]uint32{"share": 0, "flags": 4}},
		"klp_rows":       {4096, map[string]uint32{"row": 0}},
	}
	for _, object := range []string{"kalypso_x86_bpfel.o", "kalypso_arm64_bpfel.o"} {
		for name, w := range want {
			if diff := cmp.Diff(w, layoutOf(t, object, name)); diff != "" {
				t.Errorf("%s: %s (-Go +C):\n%s", object, name, diff)
			}
		}
	}
	if unsafe.Sizeof(bpf.Rule{}) != unsafe.Sizeof(cfi.Rule{}) {
		t.Errorf("bpf.Rule has %d bytes, cfi.Rule %d", unsafe.Sizeof(bpf.Rule{}), unsafe.Sizeof(cfi.Rule{}))
	}
}

// TestTablesAreWrittenWhereTheKernelReads writes through Tables and reads the
// maps by the layouts above.
func TestTablesAreWrittenWhereTheKernelReads(t *testing.T) {
	k := load(t, bpf.Config{})
	ok := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	tb := &k.Tables
	ok(tb.SetMappings(3, []bpf.Mapping{{}, {Start: 0x1112131415161718, End: 2, Bias: 3, Executable: 4, FramePointer: true}}),
		tb.SetExecutable(5, bpf.Executable{Pages: 6, FirstPage: 7, Count: 8}),
		tb.SetPage(6, bpf.Page{First: 9, Count: 10, Used: 11}),
		tb.SetRows(1023, []uint32{12, 13}), // over the end of a chunk
		tb.SetRule(7, bpf.Rule{1, 2, 3, 15: 4}))
	entry := func(name string, i uint32, words ...uint32) {
		t.Helper()
		b, err := k.Maps()[name].LookupBytes(i)
		ok(err)
		for at, want := range words {
			if got := le32(b[4*at:]); got != want {
				t.Errorf("%s: word %d of entry %d is %#x, want %#x", name, at, i, got, want)
			}
		}
	}
	entry("mappings", 4, 0x15161718, 0x11121314, 2, 0, 3, 0, 4, 1)
	entry("executables", 5, 6, 7, 8)
	entry("pages", 6, 9, 10, 11)
	entry("rows", 1, 13)
	entry("rules", 7, 0x00030201, 0, 0, 4<<24)
	if p, err := tb.Page(6); err != nil || p != (bpf.Page{First: 9, Count: 10, Used: 11}) {
		t.Errorf("page 6 is read as %+v (%v)", p, err)
	}
	for i, want := range map[uint32]uint32{1023: 12, 1024: 13} {
		if r, err := tb.Row(i); err != nil || r != want {
			t.Errorf("row %d is read as %d (%v), want %d", i, r, err, want)
		}
	}
	c := tb.Capacity()
	for name, err := range map[string]error{
		"mappings": tb.SetMappings(c.Mappings, make([]bpf.Mapping, 1)), "executables": tb.SetExecutable(c.Executables, bpf.Executable{}),
		"pages": tb.SetPage(c.Pages, bpf.Page{}), "rows": tb.SetRows(c.Rows, make([]uint32, 1)), "rules": tb.SetRule(c.Rules, bpf.Rule{}),
	} {
		if err == nil {
			t.Errorf("an entry past the end of %s is written without an error", name)
		}
	}
}

func header(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile("include/kalypso/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(string(text), "")
}

// enum gives the names of an enum's members in order. BTF has only enums that
// a variable or a struct uses, so these are read from the header.
func enum(t testing.TB, text, name string) []string {
	t.Helper()
	m := regexp.MustCompile(`(?s)enum ` + name + ` \{(.*?)\};`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no enum %s", name)
	}
	var names []string
	for _, entry := range strings.Split(m[1], ",") {
		entry, value, _ := strings.Cut(strings.TrimSpace(entry), "=")
		if value = strings.TrimSpace(value); value != "" && value != "0" {
			continue // a sum of others
		}
		if entry = strings.TrimSpace(entry); entry != "" {
			names = append(names, entry)
		}
	}
	return names
}

func TestEnumsAgree(t *testing.T) {
	status, contract := header(t, "status.h"), header(t, "contract.h")
	prefixed := func(prefix string, names ...string) []string {
		for i := range names {
			names[i] = prefix + strings.ToUpper(names[i])
		}
		return names
	}
	var stops []string
	for s := range profiler.Stops {
		stops = append(stops, profiler.Stop(s).String())
	}
	var counters []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(bpf.Counters{})) {
		counters = append(counters, strings.TrimPrefix(regexp.MustCompile(`[A-Z]`).ReplaceAllString(f.Name, "_$0"), "_"))
	}
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"klp_stop":    {status, append(prefixed("KLP_STOP_", stops...), "KLP_STOP_COUNT")},
		"klp_counter": {status, prefixed("KLP_COUNT_", counters...)},
		"klp_cfa": {contract, prefixed("KLP_CFA_", at(map[uint8]string{
			cfi.CFANone: "none", cfi.CFAStop: "stop", cfi.CFAUnsupported: "unsupported", cfi.CFASP: "sp", cfi.CFAFP: "fp",
			cfi.CFAReg: "reg", cfi.CFADerefSP: "deref_sp", cfi.CFADerefFP: "deref_fp", cfi.CFAPLT: "plt",
			cfi.CFASignal: "signal", cfi.CFAFrame: "frame",
		})...)},
		"klp_reg": {contract, prefixed("KLP_REG_", at(map[uint8]string{
			cfi.RegSame: "same", cfi.RegCFA: "cfa", cfi.RegUndefined: "undefined", cfi.RegDerefFP: "deref_fp", cfi.RegDerefSP: "deref_sp",
		})...)},
	} {
		if diff := cmp.Diff(c.want, enum(t, c.text, name)); diff != "" {
			t.Errorf("enum %s (-Go +C):\n%s", name, diff)
		}
	}
	if got := len(bpf.Counters{}.Stops); got != profiler.Stops {
		t.Errorf("bpf.Counters has %d stop reasons, want %d", got, profiler.Stops)
	}
}

// at puts names where their numbers say.
func at(names map[uint8]string) []string {
	list := make([]string, len(names))
	for i, name := range names {
		list[i] = name
	}
	return list
}

func TestLimitsAgree(t *testing.T) {
	limits, contract := header(t, "limits.h"), header(t, "contract.h")
	number := func(text, name string) int {
		t.Helper()
		m := regexp.MustCompile(`#define ` + name + `\s+(\(?[0-9a-fx<< ]+\)?)`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s", name)
		}
		value, shift, _ := strings.Cut(strings.Trim(strings.TrimSpace(m[1]), "()"), "<<")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 0, 32)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if shift != "" {
			by, err := strconv.Atoi(strings.TrimSpace(shift))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			n <<= by
		}
		return int(n)
	}
	k, tails := load(t, bpf.Config{}), load(t, bpf.Config{TailCalls: true})
	c := k.Tables.Capacity()
	for name, goes := range map[string]int{
		"KLP_MAX_FRAMES": unwind.MaxFrames, "KLP_PAGE_SHIFT": bpf.PageShift,
		"KLP_EXECUTABLES": int(c.Executables), "KLP_PAGES": int(c.Pages), "KLP_ROWS": int(c.Rows),
		"KLP_RULES": int(c.Rules), "KLP_MAPPINGS": int(c.Mappings),
	} {
		if got := number(limits, name); got != goes {
			t.Errorf("%s is %d, Go's is %d", name, got, goes)
		}
	}
	if got := number(limits, "KLP_FRAMES_PER_CALL") * number(limits, "KLP_TAIL_CALLS"); got != tails.MaxFrames || k.MaxFrames != unwind.MaxFrames {
		t.Errorf("Go says %d frames by tail calls and %d without, want %d and %d", tails.MaxFrames, k.MaxFrames, got, unwind.MaxFrames)
	}
	if got := number(contract, "KLP_PAGE_UNAVAILABLE"); got != bpf.PageUnavailable {
		t.Errorf("KLP_PAGE_UNAVAILABLE is %#x, Go's is %#x", got, bpf.PageUnavailable)
	}
	if steps := number(limits, "KLP_MAPPING_STEPS"); int(c.Mappings) >= 1<<steps {
		t.Errorf("%d steps do not search %d mappings", steps, c.Mappings)
	}
	if steps := number(limits, "KLP_ROW_STEPS"); 1<<bpf.PageShift >= 1<<steps {
		t.Errorf("%d steps do not search the rows of a page", steps)
	}
}
