package sampler

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

// TestRecordsAreLaidOutAsInC compares what decode takes for granted with the
// BTF of the committed objects.
func TestRecordsAreLaidOutAsInC(t *testing.T) {
	type layout map[string]uint32
	want := map[string]layout{
		"klp_header": {
			"": headerBytes, "kind": 0, "stop": 1, "flags": 2, "kernel_frames": 4, "user_frames": 6, "pid": 8, "tid": 12,
			"hash": 16, "ktime_ns": 24, "started_ns": 32, "cgroups": 40, "comm": 56, "thread": 72, "share": 88,
		},
		"klp_regs": {"": regsBytes, "pc": 0, "sp": 8, "fp": 16, "lr": 24, "r": 32},
		"klp_copy": {
			"": copyStack + 64<<10, "header": 0, "regs": headerBytes, "bytes": copyLength, "below": copyLength + 4,
			"frames": copyFrames, "stack": copyStack,
		},
		"klp_stack": {"": headerBytes + copyStack - copyFrames, "header": 0, "frames": headerBytes},
	}
	for _, object := range []string{"kalypso_x86_bpfel.o", "kalypso_arm64_bpfel.o"} {
		spec, err := ebpf.LoadCollectionSpec("../../bpf/" + object)
		if err != nil {
			t.Fatal(err)
		}
		for name, w := range want {
			var s *btf.Struct
			if err := spec.Types.TypeByName(name, &s); err != nil {
				t.Fatalf("%s: struct %s: %v", object, name, err)
			}
			got := layout{"": s.Size}
			for _, m := range s.Members {
				if !strings.HasPrefix(m.Name, "pad") {
					got[m.Name] = m.Offset.Bytes()
				}
			}
			if diff := cmp.Diff(w, got); diff != "" {
				t.Errorf("%s: struct %s, its size and members (-Go +C):\n%s", object, name, diff)
			}
		}
	}
}

// TestMixIsTheKernels: a stack that was unwound in user space has the hash that
// the kernel side gives to the same stack.
func TestMixIsTheKernels(t *testing.T) {
	bpftest.Require(t)
	f := bpftest.Load(t, nil)
	h := uint64(0)
	for _, word := range []uint64{0, 1, 1 << 63, ^uint64(0), 0x123456789abcdef, 7 << 48} {
		call := bpftest.Call{Value: h, Address: word}
		f.Call(t, "mix", nil, &call)
		if got := mix(h, word); got != call.Value {
			t.Fatalf("mix(%#x, %#x) is %#x, in the kernel %#x", h, word, got, call.Value)
		}
		h = call.Value
	}
}
