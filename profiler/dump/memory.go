package dump

import (
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// stackBytes is the most that is read of a stack, as the sampler does
// (KLP_COPY_BYTES): a deeper one ends there and says so.
const stackBytes = 64 << 10

// readStack reads a thread's memory from address up: stackBytes, or as much as
// is there. It waits where the process's memory cannot be looked at now.
func readStack(tid uint32, address uint64) ([]byte, error) {
	b := make([]byte, stackBytes)
	n, err := readMemory(int(tid), b, address)
	if err != nil && !errors.Is(err, unix.EFAULT) {
		// No such call in this kernel, or a container's seccomp profile forbids it.
		n, err = readFile(tid, b, address, err)
	}
	if n > 0 {
		return b[:n], nil
	}
	return nil, err
}

// readMemory asks page by page: process_vm_readv(2) promises what lies before a
// hole only for elements that it does not cross.
func readMemory(tid int, b []byte, address uint64) (int, error) {
	page := uint64(unix.Getpagesize())
	var remote []unix.RemoteIovec
	for at, end := address, address+uint64(len(b)); at < end; {
		next := min(at&^(page-1)+page, end)
		remote = append(remote, unix.RemoteIovec{Base: uintptr(at), Len: int(next - at)})
		at = next
	}
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	return unix.ProcessVMReadv(tid, local, remote, 0)
}

// readFile reads the same through the process's file; its error is the first
// one where there is nothing else to say.
func readFile(tid uint32, b []byte, address uint64, first error) (int, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(int(tid)) + "/mem")
	if err != nil {
		return 0, first
	}
	defer func() { _ = f.Close() }()
	n, err := f.ReadAt(b, int64(address))
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) {
		err = nil // a hole
	}
	return n, err
}
