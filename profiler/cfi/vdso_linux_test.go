package cfi

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// TestVDSO indexes this process's own vDSO, read from memory as the agent
// does: each of its functions must be covered from its first byte.
func TestVDSO(t *testing.T) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	var low, high uint64
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &low, &high); err != nil {
				t.Fatal(err)
			}
		}
	}
	if high == 0 {
		t.Skip("this kernel maps no vDSO")
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	data := make([]byte, high-low)
	if _, err := mem.ReadAt(data, int64(low)); err != nil {
		t.Fatal(err)
	}
	f, err := elffile.NewFile(bytes.NewReader(data), int64(len(data)), "[vdso]")
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine() != elf.EM_X86_64 {
		t.Skip("the vDSO of aarch64 has call frame information for a part only")
	}
	x, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := f.ELF.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	functions := 0
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) != elf.STT_FUNC || s.Value == 0 {
			continue
		}
		functions++
		if got, want := ruleText(t, x, s.Value), "rsp+8 same c-8"; got != want {
			t.Errorf("%s: got %q, want %q", s.Name, got, want)
		}
	}
	if functions < 4 {
		t.Errorf("found %d functions, want at least clock_gettime, gettimeofday, time and getcpu", functions)
	}
}
