package cluster

import "golang.org/x/sys/unix"

// memoryBytes is the memory of this machine, 0 where it is not known.
func memoryBytes() int64 {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0
	}
	return int64(n)
}
