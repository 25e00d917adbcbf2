package golang

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/cfi"
)

// called is what is known of a running function from having seen it called.
type called struct{ ra, cfa, fp uint64 }

// stepper runs a program one instruction at a time and keeps the true stack
// by watching calls and returns.
type stepper struct {
	t     *testing.T
	p     *Program
	rows  []cfi.Row
	pid   int
	mem   *os.File
	bias  uint64
	stack []called
	wrong map[string]string
	seen  map[cfi.Rule]int
	walks int
	left  int // frames left out on the way back from the scheduler's stack
}

func (s *stepper) word(addr uint64) uint64 {
	var b [8]byte
	if _, err := s.mem.ReadAt(b[:], int64(addr)); err != nil {
		return 0
	}
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}

// wait gives the signal that stopped the program, 0 when it is gone.
func (s *stepper) wait() syscall.Signal {
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(s.pid, &ws, syscall.WALL, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			s.t.Fatal(err)
		}
		break
	}
	if !ws.Stopped() {
		return 0
	}
	return ws.StopSignal()
}

// check unwinds frames by the rows and compares each with the truth.
func (s *stepper) check(r *syscall.PtraceRegs, frames int) {
	pc, sp, fp := r.Rip, r.Rsp, r.Rbp
	stack := s.stack
	for depth := 0; depth < frames && len(stack) > 0; depth++ {
		look := pc
		if depth > 0 {
			look--
		}
		if look -= s.bias; look < s.p.tab.low || look >= s.p.tab.high {
			return
		}
		rule := at(s.rows, look)
		s.seen[rule]++
		var got called
		switch rule.CFA {
		case cfi.CFAStop:
			return
		case cfi.CFASP:
			got.cfa = sp + uint64(int64(rule.CFAOff))
			got.ra = s.word(got.cfa - 8)
			got.fp = fp
			if rule.FPKind == cfi.RegCFA {
				got.fp = s.word(got.cfa + uint64(int64(rule.FPOff)))
			}
		case cfi.CFAFrame:
			got = called{ra: s.word(fp + 8), cfa: fp + 16, fp: s.word(fp)}
		default:
			s.note(look, depth, fmt.Sprintf("rule %+v", rule))
			return
		}
		want := stack[len(stack)-1]
		if rule == chain(true) && got != want && len(stack) > 1 && got == stack[len(stack)-2] {
			s.left++
			stack, want = stack[:len(stack)-1], got
		}
		if rule == chain(true) && len(stack) == 1 && os.Getenv("KALYPSO_TEST_GO") != "" {
			return // the one that is left out may be all that is known
		}
		if got != want {
			s.note(look, depth, fmt.Sprintf("got %#x want %#x by %+v", got, want, rule))
			return
		}
		s.walks++
		stack = stack[:len(stack)-1]
		pc, sp, fp = got.ra, got.cfa, got.fp
	}
}

func (s *stepper) note(addr uint64, depth int, what string) {
	name := s.function(addr)
	if _, ok := s.wrong[name]; !ok {
		s.wrong[name] = fmt.Sprintf("%#x, frame %d: %s", addr, depth, what)
	}
}

func (s *stepper) function(addr uint64) string {
	f := symbolize(s.t, s.p, addr)
	if len(f) == 0 {
		return ""
	}
	return f[len(f)-1].Function
}

// TestRowsHoldAtEveryInstruction compares the rows with what really happens:
// caller's address, stack pointer and frame pointer, in prologues, epilogues,
// assembly and on the scheduler's stack.
func TestRowsHoldAtEveryInstruction(t *testing.T) {
	for _, v := range variants[:1] {
		t.Run(v.name, func(t *testing.T) { stepThrough(t, build(t, v)) })
	}
}

func stepThrough(t *testing.T, path string) {
	const steps = 200_000
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := open1(t, path)
	cmd := exec.Command(path, "work")
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		t.Skipf("tracing is not allowed here: %v", err)
	}
	s := &stepper{t: t, p: p, rows: allRows(t, p), pid: cmd.Process.Pid, wrong: map[string]string{}, seen: map[cfi.Rule]int{}}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if sig := s.wait(); sig != syscall.SIGTRAP {
		t.Fatalf("stopped by %v after exec", sig)
	}
	var err error
	if s.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", s.pid)); err != nil {
		t.Fatal(err)
	}
	defer s.mem.Close()

	// Run to main.main.
	start := uintptr(lookup(t, p, "main.main"))
	var old [1]byte
	if _, err := syscall.PtracePeekText(s.pid, start, old[:]); err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.PtracePokeText(s.pid, start, []byte{0xcc}); err != nil {
		t.Fatal(err)
	}
	var r syscall.PtraceRegs
	for sig := 0; ; {
		if err := syscall.PtraceCont(s.pid, sig); err != nil {
			t.Fatal(err)
		}
		got := s.wait()
		if got == 0 {
			t.Fatal("the program ended before main.main")
		}
		if sig = int(got); got == syscall.SIGTRAP {
			break
		}
	}
	if _, err := syscall.PtracePokeText(s.pid, start, old[:]); err != nil {
		t.Fatal(err)
	}
	if err := syscall.PtraceGetRegs(s.pid, &r); err != nil {
		t.Fatal(err)
	}
	r.Rip = uint64(start)
	if err := syscall.PtraceSetRegs(s.pid, &r); err != nil {
		t.Fatal(err)
	}
	s.stack = []called{{ra: s.word(r.Rsp), cfa: r.Rsp + 8, fp: r.Rbp}}

	names := map[uint64]string{} // by pc
	visited := map[string]bool{}
	n := 0
	for ; n < steps; n++ {
		before := r
		op := s.word(before.Rip)
		if err := syscall.PtraceSingleStep(s.pid); err != nil {
			t.Fatal(err)
		}
		sig := s.wait()
		if sig == 0 {
			break
		}
		if sig != syscall.SIGTRAP {
			// A signal would be delivered here: the stack after it is the
			// handler's. Let it go and look on from where the program is.
			s.stack = s.stack[:0]
			if err := syscall.PtraceCont(s.pid, int(sig)); err != nil {
				t.Fatal(err)
			}
			break
		}
		if err := syscall.PtraceGetRegs(s.pid, &r); err != nil {
			t.Fatal(err)
		}
		name, ok := names[r.Rip]
		if !ok {
			name = s.function(r.Rip)
			names[r.Rip] = name
			visited[name] = true
		}
		ret := byte(op) == 0xc3
		isCall := r.Rsp == before.Rsp-8 && s.word(r.Rsp) > before.Rip && s.word(r.Rsp) <= before.Rip+16 && byte(op)&0xf8 != 0x50
		switch {
		case name == "gogo" || name == "runtime.gogo" || name == "runtime.mcall" || name == "runtime.morestack":
			s.stack = s.stack[:0] // the goroutine changes, or its stack moves
		case isCall:
			s.stack = append(s.stack, called{ra: s.word(r.Rsp), cfa: r.Rsp + 8, fp: r.Rbp})
		case ret && len(s.stack) > 0:
			top := s.stack[len(s.stack)-1]
			if s.stack = s.stack[:len(s.stack)-1]; top.ra != r.Rip {
				s.stack = s.stack[:0]
			}
		}
		// The callers' rows are those of the last call.
		if isCall {
			s.check(&r, 8)
		} else {
			s.check(&r, 2)
		}
	}
	t.Logf("%d instructions of %d functions, %d frames compared, %d left out, %d rules", n, len(visited), s.walks, s.left, len(s.seen))
	for name, what := range s.wrong {
		t.Errorf("%s: %s", name, what)
	}
	if s.left > 0 && os.Getenv("KALYPSO_TEST_GO") == "" {
		t.Errorf("%d frames left out: only before Go 1.21 systemstack has no frame", s.left)
	}
	if s.seen[chain(true)] == 0 {
		t.Errorf("no frame was found by the frame pointer alone")
	}
	if n < 50_000 || s.walks < 100_000 || len(visited) < 60 {
		t.Errorf("too little compared")
	}
}
