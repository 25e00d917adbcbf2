package elffile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSymlinks is the kernel's own limit on links followed in one path.
const maxSymlinks = 40

// OpenRegular opens the regular file that path names inside the root folder
// root, as a process whose root folder that is would see it: absolute links
// and ".." cannot lead out of root. An empty root is the agent's own.
//
// The file is first opened with O_PATH and looked at: opening a FIFO or a
// device that a hostile process put there could block or have effects. With
// follow unset a symbolic link as the last element is refused.
func OpenRegular(root, path string, follow bool) (*os.File, error) {
	if root == "" {
		root = "/"
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer func() { _ = unix.Close(dir) }()

	flags := unix.O_PATH | unix.O_CLOEXEC
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Openat2(dir, strings.TrimLeft(path, "/"), &unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	// Kernels before 5.6 have no openat2, and seccomp profiles that do not
	// know it answer EPERM.
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		fd, err = walk(dir, path, follow)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return reopen(fd, path)
}

// openPlain opens a regular file by a path of the agent's own, magic links
// such as /proc/PID/exe and /proc/PID/map_files/… included.
func openPlain(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return reopen(fd, path)
}

// reopen turns an O_PATH descriptor of a regular file into a readable one and
// closes the first.
func reopen(fd int, path string) (*os.File, error) {
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("open %s: not a regular file", path)
	}
	r, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(r), path), nil
}

// walk resolves path below the directory dir one element at a time and
// returns an O_PATH descriptor. Where it stands is kept as a list of names
// from dir, every one of them seen not to be a link, so ".." is a matter of
// the list and never of the file system.
func walk(dir int, name string, follow bool) (int, error) {
	todo := strings.Split(name, "/")
	var at []string
	links := 0
	for len(todo) > 0 {
		elem := todo[0]
		todo = todo[1:]
		switch elem {
		case "", ".":
			continue
		case "..":
			if len(at) > 0 {
				at = at[:len(at)-1]
			}
			continue
		}
		parent, err := descend(dir, at)
		if err != nil {
			return -1, err
		}
		target, err := readlink(parent, elem)
		_ = unix.Close(parent)
		switch {
		case errors.Is(err, unix.EINVAL):
			at = append(at, elem)
		case err != nil:
			return -1, err
		case len(todo) == 0 && !follow:
			return -1, unix.ELOOP
		default:
			if links++; links > maxSymlinks {
				return -1, unix.ELOOP
			}
			if path.IsAbs(target) {
				at = at[:0]
			}
			todo = append(strings.Split(target, "/"), todo...)
		}
	}
	return descend(dir, at)
}

// descend opens a chain of names below dir, refusing links: one that was put
// there meanwhile is an error, not a way out.
func descend(dir int, names []string) (int, error) {
	fd, err := unix.Openat(dir, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
	for i := 0; i < len(names) && err == nil; i++ {
		var next int
		next, err = unix.Openat(fd, names[i], unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		fd = next
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
