package sampler

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// stackRecord is a record of a whole stack, as klp_emit lays it out.
func stackRecord(flags byte, stop profiler.Stop, kernel, user []uint64) []byte {
	raw := make([]byte, headerBytes)
	raw[0], raw[1], raw[2] = recordStack, byte(stop), flags
	order.PutUint16(raw[4:], uint16(len(kernel)))
	order.PutUint16(raw[6:], uint16(len(user)))
	order.PutUint32(raw[8:], 41)
	order.PutUint32(raw[12:], 42)
	order.PutUint64(raw[16:], 0x1122334455667788)
	order.PutUint64(raw[24:], 42_000)
	order.PutUint64(raw[32:], 43)
	order.PutUint64(raw[40:], 44)
	order.PutUint64(raw[48:], 45)
	copy(raw[56:], "comm")
	copy(raw[72:], "thread")
	order.PutUint32(raw[88:], 46)
	for _, w := range append(slices.Clone(kernel), user...) {
		raw = order.AppendUint64(raw, w)
	}
	return raw
}

// copyRecord is one with registers and a copied stack, as klp_defer lays it out.
func copyRecord(flags byte, kernel, user []uint64, stack []byte) []byte {
	raw := make([]byte, copyStack)
	head := stackRecord(flags, profiler.StopNoTable, kernel, user)
	copy(raw, head[:headerBytes])
	raw[0] = recordCopy
	for i := range 4 + 32 {
		order.PutUint64(raw[headerBytes+8*i:], uint64(1000+i))
	}
	order.PutUint32(raw[copyLength:], uint32(len(stack)))
	copy(raw[copyFrames:], head[headerBytes:])
	return append(raw, stack...)
}

func TestDecodeStack(t *testing.T) {
	for _, byThread := range []bool{false, true} {
		raw := stackRecord(flagCounted, profiler.StopRoot, []uint64{1, 2}, []uint64{3, 4, 5})
		c, isCopy, words, err := decode(raw, nil, byThread)
		if err != nil || isCopy || len(words) != 5 {
			t.Fatalf("%v, %v, %v", words, isCopy, err)
		}
		want := Stack{
			Key: Key{Hash: 0x1122334455667788, PID: 41}, Process: Process{41, 43, [2]uint64{44, 45}},
			Thread: 42, Comm: [16]byte{'c', 'o', 'm', 'm'}, Name: [16]byte{'t', 'h', 'r', 'e', 'a', 'd'},
			Share: 46, Stop: profiler.StopRoot, Counted: true, Kernel: []uint64{1, 2}, User: []uint64{3, 4, 5},
		}
		if byThread {
			want.Key.TID = 42
		}
		if diff := cmp.Diff(c.Stack, want); diff != "" {
			t.Errorf("by thread %v (-got +want):\n%s", byThread, diff)
		}
	}
}

func TestDecodeCopy(t *testing.T) {
	c, isCopy, _, err := decode(copyRecord(flagExact|flagRegisters, []uint64{1}, []uint64{2, 3}, []byte("stack")), nil, false)
	if err != nil || !isCopy {
		t.Fatal(isCopy, err)
	}
	want := unwind.Copy{Exact: true, Registers: true, Stack: []byte("stack"), Taken: 42_000}
	want.Regs = unwind.Regs{PC: 1000, SP: 1001, FP: 1002, LR: 1003}
	for i := range want.Regs.R {
		want.Regs.R[i] = uint64(1004 + i)
	}
	if diff := cmp.Diff(c.Copy, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if !slices.Equal(c.Kernel, []uint64{1}) || !slices.Equal(c.User, []uint64{2, 3}) || c.Stop != profiler.StopNoTable {
		t.Errorf("frames %v, %v, %s", c.Kernel, c.User, c.Stop)
	}
	c, _, _, err = decode(copyRecord(flagLeaf, nil, nil, nil), nil, false)
	if err != nil || c.Exact || c.Registers || !c.Leaf || len(c.Copy.Stack) != 0 {
		t.Errorf("a copy of no bytes: %+v, %v", c.Copy, err)
	}
}

func TestDecodeMade(t *testing.T) {
	record := func(hierarchy byte, path string, bytes int) []byte {
		raw := make([]byte, madePath+bytes)
		raw[0], raw[4] = recordMade, hierarchy
		order.PutUint64(raw[8:], 77)
		copy(raw[madePath:], path)
		return raw
	}
	for _, tt := range []struct {
		name string
		raw  []byte
		want bpf.Cgroup
		path string
		err  error
	}{
		{"unified", record(0, "/a/b", 1024), bpf.Cgroup{ID: 77}, "/a/b", nil},
		{"version 1", record(1, "/a", 1024), bpf.Cgroup{ID: 77, Old: true}, "/a", nil},
		{"a path as long as it may be", record(0, "/234567", 9), bpf.Cgroup{ID: 77}, "/234567", nil},
		{"a path without its end", record(0, "/2345678", 9), bpf.Cgroup{}, "", ErrTruncated},
		{"no path", record(0, "", 0), bpf.Cgroup{}, "", ErrTruncated},
		{"half a record", record(0, "", 0)[:5], bpf.Cgroup{}, "", ErrTruncated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c, path, err := decodeMade(tt.raw); c != tt.want || path != tt.path || !errors.Is(err, tt.err) {
				t.Errorf("%+v, %q, %v; want %+v, %q, %v", c, path, err, tt.want, tt.path, tt.err)
			}
		})
	}
	var heard []string
	s := New(Config{Sink: newTally(), Failed: func(error) {}, Made: func(_ bpf.Cgroup, path string) { heard = append(heard, path) }})
	for _, tt := range [][]byte{record(0, "/a", 1024), record(0, "", 0)} {
		if _, counted := s.record(tt, nil); counted || s.Stats() != (Stats{}) {
			t.Errorf("it is taken for a sample: %+v", s.Stats())
		}
	}
	if !slices.Equal(heard, []string{"/a"}) {
		t.Errorf("heard of %q", heard)
	}
}

// TestHashTellsProcessesApart: what is counted of one is not another's.
func TestHashTellsProcessesApart(t *testing.T) {
	one := Stack{Process: Process{1, 2, [2]uint64{3, 4}}, Stop: profiler.StopRoot}
	for name, p := range map[string]Process{
		"another start": {1, 3, [2]uint64{3, 4}}, "another cgroup": {1, 2, [2]uint64{4, 4}}, "another of version 1": {1, 2, [2]uint64{3, 3}},
	} {
		other := one
		if other.Process = p; hash(&other) == hash(&one) {
			t.Errorf("%s has the same hash", name)
		}
	}
	thinned := one
	if thinned.Share = 5; hash(&thinned) == hash(&one) {
		t.Error("a sample that stands for more has the same hash")
	}
}

func TestDecodeReusesWords(t *testing.T) {
	words := make([]uint64, 0, 64)
	raw := stackRecord(0, profiler.StopRoot, []uint64{1}, []uint64{2})
	if n := testing.AllocsPerRun(100, func() { _, _, words, _ = decode(raw, words, false) }); n != 0 {
		t.Errorf("%v allocations for a record", n)
	}
	// Kernel frames must not run over into the user's when they are appended to.
	c, _, _, _ := decode(raw, words, false)
	_ = append(c.Kernel, 99)
	if c.User[0] != 2 {
		t.Error("appending to the kernel frames changes the user frames")
	}
}

func TestDecodeBad(t *testing.T) {
	stack := stackRecord(0, profiler.StopRoot, []uint64{1}, []uint64{2})
	copied := copyRecord(0, []uint64{1}, []uint64{2}, []byte("stack"))
	with := func(raw []byte, at int, b ...byte) []byte {
		raw = slices.Clone(raw)
		copy(raw[at:], b)
		return raw
	}
	tests := []struct {
		name string
		raw  []byte
		want error // nil: any
	}{
		{"empty", nil, ErrTruncated},
		{"half a header", stack[:40], ErrTruncated},
		{"a frame too few", stack[:len(stack)-1], ErrTruncated},
		{"more frames than bytes", with(stack, 6, 0xff, 0xff), ErrTruncated},
		{"more kernel frames than bytes", with(stack, 4, 0xff, 0xff), ErrTruncated},
		{"no kind", with(stack, 0, 0), nil},
		{"an unknown kind", with(stack, 0, 77), nil},
		{"a copy without registers", copied[:headerBytes+8], ErrTruncated},
		{"a copy's stack cut", copied[:len(copied)-1], ErrTruncated},
		{"a copy's stack longer than memory", with(copied, copyLength, 0xff, 0xff, 0xff, 0xff), ErrTruncated},
		{"a copy with more frames than it has room for", with(copied, 4, 0xff, 0xff), ErrTruncated},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, _, err := decode(tt.raw, nil, false)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(stackRecord(flagCounted, profiler.StopRoot, []uint64{1, 2}, []uint64{3}))
	f.Add(stackRecord(0, 200, nil, nil))
	f.Add(copyRecord(flagExact|flagLeaf|flagRegisters, []uint64{1}, []uint64{2, 3}, make([]byte, 100)))
	f.Add([]byte{recordCopy})
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, isCopy, words, err := decode(raw, nil, true)
		if err != nil {
			return
		}
		if len(c.Kernel)+len(c.User) != len(words) || 8*len(words) > len(raw) || len(c.Copy.Stack) > len(raw) {
			t.Errorf("%d and %d frames, %d bytes of stack out of %d bytes", len(c.Kernel), len(c.User), len(c.Copy.Stack), len(raw))
		}
		if !isCopy && len(c.Copy.Stack) != 0 {
			t.Error("a stack record with a copy")
		}
		hash(&c.Stack)
	})
}
