package cluster

import "golang.org/x/sys/unix"

// memoryBytes is the memory of this machine, 0 where it is not known.
func memoryBytes() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}
