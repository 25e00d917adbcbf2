package bpf_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/bpf/bpftest"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/golang"
	"github.com/kalypso-dev/kalypso/profiler/lang/native"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// recorder notes every copied stack with what was made of it, and sees to it
// that the next one comes as a copy too.
type recorder struct {
	table *process.Table
	k     *bpf.Kernel

	mu    sync.Mutex
	walks map[profiler.PID][]recorded
	slots map[profiler.PID]slot
}

type recorded struct {
	bpftest.Input
	frames []uint64
	stop   profiler.Stop
}

// slot is where the mappings of a process are: the start of struct klp_process.
type slot struct{ First, Count, Flags, Pad uint32 }

// Walk implements sampler.Unwinder.
func (r *recorder) Walk(dst []uint64, pid profiler.PID, c *unwind.Copy) ([]uint64, profiler.Stop, error) {
	n := len(dst)
	dst, stop, err := r.table.Walk(dst, pid, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	var s slot
	if r.k.Maps()["processes"].Lookup(uint32(pid), &s) == nil {
		if s != r.slots[pid] {
			r.slots[pid], r.walks[pid] = s, nil // mappings changed: older walks had others
		}
		r.k.Tables.DeleteProcess(uint32(pid))
	}
	w := recorded{frames: slices.Clone(dst[n:]), stop: stop}
	w.Copy = *c
	w.Stack = slices.Clone(c.Stack)
	if len(r.walks[pid]) < 2*wantWalks {
		r.walks[pid] = append(r.walks[pid], w)
	}
	return dst, stop, err
}

// Sync implements sampler.Unwinder.
func (r *recorder) Sync() error { return r.table.Sync() }

// Add implements sampler.Sink.
func (r *recorder) Add(*sampler.Stack, uint64) {}

// Count implements sampler.Sink.
func (r *recorder) Count(sampler.Key, uint64) {}

const wantWalks = 60

func (r *recorder) enough(pid profiler.PID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.walks[pid]) >= wantWalks
}

// spinners starts one process for each kind of code: C without frame pointers,
// and Go.
func spinners(t *testing.T) map[string]profiler.PID {
	t.Helper()
	path := filepath.Join(t.TempDir(), "chain")
	if text, err := exec.Command("gcc", "-O2", "-o", path, "../test/workloads/chain.c").CombinedOutput(); err != nil {
		t.Fatalf("build chain.c: %v\n%s", err, text)
	}
	pids := map[string]profiler.PID{}
	for name, cmd := range map[string]*exec.Cmd{"C": exec.Command(path, "-seconds", "60", "60"), "Go": as("deep")} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		pids[name] = profiler.PID(cmd.Process.Pid)
	}
	return pids
}

// TestLiveStacksWalkAlike takes registers and stacks of running processes and
// walks each in Go by the table of processes, in Go by the kernel's tables,
// natively under the sanitizers, and in the kernel: all give the same frames.
func TestLiveStacksWalkAlike(t *testing.T) {
	k := load(t, bpf.Config{OnlyTargets: true})
	side := sideband(t)
	r := &recorder{
		table: process.NewTable(&k.Tables, side, []lang.Runtime{golang.Runtime{}, native.Runtime{}}), k: k,
		walks: map[profiler.PID][]recorded{}, slots: map[profiler.PID]slot{},
	}
	defer r.table.Close()
	pids := spinners(t)
	for _, pid := range pids {
		if err := k.AddTarget(uint32(pid)); err != nil {
			t.Fatal(err)
		}
	}
	s := sampler.New(sampler.Config{
		Kernel: k, Unwinder: r, Sink: r, Arch: process.HostArch, Failed: func(err error) { t.Error(err) },
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	err := k.Attach(499)
	if err == nil {
		eventually(t, "enough copies of stacks", func() bool {
			for _, pid := range pids {
				if !r.enough(pid) {
					return false
				}
			}
			return true
		})
	}
	k.Detach()
	stop()
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}

	tables := dump(t, k)
	walker, functions := bpftest.StartNative(t, "bpftest/native/walk.c", process.HostArch), bpftest.Load(t, k.Maps())
	for name, pid := range pids {
		compareWalks(t, name, r.walks[pid], r.slots[pid], tables, walker, functions)
	}
}

// discard takes samples and forgets them.
type discard struct{}

// Add implements sampler.Sink.
func (discard) Add(*sampler.Stack, uint64) {}

// Count implements sampler.Sink.
func (discard) Count(sampler.Key, uint64) {}

// TestKernelWalksReachTheRoot: once tables are there, either walk goes through
// stacks of up to 60 calls, which is more than one call of the tail-called
// program does, and none is cut.
func TestKernelWalksReachTheRoot(t *testing.T) {
	for _, tails := range []bool{false, true} {
		t.Run(fmt.Sprintf("tail calls %t", tails), func(t *testing.T) {
			k := load(t, bpf.Config{OnlyTargets: true, TailCalls: tails})
			table := process.NewTable(&k.Tables, sideband(t), []lang.Runtime{golang.Runtime{}, native.Runtime{}})
			defer table.Close()
			child := as("deep")
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = child.Process.Kill()
				_ = child.Wait()
			}()
			if err := k.AddTarget(uint32(child.Process.Pid)); err != nil {
				t.Fatal(err)
			}
			s := sampler.New(sampler.Config{
				Kernel: k, Unwinder: table, Sink: discard{}, Arch: process.HostArch, Failed: func(err error) { t.Error(err) },
			})
			ctx, stop := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			err := k.Attach(999)
			var c bpf.Counters
			if err == nil {
				eventually(t, "100 stacks walked in the kernel to their root", func() bool {
					c, err = k.Counters()
					return err != nil || c.Stops[profiler.StopRoot] >= 100
				})
			}
			k.Detach()
			stop()
			if err := errors.Join(err, <-done); err != nil {
				t.Fatal(err)
			}
			for stop, n := range c.Stops {
				if stop := profiler.Stop(stop); !stop.Complete() && n > c.Samples/20 {
					t.Errorf("%d of %d walks ended with %s", n, c.Samples, stop)
				}
			}
			if n := c.Stops[profiler.StopTruncated]; n > 0 {
				t.Errorf("%d walks were cut", n)
			}
		})
	}
}

func compareWalks(t *testing.T, name string, walks []recorded, s slot, tables *bpftest.Tables,
	walker *bpftest.Native, functions *bpftest.Functions,
) {
	t.Helper()
	inputs := make([]bpftest.Input, len(walks))
	for i := range walks {
		inputs[i] = walks[i].Input
		inputs[i].First, inputs[i].Mappings = s.First, s.Count
	}
	complete, inKernel, deepest := 0, 0, 0
	for i, got := range walker.Walk(t, tables, inputs) {
		w, in := &walks[i], &inputs[i]
		deepest = max(deepest, len(w.frames))
		want := tables.Walk(in)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s, stack %d: Go and C by the kernel's tables differ (-Go +C):\n%s", name, i, diff)
		}
		if !slices.Equal(w.frames, got.Frames) {
			t.Errorf("%s, stack %d: by the table of processes the frames are\n%#x, by the kernel's tables\n%#x", name, i, w.frames, got.Frames)
		}
		if w.stop != profiler.StopRoot {
			continue // it needs memory that was not copied
		}
		complete++
		unmap, ok := mapStack(t, in)
		if !ok {
			continue // something of ours is where its stack was
		}
		inKernel++
		if kernel := functions.Walk(t, in); !cmp.Equal(want, kernel) {
			t.Errorf("%s, stack %d: the walk in the kernel differs (-Go +kernel):\n%s", name, i, cmp.Diff(want, kernel))
		}
		unmap()
	}
	t.Logf("%s: %d stacks, %d complete, %d walked in the kernel too, up to %d frames", name, len(walks), complete, inKernel, deepest)
	if complete < len(walks)*9/10 || deepest < 20 {
		t.Errorf("%s: %d of %d stacks complete, up to %d frames: too poor to compare", name, complete, len(walks), deepest)
	}
	if name == "C" && inKernel < complete/2 {
		t.Errorf("%d of %d stacks were walked in the kernel", inKernel, complete)
	}
}

// dump reads the kernel's tables.
func dump(t *testing.T, k *bpf.Kernel) *bpftest.Tables {
	t.Helper()
	var tables bpftest.Tables
	for name, to := range map[string]*[]byte{
		"mappings": &tables.Mappings, "executables": &tables.Executables, "pages": &tables.Pages,
		"rows": &tables.Rows, "rules": &tables.Rules,
	} {
		memory, err := k.Maps()[name].Memory()
		if err != nil {
			t.Fatal(err)
		}
		*to = make([]byte, memory.Size())
		if _, err := memory.ReadAt(*to, 0); err != nil {
			t.Fatal(fmt.Errorf("read %s: %w", name, err))
		}
	}
	return &tables
}

// mapStack puts a copied stack where it was, into the memory of this process.
func mapStack(t *testing.T, in *bpftest.Input) (unmap func(), ok bool) {
	t.Helper()
	page := uint64(unix.Getpagesize())
	at := in.Regs.SP - uint64(in.Below)
	from := at &^ (page - 1)
	size := (at + uint64(len(in.Stack)) - from + page - 1) &^ (page - 1)
	got, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(from), uintptr(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uintptr(0), 0)
	if errno != 0 {
		return nil, false
	}
	unmap = func() {
		if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, got, uintptr(size), 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	memory, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err == nil {
		_, err = memory.WriteAt(in.Stack, int64(at))
		_ = memory.Close()
	}
	if err != nil {
		unmap()
		t.Fatal(err)
	}
	return unmap, true
}
