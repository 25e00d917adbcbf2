package bpf_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// role names the variable that turns the test binary into something else.
const role = "KALYPSO_BPF_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "family":
		family()
	case "namespace":
		os.Exit(insideNamespace())
	case "wait":
		wait()
	case "deep":
		spinAtDepths()
	default:
		os.Exit(2)
	}
}

// as is the test binary in a role.
func as(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// wait ends with its standard input.
func wait() {
	var b [1]byte
	_, _ = os.Stdin.Read(b[:])
}

// family starts a child that waits, says its PID, and waits too.
func family() {
	child := as("wait")
	in, err := child.StdinPipe()
	if err == nil {
		err = child.Start()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(child.Process.Pid)
	wait()
	_ = in.Close()
	_ = child.Wait()
}

// eventually polls until the condition holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

//go:noinline
func deep(n int, until time.Time) int {
	if n > 0 {
		return deep(n-1, until) + 1
	}
	x := 1
	for i := 0; ; i++ {
		x = x*1103515245 + 12345
		if i&0xffff == 0 && time.Now().After(until) {
			return x & 1
		}
	}
}

// spinAtDepths burns CPU time below a changing number of calls until it is killed.
func spinAtDepths() {
	sum := 0
	for i := 0; ; i++ {
		sum += deep(i%60, time.Now().Add(3*time.Millisecond))
		if sum == -1 {
			return
		}
	}
}
