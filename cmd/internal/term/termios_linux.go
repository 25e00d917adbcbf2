package term

import "golang.org/x/sys/unix"

// What tcgetattr and tcsetattr of the C library ask the kernel with.
const (
	getTermios      = unix.TCGETS
	setTermios      = unix.TCSETS
	setTermiosFlush = unix.TCSETSF
)
