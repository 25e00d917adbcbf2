package bpf

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

// TestRefusal has the verifier refuse a program that returns nothing.
func TestRefusal(t *testing.T) {
	bpftest.Require(t)
	_, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SocketFilter, License: "GPL", Instructions: asm.Instructions{asm.Return()},
	})
	err = loadError(err)
	var refusal *Refusal
	if !errors.As(err, &refusal) || !errors.Is(err, unix.EACCES) {
		t.Fatalf("got %v, want a refusal with EACCES", err)
	}
	if !strings.Contains(strings.Join(refusal.Log, "\n"), "R0 !read_ok") || !strings.Contains(err.Error(), "R0 !read_ok") {
		t.Errorf("the reason is in neither the log nor the error: %q, %v", refusal.Log, err)
	}
	refusal.Log = append(make([]string, 100), refusal.Log...)
	if n := strings.Count(refusal.Error(), "\n"); n > 20 {
		t.Errorf("the error has %d lines of the log", n)
	}
}
