// Package cfi turns call frame information (.eh_frame, .debug_frame) into
// compact unwind rows, a page of code at a time.
//
// A row says how to find the caller's frame from an address on until the next
// row. It knows nothing of processes or BPF: the addresses are those of the
// ELF file, and whoever installs rows decides where they live.
package cfi

// Kinds of CFA rule: what the canonical frame address (CFA: the stack pointer
// of the caller once the call returns) is computed from. Stack pointer and
// frame pointer are rsp and rbp on x86-64, sp and x29 on aarch64. In step with
// bpf/include/kalypso/contract.h.
const (
	CFANone        uint8 = iota // no information for these addresses: a gap
	CFAStop                     // outermost frame: CFA or return address undefined
	CFAUnsupported              // a rule this format cannot express
	CFASP                       // stack pointer + CFAOff
	CFAFP                       // frame pointer + CFAOff
	CFAReg                      // register number Reg + CFAOff; only valid in the leaf frame
	CFADerefSP                  // *(stack pointer + CFAOff) + Off2
	CFADerefFP                  // *(frame pointer + CFAOff) + Off2
	CFAPLT                      // sp + 8 + ((((ip & 15) >= Off2) ? 1 : 0) << 3): the PLT expression of x86-64
	CFASignal                   // signal frame: all registers from the ucontext at sp + CFAOff; the address it gives is exact
	CFAFrame                    // frame pointer chain: return address and saved frame pointer at fp (JIT code, Go code)
)

// Kinds of rule for one saved register (frame pointer, return address).
const (
	RegSame      uint8 = iota // unchanged; for the return address: still in the link register (aarch64, leaf frames only)
	RegCFA                    // saved at CFA + offset
	RegUndefined              // lost: a caller whose CFA needs it cannot be unwound
	RegDerefFP                // saved at frame pointer + offset (realigned frames)
	RegDerefSP                // saved at stack pointer + offset
)

// Rule says how to find the caller of a frame: 16 bytes, comparable, and laid
// out as struct klp_rule.
//
// The rules of one row use the registers of the frame itself: a walker
// computes the CFA, reads the return address and the caller's frame pointer,
// and only then replaces its own; the caller's stack pointer is the CFA. A
// return address that is undefined makes the row CFAStop, so RAKind is never
// RegUndefined. For CFANone, CFAStop and CFAUnsupported all other fields are
// zero; for CFASignal all but CFAOff.
type Rule struct {
	CFAOff int32 // added to the CFA's base
	Off2   int16 // added after a dereference; for CFAPLT the threshold
	FPOff  int16 // see FPKind
	RAOff  int16 // see RAKind; -8 on x86-64 but for hand-written code that moves the return address
	CFA    uint8 // CFANone … CFAFrame
	FPKind uint8 // how the caller's frame pointer is found
	RAKind uint8 // how the return address is found; RegSame only on aarch64
	Reg    uint8 // DWARF register number for CFAReg, below 32
	_      [2]uint8
}

// Row is a rule with the first address it holds for.
type Row struct {
	PC   uint64
	Rule Rule
}
