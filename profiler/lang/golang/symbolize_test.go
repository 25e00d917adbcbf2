package golang

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

// said is what the running program says of one of its addresses.
type said struct {
	kind string
	pc   uint64
	profiler.Frame
}

func run(t *testing.T, path string) []said {
	t.Helper()
	out, err := exec.Command(path).Output()
	if err != nil {
		t.Fatalf("run %s: %v", path, err)
	}
	var all []said
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		x := said{Frame: profiler.Frame{Kind: profiler.KindGo}}
		var depth int
		rest := s.Text()
		if _, err := fmt.Sscanf(rest, "%s %x %d %d", &x.kind, &x.pc, &depth, &x.Line); err != nil {
			t.Fatalf("output %q: %v", rest, err)
		}
		parts := strings.Split(rest, "\t")
		if len(parts) != 3 {
			t.Fatalf("output %q", rest)
		}
		x.Function, x.File = parts[1], parts[2]
		if x.File == "?" {
			x.File = ""
		}
		all = append(all, x)
	}
	return all
}

// lookup finds a function's entry by name.
func lookup(t testing.TB, p *Program, name string) uint64 {
	t.Helper()
	for i := uint64(0); i < p.tab.nfunc; i++ {
		fn, err := p.tab.function(p.win, i)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := p.funcName(fn.name); got == name {
			return fn.entry
		}
	}
	t.Fatalf("no function %s", name)
	return 0
}

func symbolize(t testing.TB, p *Program, pc uint64) []profiler.Frame {
	t.Helper()
	in, err := p.Attach(1)
	if err != nil {
		t.Fatal(err)
	}
	frames, err := in.Symbolize(nil, pc)
	if err != nil {
		t.Fatalf("symbolize %#x: %v", pc, err)
	}
	return frames
}

func TestSymbolizeAgreesWithTheRuntime(t *testing.T) {
	for _, v := range variants {
		if v.norun {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			path := build(t, v)
			p := open1(t, path)
			all := run(t, path)
			bias := all[0].pc - lookup(t, p, "main.main")
			var swept, chains, inlined int
			for i := 1; i < len(all); i++ {
				x := all[i]
				got := symbolize(t, p, x.pc-bias)
				if len(got) == 0 {
					t.Fatalf("%#x of %s has no frames", x.pc-bias, x.Function)
				}
				switch x.kind {
				case "pc":
					// The runtime gives the innermost frame only.
					swept++
					f := got[0]
					f.Inlined, f.Kind = false, profiler.KindGo
					if diff := cmp.Diff(f, x.Frame); diff != "" {
						t.Fatalf("%#x (-got +want):\n%s", x.pc-bias, diff)
					}
				case "call":
					// It gives every frame of a walk, inlined ones by an
					// address of their own.
					for j, f := range got {
						if f.Inlined != (j < len(got)-1) {
							t.Fatalf("%s: frame %d of %d has Inlined=%v", f.Function, j, len(got), f.Inlined)
						}
						if f.Inlined {
							inlined++
						}
						f.Inlined = false
						if i+j >= len(all) || all[i+j].kind != "call" {
							t.Fatalf("%s is not in the runtime's walk", f.Function)
						}
						if diff := cmp.Diff(f, all[i+j].Frame); diff != "" {
							t.Fatalf("%#x frame %d (-got +want):\n%s", x.pc-bias, j, diff)
						}
					}
					chains++
				}
			}
			t.Logf("%d addresses, %d walked frames, %d of them inlined", swept, chains, inlined)
			if swept < 10000 || chains < 20 || inlined < 10 {
				t.Errorf("too few compared: %d addresses, %d frames, %d inlined", swept, chains, inlined)
			}
		})
	}
}
