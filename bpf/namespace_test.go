package bpf_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

// TestPIDNamespace runs the agent's side inside a new PID namespace: it sees
// that namespace's PIDs, and nothing of the processes outside.
func TestPIDNamespace(t *testing.T) {
	bpftest.Require(t)
	cmd := as("namespace")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	err := errRunning
	for err == errRunning { // meanwhile, life outside
		_ = exec.Command("/bin/true").Run()
		select {
		case err = <-done:
		default:
		}
	}
	if err != nil {
		t.Fatalf("inside the namespace: %v\n%s", err, &text)
	}
	if !strings.Contains(text.String(), "ok\n") {
		t.Fatalf("inside the namespace:\n%s", &text)
	}
}

var errRunning = errors.New("still running")

// insideNamespace is process 1 of its PID namespace.
func insideNamespace() int {
	if err := inside(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ok")
	return 0
}

func inside() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("this is PID %d of its namespace, want 1", os.Getpid())
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	k, err := bpf.Load(bpf.Config{})
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	side, err := bpf.OpenSideband()
	if err != nil {
		return err
	}
	defer func() { _ = side.Close() }()
	// The entry that a fork is to copy, by the namespace's PID.
	if err := k.Tables.SetProcess(1, 17, 0, true); err != nil {
		return err
	}
	// Before it starts its first process, Go forks one that only ends, to see
	// whether descriptors of processes work: on a slow machine it is sampled.
	if err := exec.Command("/bin/true").Run(); err != nil {
		return err
	}
	if err := k.Attach(999); err != nil {
		return err
	}
	child := as("deep")
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := child.Start(); err != nil {
		return err
	}
	pid := uint32(child.Process.Pid)
	seen := map[uint32]int{}
	var rec ringbuf.Record
	for deadline := time.Now().Add(10 * time.Second); seen[pid] < 5 && time.Now().Before(deadline); {
		k.SetDeadline(time.Now().Add(50 * time.Millisecond))
		err := k.Read(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		if rec.RawSample[0] != madeCgroup {
			seen[le32(rec.RawSample[8:])]++
		}
	}
	k.Detach()
	_ = child.Process.Kill()
	_ = child.Wait()
	for p := range seen {
		if p != 1 && p != pid {
			return fmt.Errorf("samples of PID %d, of which this namespace has none: %v", p, seen)
		}
	}
	if seen[pid] < 5 {
		return fmt.Errorf("no samples of PID %d: %v", pid, seen)
	}
	return insideEvents(side, pid)
}

func insideEvents(side *bpf.Sideband, pid uint32) error {
	var kinds []string
	events, err := side.Drain(nil)
	if err != nil {
		return err
	}
	for _, e := range events {
		if e.PID == 0 || e.PID > 1<<30 {
			return fmt.Errorf("an event of a process outside of the namespace: %+v", e)
		}
		if e.PID == pid && e.Kind != bpf.EventMap {
			kinds = append(kinds, strconv.Itoa(int(e.Kind)))
		}
	}
	if got := strings.Join(kinds, " "); got != "0 1 2" {
		return fmt.Errorf("events of PID %d are %s, want fork, exec, exit: 0 1 2", pid, got)
	}
	return nil
}

// TestLifecycle: what the kernel side does about processes by itself.
func TestLifecycle(t *testing.T) {
	k := load(t, bpf.Config{OnlyTargets: true})
	own := uint32(os.Getpid())
	if err := k.AddTarget(own); err != nil {
		t.Fatal(err)
	}
	if err := k.Tables.SetProcess(own, 42, 3, true); err != nil {
		t.Fatal(err)
	}
	has := func(name string, pid uint32) bool {
		v, err := k.Maps()[name].LookupBytes(pid)
		if err != nil {
			t.Fatal(err)
		}
		return v != nil
	}

	child := as("family")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	grandchild, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []uint32{uint32(child.Process.Pid), uint32(grandchild)} {
		if !has("targets", pid) {
			t.Errorf("PID %d is no target, and its parent is", pid)
		}
		if has("processes", pid) {
			t.Errorf("PID %d ran another program, and kept the mappings of its parent", pid)
		}
	}
	// Mappings that an exit is to take away.
	if err := k.Tables.SetProcess(uint32(child.Process.Pid), 42, 3, true); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"targets", "processes"} {
		for _, pid := range []uint32{uint32(child.Process.Pid), uint32(grandchild)} {
			if has(name, pid) {
				t.Errorf("PID %d is gone, and still in %s", pid, name)
			}
		}
		if !has(name, own) {
			t.Errorf("this process is no longer in %s", name)
		}
	}
	testFork(t, k, own)
}

// testFork: a child that runs the same program has its parent's mappings at once.
func testFork(t *testing.T, k *bpf.Kernel, own uint32) {
	t.Helper()
	// A shell forks for what stands in parentheses, and says the child's PID.
	// The child's own standard input is /dev/null, as of all that sh puts in the
	// background: it waits on descriptor 3.
	sh := as("")
	sh.Path, sh.Args = "/bin/sh", []string{"sh", "-c", "exec 3<&0; echo ready; read x; (read y <&3; :) & echo $!; wait"}
	in, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sh.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil { // the exec is over
		t.Fatal(err)
	}
	if err := k.Tables.SetProcess(uint32(sh.Process.Pid), 7, 2, true); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if first, ok := k.Tables.Process(uint32(pid)); !ok || first != 7 {
		t.Errorf("the forked PID %d has mappings from %d on (%t), want its parent's from 7 on", pid, first, ok)
	}
	_ = in.Close()
	if err := sh.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, ok := k.Tables.Process(own); !ok {
		t.Error("the parent's own mappings are gone")
	}
}
