package process

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Root is the root folder of processes of one mount namespace, kept open so
// that their files can still be read after they are gone.
type Root struct {
	fd int
}

// Path is a folder in the agent's file system that is the root.
func (r *Root) Path() string { return fmt.Sprintf("/proc/self/fd/%d", r.fd) }

type rootKey struct{ namespace, device, inode uint64 }

// roots are all open roots. Processes of a container share one.
type roots map[rootKey]*Root

func (rs roots) open(pid profiler.PID) (*Root, error) {
	var ns, st unix.Stat_t
	path := fmt.Sprintf("/proc/%d/root", pid)
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid), &ns); err != nil {
		return nil, &os.PathError{Op: "stat mount namespace of", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	key := rootKey{ns.Ino, st.Dev, st.Ino}
	if r, ok := rs[key]; ok {
		_ = unix.Close(fd)
		return r, nil
	}
	r := &Root{fd: fd}
	rs[key] = r
	return r, nil
}

func (rs roots) close() {
	for _, r := range rs {
		_ = unix.Close(r.fd)
	}
}
