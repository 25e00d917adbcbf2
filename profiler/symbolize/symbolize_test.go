package symbolize

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// file is an executable whose functions are 0x100 long; it is linked 0x40000
// above its offsets.
type file struct {
	module profiler.Module
	asked  []uint64
}

const linked = 0x40000

func (f *file) Module() *profiler.Module { return &f.module }
func (f *file) Symbolize(dst []profiler.Frame, offset uint64) ([]profiler.Frame, uint64) {
	f.asked = append(f.asked, offset)
	switch offset >> 8 {
	case 1:
		dst = append(dst, profiler.Frame{Function: "one"})
	case 2:
		dst = append(dst, profiler.Frame{Function: "inlined", Inlined: true}, profiler.Frame{Function: "two"})
	}
	return dst, offset + linked
}

// jit names all addresses below its end.
type jit struct {
	end   uint64
	asked int
}

func (j *jit) Symbolize(dst []profiler.Frame, addr uint64) ([]profiler.Frame, error) {
	j.asked++
	if addr >= j.end {
		return dst, errors.New("past the end")
	}
	return append(dst, profiler.Frame{Function: "jitted", Kind: profiler.KindJIT}), nil
}
func (j *jit) Close() error { return nil }

func newTestSymbolizer(f *file, j *jit) *Symbolizer {
	return &Symbolizer{
		Executables: func(id uint32) Executable {
			if id == 7 {
				return f
			}
			return nil
		},
		PerfMap: func(pid profiler.PID) lang.Instance {
			if pid == 1 {
				return j
			}
			return nil
		},
	}
}

// names gives the functions of a stack's locations, "?" for none, inlined ones
// before a slash.
func names(st *profiler.Stack) []string {
	list := []string{}
	for _, l := range st.Locations {
		name := ""
		for i, f := range l.Frames {
			if i > 0 {
				name += "/"
			}
			if f.Function == "" {
				name += "?"
			}
			name += f.Function
		}
		list = append(list, name)
	}
	return list
}

func TestStackFiles(t *testing.T) {
	f := &file{module: profiler.Module{Path: "/bin/x"}}
	s := newTestSymbolizer(f, nil)
	// Each call is the last instruction of its function but for the leaf, which
	// is the first of its: a return address is named by the byte before it.
	st := s.Stack(1, nil, []uint64{
		unwind.Word(7, 0x200, true),
		unwind.Word(7, 0x200, false),
		unwind.Word(7, 0x300, false),
		unwind.Word(7, 0x400, false),
	}, profiler.StopTruncated)
	if diff := cmp.Diff(names(st), []string{"inlined/two", "one", "inlined/two", "?"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(f.asked, []uint64{0x200, 0x1ff, 0x2ff, 0x3ff}); diff != "" {
		t.Errorf("asked for (-got +want):\n%s", diff)
	}
	for i, want := range []uint64{0x200, 0x1ff, 0x2ff, 0x3ff} {
		if l := st.Locations[i]; l.Address != linked+want || l.Module != &f.module {
			t.Errorf("location %d is at %#x of %s, want %#x of %s", i, l.Address, l.Module.Path, linked+want, f.module.Path)
		}
	}
	if st.Stop != profiler.StopTruncated {
		t.Errorf("stop %s", st.Stop)
	}

	// Asked once, and the same location for the same address.
	again := s.Stack(2, nil, []uint64{unwind.Word(7, 0x200, true)}, profiler.StopRoot)
	if len(f.asked) != 4 || again.Locations[0] != st.Locations[0] {
		t.Errorf("asked %d times for 4 addresses", len(f.asked))
	}
	if again.Stop != profiler.StopRoot {
		t.Errorf("stop %s", again.Stop)
	}
}

func TestStackUnknownExecutable(t *testing.T) {
	st := newTestSymbolizer(&file{}, nil).Stack(1, nil, []uint64{unwind.Word(99, 0x123, true)}, profiler.StopNoTable)
	l := st.Locations[0]
	if l.Module == nil || l.Module.Path != "[unknown]" || l.Address != 0x123 || len(l.Frames) != 1 || l.Named() {
		t.Errorf("location %+v", l)
	}
}

func TestStackRunTimeCode(t *testing.T) {
	j := &jit{end: 0x2000}
	s := newTestSymbolizer(&file{}, j)
	words := []uint64{
		unwind.Word(0, 0x1000, true),
		unwind.Word(0, 0x2000, false), // the call before the end
		unwind.Word(0, 0x2000, true),
	}
	st := s.Stack(1, nil, words, profiler.StopRoot)
	if diff := cmp.Diff(names(st), []string{"jitted", "jitted", "?"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	s.Stack(1, nil, words, profiler.StopRoot)
	if j.asked != 3 {
		t.Errorf("asked %d times for 3 addresses", j.asked)
	}
	// The same addresses are other code in another process.
	st = s.Stack(2, nil, words, profiler.StopRoot)
	if diff := cmp.Diff(names(st), []string{"?", "?", "?"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	for _, l := range st.Locations {
		if l.Module.Path != "[anon]" || l.Frames[0].Kind != profiler.KindJIT {
			t.Errorf("location %+v in %s", l, l.Module.Path)
		}
	}
}

func TestStackKernel(t *testing.T) {
	s := newTestSymbolizer(&file{}, nil)
	s.Kernel, _, _ = kernelFrom(t, someSymbols)
	st := s.Stack(1, []uint64{
		0xffffffff81000110, // do_work, where it begins: the leaf
		0xffffffff81000200, // returns to the first byte after do_work
		0xffffffffc0201010, // in a module
		0x1000,             // nothing
	}, nil, profiler.StopNoUser)
	if diff := cmp.Diff(names(st), []string{"do_work", "do_work", "second_fn", "?"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	modules := []string{}
	for _, l := range st.Locations {
		modules = append(modules, l.Module.Path)
		if l.Frames[0].Kind != profiler.KindKernel {
			t.Errorf("%s is %s", l.Frames[0].Function, l.Frames[0].Kind)
		}
	}
	if diff := cmp.Diff(modules, []string{KernelModule, KernelModule, "[second]", KernelModule}); diff != "" {
		t.Errorf("modules (-got +want):\n%s", diff)
	}
	if again := s.Stack(2, []uint64{0xffffffff81000110}, nil, profiler.StopNoUser); again.Locations[0] != st.Locations[0] {
		t.Error("a kernel address has two locations")
	}
}

func TestStackKernelHidden(t *testing.T) {
	st := newTestSymbolizer(&file{}, nil).Stack(1, []uint64{0xffffffff81000110}, []uint64{unwind.Word(7, 0x100, true)}, profiler.StopRoot)
	if diff := cmp.Diff(names(st), []string{"?", "one"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if l := st.Locations[0]; l.Module.Path != KernelModule || l.Frames[0].Kind != profiler.KindKernel {
		t.Errorf("location %+v", l)
	}
}

func TestStackEmpty(t *testing.T) {
	if st := newTestSymbolizer(&file{}, nil).Stack(1, nil, nil, profiler.StopNoRegisters); st == nil || len(st.Locations) != 0 {
		t.Errorf("stack %+v", st)
	}
}

// TestBudget: what is kept stays within the budget, the addresses asked for last
// among it, and every stack is named all the same.
func TestBudget(t *testing.T) {
	f := &file{module: profiler.Module{Path: "/bin/x"}}
	s := newTestSymbolizer(f, nil)
	s.SetBudget(64 << 10)
	hot := unwind.Word(7, 0x101, true)
	for i := range uint64(5000) {
		st := s.Stack(1, []uint64{0xffffffff81000000 + i}, []uint64{hot, unwind.Word(7, 0x10000+i, true)}, profiler.StopRoot)
		if got := names(st)[1]; got != "one" {
			t.Fatalf("stack %d: the leaf's caller is %q, want one", i, got)
		}
		if n := s.Bytes(); n > 64<<10 {
			t.Fatalf("%d bytes are kept, the budget is %d", n, 64<<10)
		}
	}
	if s.Evictions() < 9000 {
		t.Errorf("%d evictions, want most of 10,000", s.Evictions())
	}
	asked := 0
	for _, offset := range f.asked {
		if offset == 0x101 {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("the address that is in every stack was looked up %d times, want once", asked)
	}
	before := s.Bytes()
	s.SetBudget(before / 4)
	if n := s.Bytes(); n > before/2+1 {
		t.Errorf("%d bytes are kept when the budget shrinks from %d to %d", n, before, before/4)
	}
}

// TestForget: a number that stands for another file gives the other's names.
func TestForget(t *testing.T) {
	f, other := &file{module: profiler.Module{Path: "/bin/x"}}, &file{module: profiler.Module{Path: "/bin/y"}}
	j := &jit{end: 0x5000}
	s := newTestSymbolizer(f, j)
	word := unwind.Word(7, 0x101, true)
	stack := func() *profiler.Stack {
		return s.Stack(1, nil, []uint64{word, unwind.Word(0, 0x4000, true)}, profiler.StopRoot)
	}
	stack()
	s.Executables = func(uint32) Executable { return other }
	s.Forget(map[uint32]bool{8: true})
	if got := stack().Locations[0].Module.Path; got != "/bin/x" {
		t.Errorf("forgetting 8, 7 became %s", got)
	}
	if j.asked != 2 {
		t.Errorf("code made at run time was named %d times in two windows, want each time", j.asked)
	}
	s.Forget(map[uint32]bool{7: true})
	if got := stack().Locations[0].Module.Path; got != "/bin/y" {
		t.Errorf("number 7 still gives %s", got)
	}
	s.Forget(map[uint32]bool{7: true})
	if n := s.Bytes(); n != 0 {
		t.Errorf("%d bytes are kept of nothing", n)
	}
}
