package dump

import "golang.org/x/sys/unix"

// oldSyscalls have successors, which are all that younger machines have.
var oldSyscalls = map[int32]string{
	unix.SYS_EPOLL_WAIT: "epoll_wait",
	unix.SYS_POLL:       "poll",
	unix.SYS_SELECT:     "select",
	unix.SYS_PAUSE:      "pause",
	unix.SYS_OPEN:       "open",
	unix.SYS_STAT:       "stat",
	unix.SYS_LSTAT:      "lstat",
	unix.SYS_ACCESS:     "access",
	unix.SYS_RENAME:     "rename",
	unix.SYS_UNLINK:     "unlink",
	unix.SYS_MKDIR:      "mkdir",
	unix.SYS_RMDIR:      "rmdir",
	unix.SYS_LINK:       "link",
	unix.SYS_READLINK:   "readlink",
	unix.SYS_CREAT:      "creat",
	unix.SYS_GETDENTS:   "getdents",
	unix.SYS_FORK:       "fork",
	unix.SYS_VFORK:      "vfork",
}
