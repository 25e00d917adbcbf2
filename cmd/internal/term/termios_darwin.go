package term

import "golang.org/x/sys/unix"

// What tcgetattr and tcsetattr of the C library ask the kernel with.
const (
	getTermios      = unix.TIOCGETA
	setTermios      = unix.TIOCSETA
	setTermiosFlush = unix.TIOCSETAF
)
