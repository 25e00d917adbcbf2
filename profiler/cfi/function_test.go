package cfi

import (
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

func TestFunctionStartsAtItsSymbol(t *testing.T) {
	f, err := elffile.Open(libc(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	x, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	text := f.Section(".text")
	for addr := text.Addr; addr < text.Addr+text.Size; addr += 977 {
		s, ok := f.Symbol(addr)
		if !ok || s.Size == 0 || addr >= s.Value+s.Size {
			continue
		}
		start, ok := x.Function(addr)
		if !ok {
			continue // assembly without an entry
		}
		checked++
		if start > addr || start > s.Value && start-s.Value > s.Size {
			t.Errorf("Function(%#x) = %#x, symbol %s at %#x", addr, start, s.Name, s.Value)
		}
	}
	if checked < 300 {
		t.Errorf("found the function of only %d addresses", checked)
	}
	if _, ok := x.Function(0); ok {
		t.Error("Function(0) found something")
	}
}
