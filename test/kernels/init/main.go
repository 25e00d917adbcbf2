// Command init is all there is in the machines of the kernel matrix: the first
// process of a kernel that boots in an emulator. It runs the list of commands
// in /runs.json, writes what they did to the console, and switches the machine
// off.
//
// As "init record-by-tail-calls FILE COMMAND…" it records a command as on
// kernels without bpf_loop, for which the agent has no flag; as "init dump-of
// COMMAND…" it dumps one that waits; as "init without-cycles COMMAND…" it runs one
// while no other event can count. Under the names of compilers it stands in for
// them.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/test/kernels/guest"
)

func main() {
	if os.Getpid() != 1 {
		if err := second(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := first(); err != nil {
		fmt.Println("init:", err)
	}
	unix.Sync()
	// The emulator ends at a restart; a first process that returns would be a
	// kernel panic.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Println("restart:", err)
	}
}

func second(args []string) error {
	name := filepath.Base(args[0])
	switch {
	case name == "gcc" || name == "go":
		return standIn(name, args[1:])
	case name == "setarch" && len(args) > 2 && args[1] == "-R":
		return withoutRandomAddresses(args[2:])
	case len(args) > 3 && args[1] == "record-by-tail-calls":
		return recordByTailCalls(context.Background(), args[2], args[3:])
	case len(args) > 2 && args[1] == "dump-of":
		return dumpOf(args[2:])
	case len(args) > 2 && args[1] == "without-cycles":
		return withoutCycles(args[2:])
	case len(args) > 2 && args[1] == "hold":
		return hold(args[2:])
	}
	return fmt.Errorf("usage: %s record-by-tail-calls FILE COMMAND…", args[0])
}

func first() error {
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""}, {"tmpfs", "/tmp", ""},
		{"securityfs", "/sys/kernel/security", ""}, {"tracefs", "/sys/kernel/tracing", ""},
		// Both versions, as distributions of Kubernetes still have it.
		{"cgroup2", "/sys/fs/cgroup", ""}, {"cgroup", "/cgroup/cpu", "cpu"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		// sysfs has folders only for what the kernel has.
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := loopback(); err != nil {
		return fmt.Errorf("bring up the loopback device: %w", err)
	}
	// From here on the console is for results; a panic still shows.
	if err := os.WriteFile("/proc/sys/kernel/printk", []byte("1"), 0); err != nil {
		return err
	}
	raw, err := os.ReadFile("/runs.json")
	if err != nil {
		return err
	}
	var runs []guest.Run
	if err := json.Unmarshal(raw, &runs); err != nil {
		return fmt.Errorf("parse /runs.json: %w", err)
	}
	long := slices.Contains(os.Environ(), guest.LongRuns)
	for i := range runs {
		if runs[i].Long && !long {
			continue
		}
		fmt.Println("init: run", runs[i].Name)
		if err := send(execute(&runs[i])); err != nil {
			return err
		}
	}
	fmt.Println(guest.End)
	return nil
}

// loopback lets programs of the machine reach each other.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// execute runs one command, as long as it may.
func execute(r *guest.Run) *guest.Result {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.Seconds)*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, r.Command[0], r.Command[1:]...)
	c.Dir, c.Env = r.Dir, append([]string{"PATH=/bin", "HOME=/tmp"}, r.Env...)
	c.Stdout, c.Stderr = &stdout, &stderr
	c.WaitDelay = time.Second
	start := time.Now()
	err := c.Run()
	res := &guest.Result{Name: r.Name, Seconds: time.Since(start).Seconds(), Files: map[string]string{}}
	if err != nil {
		res.Error = err.Error()
	}
	if ctx.Err() != nil {
		res.Error = fmt.Sprintf("not over after %d s", r.Seconds)
	}
	res.Stdout, res.Stderr = stdout.String(), stderr.String()
	for _, name := range r.Files {
		// A file that was not written is a failure that the host names.
		if b, err := os.ReadFile(name); err == nil {
			res.Files[name] = string(b)
		}
	}
	return res
}

// send writes a result as lines that the kernel's own words cannot be taken
// for: the console has one line discipline and no other channel is in every
// kernel without modules.
func send(r *guest.Result) error {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if err := json.NewEncoder(z).Encode(r); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	text := base64.StdEncoding.EncodeToString(packed.Bytes())
	var lines strings.Builder
	for len(text) > 0 {
		n := min(len(text), 800)
		fmt.Fprintf(&lines, "%s%s\n", guest.Line, text[:n])
		text = text[n:]
	}
	fmt.Fprintf(&lines, "%s\n", guest.Over)
	_, err := os.Stdout.WriteString(lines.String())
	return err
}
