package process

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Mapping is one executable mapping of a process.
type Mapping struct {
	Start, End uint64
	Offset     uint64 // in the file
	Device     uint64
	Inode      uint64 // 0: no file behind it
	Path       string // as the process saw it when it was mapped
}

// anonymous says that the mapping holds code made at run time.
func (m *Mapping) anonymous() bool {
	return m.Inode == 0 && m.Path != vdso
}

const vdso = "[vdso]"

// deleted is what the kernel puts after the path of a mapped file that is gone.
const deleted = " (deleted)"

// maxMappings bounds what one process can make us hold.
const maxMappings = 1 << 16

// readMaps reads the executable mappings of /proc/PID/maps, sorted by address.
func readMaps(pid profiler.PID) ([]Mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return parseMaps(f)
}

// parseMaps reads lines as in proc_pid_maps(5):
// 7f1c8000-7f1c9000 r-xp 00001000 fe:00 1234  /usr/lib/x.so (deleted)
func parseMaps(r io.Reader) ([]Mapping, error) {
	var ms []Mapping
	sc := bufio.NewScanner(r)
	for sc.Scan() && len(ms) < maxMappings {
		line := sc.Text()
		addresses, rest, _ := strings.Cut(line, " ")
		perms, rest, _ := strings.Cut(rest, " ")
		if len(perms) < 3 || perms[2] != 'x' {
			continue
		}
		offset, rest, _ := strings.Cut(rest, " ")
		device, rest, _ := strings.Cut(rest, " ")
		inode, path, _ := strings.Cut(rest, " ")
		low, high, _ := strings.Cut(addresses, "-")
		major, minor, _ := strings.Cut(device, ":")
		var m Mapping
		var bad error
		number := func(s string, base int) uint64 {
			n, err := strconv.ParseUint(s, base, 64)
			if err != nil {
				bad = err
			}
			return n
		}
		m.Start, m.End, m.Offset = number(low, 16), number(high, 16), number(offset, 16)
		m.Device = unix.Mkdev(uint32(number(major, 16)), uint32(number(minor, 16)))
		m.Inode = number(inode, 10)
		if bad != nil {
			return ms, fmt.Errorf("read mapping %q: %w", line, bad)
		}
		m.Path = strings.TrimSuffix(strings.TrimLeft(path, " "), deleted)
		if m.Path == "[vsyscall]" {
			continue // emulated by the kernel: nothing runs there
		}
		ms = append(ms, m)
	}
	return ms, sc.Err()
}

// insertMapping adds m to ms, cutting away what it covers: mmap with MAP_FIXED
// replaces, and the kernel tells of no munmap.
func insertMapping(ms []Mapping, m Mapping) []Mapping {
	if m.Start >= m.End || len(ms) >= maxMappings {
		return ms
	}
	// Most mappings cover nothing: a process with thousands must not cost their
	// square.
	at, _ := slices.BinarySearchFunc(ms, m.Start, func(o Mapping, start uint64) int {
		if o.End <= start {
			return -1
		}
		return 1
	})
	if at == len(ms) || ms[at].Start >= m.End {
		return slices.Insert(ms, at, m)
	}
	out := make([]Mapping, 0, len(ms)+2)
	placed := false
	for _, o := range ms {
		if o.Start < m.Start {
			left := o
			left.End = min(o.End, m.Start)
			out = append(out, left)
		}
		if !placed && o.End > m.Start {
			out = append(out, m)
			placed = true
		}
		if o.End > m.End {
			right := o
			if right.Start < m.End {
				right.Offset += m.End - right.Start
				right.Start = m.End
			}
			if !placed {
				out = append(out, m)
				placed = true
			}
			out = append(out, right)
		}
	}
	if !placed {
		out = append(out, m)
	}
	return out
}
