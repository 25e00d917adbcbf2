package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/test/kernels/guest"
)

// withoutRandomAddresses becomes a command, as setarch -R does.
func withoutRandomAddresses(command []string) error {
	const addrNoRandomize = 0x0040000 // include/uapi/linux/personality.h
	if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, addrNoRandomize, 0, 0); errno != 0 {
		return fmt.Errorf("keep addresses where they are: %w", errno)
	}
	return unix.Exec(command[0], command, os.Environ())
}

// standIn does what tests ask of gcc and go, by name: there is no compiler in the
// machine, and the host has built what they will ask for.
func standIn(name string, args []string) error {
	from, out := "", ""
	switch name {
	case "gcc":
		what, to, err := guest.Compilation(args)
		if err != nil {
			return err
		}
		from, out = filepath.Join("/built", what), to
	case "go":
		i := slices.Index(args, "-o")
		if i < 0 || i+1 >= len(args) || !strings.HasSuffix(args[len(args)-1], "cmd/agent") {
			return fmt.Errorf("go %q: only the agent was built for this machine", args)
		}
		from, out = "/bin/kalypso-agent", args[i+1]
	}
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("%s %q was not built for this machine: see compilations in test/kernels: %w", name, args, err)
	}
	defer func() { _ = in.Close() }()
	f, err := os.OpenFile(out, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, in); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
