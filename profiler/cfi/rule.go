// Package cfi turns call frame information (.eh_frame, .debug_frame) into
// compact unwind rows, a page of code at a time.
//
// A row says how to find the caller's frame from an address on until the next
// row. It knows nothing of processes or BPF: the addresses are those of the
// ELF file, and whoever installs rows decides where they live.
package cfi

// Kinds of CFA rule: what the canonical frame address (the stack pointer
// before the call) is computed from. In step with bpf/include/kalypso/contract.h.
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
	CFASignal                   // signal frame: all registers from the ucontext at sp + CFAOff
	CFAFrame                    // frame pointer chain: return address and saved frame pointer at fp (JIT code, Go code)
)

// Kinds of rule for one saved register (frame pointer, return address).
const (
	RegSame      uint8 = iota // unchanged: still in its register (arm64: return address in the link register)
	RegCFA                    // saved at CFA + offset
	RegUndefined              // lost; for the return address: outermost frame
	RegDerefFP                // saved at frame pointer + offset (realigned frames)
	RegDerefSP                // saved at stack pointer + offset
)

// Rule says how to find the caller of a frame: 16 bytes, comparable, and laid
// out as struct klp_rule.
type Rule struct {
	CFAOff int32 // added to the CFA's base
	Off2   int16 // added after a dereference; for CFAPLT the threshold
	FPOff  int16 // see FPKind
	RAOff  int16 // see RAKind; -8 on x86-64 wherever RAKind is RegCFA
	CFA    uint8 // CFANone … CFAFrame
	FPKind uint8 // how the caller's frame pointer is found
	RAKind uint8 // how the return address is found
	Reg    uint8 // DWARF register number for CFAReg
	_      [2]uint8
}

// Row is a rule with the first address it holds for.
type Row struct {
	PC   uint64
	Rule Rule
}
