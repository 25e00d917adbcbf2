package process

import (
	"debug/elf"

	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

func hostMachine() elf.Machine { return elf.EM_AARCH64 }

// HostArch is the instruction set that the agent runs on.
const HostArch = unwind.ARM64
