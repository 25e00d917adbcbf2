package dump

import (
	"os"
	"reflect"
	"testing"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/golang"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// TestSettle: when a stack is believed, looked at again, given up or forgotten.
func TestSettle(t *testing.T) {
	pid := profiler.PID(os.Getpid())
	pc := uint64(reflect.ValueOf(TestSettle).Pointer())
	tests := []struct {
		name    string
		tries   int
		flags   bpf.ThreadFlags
		next    []bpf.Thread
		settled bool // the thread is done
		changed bool
		gone    bool
	}{
		{"one that did not run is believed", 1, 0, []bpf.Thread{{TID: 7, Switches: 5}}, true, false, false},
		{"one that ran is looked at again", 1, 0, []bpf.Thread{{TID: 7, Switches: 6}}, false, false, false},
		{"one that runs now too", 1, 0, []bpf.Thread{{TID: 7, Switches: 5, Flags: bpf.ThreadOnCPU}}, false, false, false},
		{"one that ran then too", 1, bpf.ThreadOnCPU, []bpf.Thread{{TID: 7, Switches: 5}}, false, false, false},
		{"one that always ran is given up", maxTries, 0, []bpf.Thread{{TID: 7, Switches: 6}}, true, true, false},
		{"one that was not looked at is not believed", 0, 0, []bpf.Thread{{TID: 7, Switches: 5}}, false, false, false},
		{"one that ended is forgotten", 1, 0, nil, false, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := process.NewTable(&tables{pages: map[uint32]bpf.Page{}}, noEvents{}, []lang.Runtime{golang.Runtime{}})
			defer table.Close()
			s := &sight{tries: tt.tries, Thread: bpf.Thread{TID: 7, Switches: 5, Flags: tt.flags}}
			s.copy = unwind.Copy{Arch: process.HostArch, Regs: unwind.Regs{PC: pc, SP: 4096}, Exact: true, Leaf: true}
			d := &dump{pid: pid, owner: pid, table: table, seen: map[uint32]*sight{7: s}}
			all := d.settle(tt.next)
			if all != (tt.settled || tt.gone) || s.settled != tt.settled || s.changed != tt.changed || (d.seen[7] == nil) != tt.gone {
				t.Errorf("all settled %t, this one %t, changed %t, gone %t", all, s.settled, s.changed, d.seen[7] == nil)
			}
			if tt.settled && (len(s.user) != 1 || s.stop != profiler.StopBadRead) {
				t.Errorf("frames %#x, stop %s: want the leaf, and that there is no stack", s.user, s.stop)
			}
		})
	}
}

func TestState(t *testing.T) {
	tests := []struct {
		bits  uint32
		flags bpf.ThreadFlags
		want  State
	}{
		{0, 0, Runnable},
		{0, bpf.ThreadOnCPU, Running},
		{0x2001, 0, Sleeping}, // TASK_INTERRUPTIBLE | TASK_FREEZABLE
		{0x1, bpf.ThreadOnCPU, Sleeping},
		{0x102, 0, DiskSleep},  // TASK_KILLABLE
		{0x1000, 0, DiskSleep}, // TASK_RTLOCK_WAIT
		{0x402, 0, Idle},
		{0x104, 0, Stopped},
		{0x108, 0, Traced},
		{0x40, 0, Parked},
		{0x8000, 0, Frozen},
		{0x80 | 0x10, 0, Dead},
		{0x80 | 0x20, 0, Zombie},
	}
	for _, tt := range tests {
		if got := stateOf(&bpf.Thread{State: tt.bits, Flags: tt.flags}); got != tt.want {
			t.Errorf("%#x, flags %d: %q, want %q", tt.bits, tt.flags, got, tt.want)
		}
	}
}

// TestSyscallNames compares the numbers of this machine with what is written
// elsewhere: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
func TestSyscallNames(t *testing.T) {
	names := map[call]string{
		{unwind.AMD64, 0}: "read", {unwind.AMD64, 7}: "poll", {unwind.AMD64, 202}: "futex", {unwind.AMD64, 232}: "epoll_wait",
		{unwind.AMD64, 219}: "restart_syscall", {unwind.AMD64, 9999}: "syscall 9999",
		{unwind.ARM64, 63}: "read", {unwind.ARM64, 98}: "futex", {unwind.ARM64, 22}: "epoll_pwait", {unwind.ARM64, 128}: "restart_syscall",
		{unwind.ARM64, 9999}: "syscall 9999",
	}
	for c, want := range names {
		if got := syscallName(c.number); c.arch == process.HostArch && got != want {
			t.Errorf("system call %d is named %q, want %q", c.number, got, want)
		}
	}
}

type call struct {
	arch   unwind.Arch
	number int32
}
