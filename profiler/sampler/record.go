package sampler

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// Stack is one sample, or the first of several with the same stack. Its slices
// are valid until the next record is read.
type Stack struct {
	Key     Key
	Process Process
	Thread  profiler.TID // of this very sample
	Comm    [16]byte     // of the process
	Name    [16]byte     // of the thread
	Share   uint32       // of such samples that was taken, of 2^32; bpf.ShareAll: all
	Late    int          // the rate that it was taken at, of a copy that waited while the rate changed; 0: that of now
	Stop    profiler.Stop
	Counted bool     // the kernel side counts further samples of this stack
	Kernel  []uint64 // addresses, leaf first
	User    []uint64 // unwind.Word frames, leaf first
}

// Process says whose a sample is, by what the kernel knew when it was taken. A PID
// alone would not: it is given again, and a process may go to another cgroup.
type Process struct {
	PID     profiler.PID
	Started uint64    // when, in nanoseconds of CLOCK_BOOTTIME
	Cgroups [2]uint64 // their numbers in the unified hierarchy and in that of version 1; 0: none
}

// Key says which samples are the same: one stack of one process, and of one
// thread where threads are told apart (TID is 0 where not).
type Key struct {
	Hash uint64
	PID  profiler.PID
	TID  profiler.TID
}

// Copy is one sample whose walk is still to be finished: User holds the frames
// so far.
type Copy struct {
	Stack
	unwind.Copy
}

// Kinds of record and the layout of their structs: contract.h.
const (
	recordStack = 1
	recordCopy  = 2
	recordMade  = 3

	flagCounted   = 1
	flagExact     = 2
	flagLeaf      = 4
	flagRegisters = 8

	headerBytes = 96
	madePath    = 16 // where the path of a cgroup begins
	regsBytes   = 8 * (4 + 32)
	copyLength  = headerBytes + regsBytes
	copyFrames  = copyLength + 8
	copyStack   = copyFrames + 8*(127+1+unwind.MaxFrames)
)

// ErrTruncated says that a record is shorter than it claims.
var ErrTruncated = errors.New("record is too short")

var order = binary.LittleEndian // amd64 and arm64

// decode reads one record of the ring buffer. words is reused for the frames.
// A copy's stack points into raw.
func decode(raw []byte, words []uint64, byThread bool) (c Copy, isCopy bool, rest []uint64, err error) {
	if len(raw) < headerBytes {
		return c, false, words, fmt.Errorf("header of %d bytes: %w", len(raw), ErrTruncated)
	}
	kind, flags := raw[0], raw[2]
	kernel, user := int(order.Uint16(raw[4:])), int(order.Uint16(raw[6:]))
	c.Stop = profiler.Stop(raw[1])
	c.Key = Key{Hash: order.Uint64(raw[16:]), PID: profiler.PID(order.Uint32(raw[8:]))}
	c.Thread = profiler.TID(order.Uint32(raw[12:]))
	if byThread {
		c.Key.TID = c.Thread
	}
	c.Process = Process{c.Key.PID, order.Uint64(raw[32:]), [2]uint64{order.Uint64(raw[40:]), order.Uint64(raw[48:])}}
	copy(c.Comm[:], raw[56:72])
	copy(c.Name[:], raw[72:88])
	c.Share = order.Uint32(raw[88:])
	c.Counted = flags&flagCounted != 0

	from := headerBytes
	switch kind {
	case recordStack:
	case recordCopy:
		isCopy, from = true, copyFrames
		if len(raw) < copyStack || from+8*(kernel+user) > copyStack {
			return c, true, words, fmt.Errorf("copy of %d bytes: %w", len(raw), ErrTruncated)
		}
		n := int(order.Uint32(raw[copyLength:]))
		if len(raw) < copyStack+n {
			return c, true, words, fmt.Errorf("copy of %d bytes with a stack of %d: %w", len(raw), n, ErrTruncated)
		}
		regs := raw[headerBytes:]
		c.Regs = unwind.Regs{PC: order.Uint64(regs), SP: order.Uint64(regs[8:]), FP: order.Uint64(regs[16:]), LR: order.Uint64(regs[24:])}
		for i := range c.Regs.R {
			c.Regs.R[i] = order.Uint64(regs[32+8*i:])
		}
		c.Exact, c.Leaf, c.Registers = flags&flagExact != 0, flags&flagLeaf != 0, flags&flagRegisters != 0
		c.Taken = order.Uint64(raw[24:])
		c.Copy.Stack, c.Below = raw[copyStack:copyStack+n], order.Uint32(raw[copyLength+4:])
	default:
		return c, false, words, fmt.Errorf("unknown kind of record %d", kind)
	}
	if len(raw) < from+8*(kernel+user) {
		return c, isCopy, words, fmt.Errorf("%d frames in %d bytes: %w", kernel+user, len(raw), ErrTruncated)
	}
	words = words[:0]
	for i := range kernel + user {
		words = append(words, order.Uint64(raw[from+8*i:]))
	}
	c.Kernel, c.User = words[:kernel:kernel], words[kernel:]
	return c, isCopy, words, nil
}

// decodeMade reads the record of a cgroup that was made. A path as long as its
// place has lost its end.
func decodeMade(raw []byte) (c bpf.Cgroup, path string, err error) {
	if len(raw) <= madePath {
		return c, "", fmt.Errorf("record of a cgroup of %d bytes: %w", len(raw), ErrTruncated)
	}
	text, _, _ := bytes.Cut(raw[madePath:], []byte{0})
	if len(text) >= len(raw)-madePath-1 {
		return c, "", fmt.Errorf("path of a cgroup: %w", ErrTruncated)
	}
	return bpf.Cgroup{ID: order.Uint64(raw[8:]), Old: order.Uint32(raw[4:]) != 0}, string(text), nil
}

// hash is what the kernel side computes for a finished stack: klp_mix over the
// name of the process, when it was started, the share, its cgroups, all frames, and
// the reason why the walk ended.
func hash(s *Stack) uint64 {
	h := mix(mix(0, order.Uint64(s.Comm[:])), order.Uint64(s.Comm[8:]))
	for _, w := range [...]uint64{s.Process.Started, uint64(s.Share), s.Process.Cgroups[0], s.Process.Cgroups[1]} {
		h = mix(h, w)
	}
	for _, w := range s.Kernel {
		h = mix(h, w)
	}
	for _, w := range s.User {
		h = mix(h, w)
	}
	return mix(h, uint64(s.Stop))
}

func mix(h, word uint64) uint64 {
	h = (h ^ word) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}
