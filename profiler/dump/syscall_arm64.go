package dump

// oldSyscalls are none: this machine is younger than their successors.
var oldSyscalls = map[int32]string{}
