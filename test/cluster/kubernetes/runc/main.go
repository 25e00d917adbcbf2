// Command runc stands before the real one. It takes out of a container's
// specification the capabilities that this machine does not grant anybody, and
// then becomes the real runc, which would fail over them: "unable to apply caps:
// operation not permitted". Agents that ask for CAP_SYS_RESOURCE start so where CI
// itself runs in a container without it.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// runc is where Debian has it.
const runc = "/usr/sbin/runc"

func main() {
	err := prepare(os.Args[1:])
	if err == nil {
		err = syscall.Exec(runc, os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "runc of the test cluster:", err)
	os.Exit(1)
}

// prepare edits the specification that this call is about, if it is about one:
// of a container that is created, or of a process that joins one.
func prepare(args []string) error {
	switch {
	case slices.Contains(args, "create"):
		return edit(filepath.Join(option(args, "--bundle", "."), "config.json"), "process", "capabilities")
	case slices.Contains(args, "exec"):
		if file := option(args, "--process", ""); file != "" {
			return edit(file, "capabilities")
		}
	}
	return nil
}

// option is the value of a flag, written as --name value or --name=value.
func option(args []string, name, otherwise string) string {
	for i, a := range args {
		if a == name && i+1 < len(args) {
			return args[i+1]
		}
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
	}
	return otherwise
}

// edit drops what is not granted from the sets of capabilities at path in a JSON
// file.
func edit(file string, path ...string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber() // limits are larger than a float64 can hold
	var spec map[string]any
	if err := decoder.Decode(&spec); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	sets := spec
	for _, p := range path {
		sets, _ = sets[p].(map[string]any)
	}
	granted, err := bounding()
	if err != nil {
		return err
	}
	changed := false
	for name, set := range sets {
		list, _ := set.([]any)
		kept := slices.DeleteFunc(slices.Clone(list), func(c any) bool { return !granted[c] })
		changed = changed || len(kept) != len(list)
		sets[name] = kept
	}
	if !changed {
		return nil
	}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

// Capabilities in the order of their numbers: include/uapi/linux/capability.h.
const capabilities = `CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
	SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
	AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON
	BPF CHECKPOINT_RESTORE`

// bounding is the set of capabilities that this process could pass on.
func bounding() (map[any]bool, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	_, rest, ok := strings.Cut(string(status), "CapBnd:")
	if !ok {
		return nil, errors.New("no CapBnd in /proc/self/status")
	}
	mask, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
	if err != nil {
		return nil, err
	}
	granted := map[any]bool{}
	for bit, name := range strings.Fields(capabilities) {
		if mask&(1<<bit) != 0 {
			granted["CAP_"+name] = true
		}
	}
	return granted, nil
}
