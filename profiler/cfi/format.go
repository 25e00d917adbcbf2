package cfi

import (
	"debug/elf"
	"fmt"
	"strconv"
)

var x86Registers = [...]string{"rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp",
	"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}

// Text describes r for a person, in the manner of readelf: "rsp+16" for the
// CFA, "c-16" for a register saved at CFA-16. fp and ra are empty where the
// CFA says all there is.
func (r Rule) Text(m elf.Machine) (cfa, fp, ra string) {
	sp, frame := "rsp", "rbp"
	if m == elf.EM_AARCH64 {
		sp, frame = "sp", "x29"
	}
	switch r.CFA {
	case CFANone:
		return "none", "", ""
	case CFAStop:
		return "stop", "", ""
	case CFAUnsupported:
		return "unsupported", "", ""
	case CFASP:
		cfa = sp + signed(int64(r.CFAOff))
	case CFAFP:
		cfa = frame + signed(int64(r.CFAOff))
	case CFAReg:
		cfa = registerName(r.Reg, m) + signed(int64(r.CFAOff))
	case CFADerefSP:
		cfa = fmt.Sprintf("*(%s%s)%s", sp, signed(int64(r.CFAOff)), signed(int64(r.Off2)))
	case CFADerefFP:
		cfa = fmt.Sprintf("*(%s%s)%s", frame, signed(int64(r.CFAOff)), signed(int64(r.Off2)))
	case CFAPLT:
		cfa = fmt.Sprintf("%s+8+8*(pc%%16>=%d)", sp, r.Off2)
	case CFASignal:
		return "signal frame, ucontext at " + sp + signed(int64(r.CFAOff)), "", ""
	case CFAFrame:
		return "frame pointer", "", ""
	default:
		return fmt.Sprintf("kind %d", r.CFA), "", ""
	}
	return cfa, savedText(r.FPKind, r.FPOff, sp, frame), savedText(r.RAKind, r.RAOff, sp, frame)
}

func savedText(kind uint8, off int16, sp, fp string) string {
	switch kind {
	case RegSame:
		return "same"
	case RegCFA:
		return "c" + signed(int64(off))
	case RegUndefined:
		return "lost"
	case RegDerefFP:
		return "*(" + fp + signed(int64(off)) + ")"
	case RegDerefSP:
		return "*(" + sp + signed(int64(off)) + ")"
	}
	return fmt.Sprintf("kind %d", kind)
}

func registerName(reg uint8, m elf.Machine) string {
	if m == elf.EM_AARCH64 {
		return "x" + strconv.Itoa(int(reg))
	}
	if int(reg) < len(x86Registers) {
		return x86Registers[reg]
	}
	return "reg" + strconv.Itoa(int(reg))
}

func signed(n int64) string {
	if n < 0 {
		return strconv.FormatInt(n, 10)
	}
	return "+" + strconv.FormatInt(n, 10)
}
