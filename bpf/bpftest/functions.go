package bpftest

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// The kernel side's structs, as in contract.h and walk.h.
type (
	// Walk is struct klp_walk.
	Walk = functionsKlpWalk
	// Call is struct klp_call: arguments and results of one function.
	Call = functionsKlpCall
	// Rule is struct klp_rule.
	Rule = functionsKlpRule
	// Copy is struct klp_copy.
	Copy = functionsKlpCopy
)

// Functions are the functions of the kernel side, loaded.
type Functions struct {
	coll *ebpf.Collection
}

// tableNames are the maps that walks look things up in.
func tableNames() []string { return []string{"mappings", "executables", "pages", "rows", "rules"} }

// Load loads the functions until the test ends. They use the tables given, by
// name, and tables of their own in place of those not given.
func Load(t testing.TB, shared map[string]*ebpf.Map) *Functions {
	t.Helper()
	spec, err := loadFunctions()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{"walk": true, "copies": true, "memories": true}
	for _, name := range tableNames() {
		used[name] = true
	}
	for name, m := range spec.Maps {
		if !used[name] && m.Type != ebpf.Array {
			delete(spec.Maps, name)
		}
	}
	replace := map[string]*ebpf.Map{}
	for _, name := range tableNames() {
		if m := shared[name]; m != nil {
			replace[name] = m
			spec.Maps[name].MaxEntries = m.MaxEntries()
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		t.Fatalf("load the functions under test: %+v", err)
	}
	t.Cleanup(coll.Close)
	return &Functions{coll: coll}
}

// SetTables writes tables from their first entry on, and makes them as long as
// those of the kernel side, whose further entries are zero.
func (f *Functions) SetTables(t testing.TB, tables *Tables) {
	t.Helper()
	for i, b := range tables.all() {
		name := tableNames()[i]
		memory, err := f.coll.Maps[name].Memory()
		if err != nil {
			t.Fatal(err)
		}
		*b = append(*b, make([]byte, int(memory.Size())-len(*b))...)
		if _, err := memory.WriteAt(*b, 0); err != nil {
			t.Fatalf("write %s: %v", name, err)
		}
	}
	f.forget(t)
}

// forget lets walks search anew: what they remember is of an earlier epoch.
func (f *Functions) forget(t testing.TB) {
	t.Helper()
	var epoch uint32
	v := f.coll.Variables["klp_epoch"]
	if err := v.Get(&epoch); err != nil {
		t.Fatal(err)
	}
	if err := v.Set(epoch + 1); err != nil {
		t.Fatal(err)
	}
}

// Call runs one function on a walk; a nil walk is an empty one. The walk and
// the call are as the function leaves them.
func (f *Functions) Call(t testing.TB, name string, w *Walk, c *Call) int32 {
	t.Helper()
	if w == nil {
		w = &Walk{}
	}
	if c == nil {
		c = &Call{}
	}
	if err := f.coll.Maps["walk"].Put(uint32(0), w); err != nil {
		t.Fatal(err)
	}
	ret, err := f.coll.Programs["test_"+name].Run(&ebpf.RunOptions{Context: c, ContextOut: c})
	if err != nil {
		t.Fatalf("run %s: %v", name, err)
	}
	if err := f.coll.Maps["walk"].Lookup(uint32(0), w); err != nil {
		t.Fatal(err)
	}
	return int32(ret)
}

// Copied gives what copy_stack wrote.
func (f *Functions) Copied(t testing.TB) *Copy {
	t.Helper()
	var c Copy
	if err := f.coll.Maps["copies"].Lookup(uint32(0), &c); err != nil {
		t.Fatal(err)
	}
	return &c
}

// Walk walks a stack in the kernel. The stack is read where its registers say
// that it is, in the memory of the calling process.
func (f *Functions) Walk(t testing.TB, in *Input) Outcome {
	t.Helper()
	w := in.start()
	f.Call(t, "walk", &w, nil)
	n := w.Frames
	return Outcome{
		Frames: append([]uint64(nil), w.Stack.Frames[in.Base:in.Base+n]...),
		Stop:   w.Stop, Hash: w.Hash,
	}
}

// Input is one walk to be done.
type Input struct {
	unwind.Copy
	First, Mappings uint32 // the process's slice of the table of mappings
	Base            uint32 // kernel frames before it
}

// Outcome is what became of a walk.
type Outcome struct {
	Frames []uint64
	Stop   uint32
	Hash   uint64
}

// start is the walk as klp_begin leaves it.
func (in *Input) start() Walk {
	w := Walk{
		Pc: in.Regs.PC, Sp: in.Regs.SP, Fp: in.Regs.FP, Lr: in.Regs.LR,
		FirstMapping: in.First, Mappings: in.Mappings, Base: in.Base,
		Exact: bit(in.Exact), Leaf: bit(in.Leaf), Registers: bit(in.Registers),
		Stop: stopTruncated,
	}
	w.Regs.Pc, w.Regs.Sp, w.Regs.Fp, w.Regs.Lr = in.Regs.PC, in.Regs.SP, in.Regs.FP, in.Regs.LR
	w.Regs.R = in.Regs.R
	return w
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// String gives the words in hex.
func (o Outcome) String() string { return fmt.Sprintf("stop %d, frames %#x", o.Stop, o.Frames) }
