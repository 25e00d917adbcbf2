// Package bpf holds everything that runs in the kernel, and is the only
// package that loads it: programs, maps, the perf events that fire them, and
// the kernel's own records of forks, execs and mappings (sideband.go).
//
// It knows bytes and tables, not what they mean: package sampler decodes
// records, package process decides what the tables say.
package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

// Config chooses what is sampled. The zero value samples every process with
// kernel stacks left out.
type Config struct {
	KernelStacks bool
	ByThread     bool // tell threads apart: a stack is counted per thread
	OnlyTargets  bool // sample only processes given to AddTarget, and their children
	Comm         string
	CgroupID     uint64 // cgroup v2 ID, with its depth below the root; 0: any
	CgroupLevel  uint32
	Subsystem    Subsystem // of cgroup v1
	Hierarchy    uint32    // the number of its hierarchy in /proc/PID/cgroup
	TailCalls    bool      // walk by tail calls even where bpf_loop exists (tests)
	Rows         uint32    // size of the table of unwind rows, 4 bytes each; 0: the default
}

// Kernel is the loaded kernel side.
type Kernel struct {
	Tables Tables
	// MaxFrames is the deepest user stack that this kernel lets us walk.
	MaxFrames int

	objs    objects
	sampler *ebpf.Program
	links   []link.Link
	reader  *reader

	mu     sync.Mutex
	events map[int]event // by CPU
	kind   EventKind
	freq   int
}

// objects are the parts of the collection that every kernel gets. The walk by
// tail calls is loaded only where bpf_loop is missing.
type objects struct {
	kalypsoMaps
	kalypsoVariables
	OnFork  *ebpf.Program `ebpf:"klp_on_fork"`
	OnExec  *ebpf.Program `ebpf:"klp_on_exec"`
	OnExit  *ebpf.Program `ebpf:"klp_on_exit"`
	OnMkdir *ebpf.Program `ebpf:"klp_on_mkdir"`
	Self    *ebpf.Program `ebpf:"klp_self"`
}

// Load loads the programs and attaches those that follow processes. Sampling
// starts with Attach.
func Load(cfg Config) (*Kernel, error) {
	spec, err := loadKalypso()
	if err != nil {
		return nil, fmt.Errorf("read the embedded BPF object: %w", err)
	}
	if err := configure(spec, cfg); err != nil {
		return nil, err
	}
	k := &Kernel{events: map[int]event{}, MaxFrames: 1024}
	loop := !cfg.TailCalls && features.HaveProgramHelper(ebpf.PerfEvent, asm.FnLoop) == nil
	entry := "klp_on_cpu"
	if !loop {
		entry = "klp_on_cpu_legacy"
		k.MaxFrames = 8 * 33 // KLP_FRAMES_PER_CALL * KLP_TAIL_CALLS
		delete(spec.Programs, "klp_on_cpu")
	} else {
		delete(spec.Programs, "klp_on_cpu_legacy")
		delete(spec.Programs, "klp_on_cpu_tail")
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, loadError(err)
	}
	defer coll.Close()
	if !loop {
		tail := coll.Programs["klp_on_cpu_tail"]
		if err := coll.Maps["tails"].Put(uint32(0), tail); err != nil {
			return nil, fmt.Errorf("install the tail call: %w", err)
		}
	}
	k.sampler = coll.DetachProgram(entry)
	if err := coll.Assign(&k.objs); err != nil {
		_ = k.sampler.Close()
		return nil, fmt.Errorf("take the BPF maps: %w", err)
	}
	if err := k.start(); err != nil {
		_ = k.Close()
		return nil, err
	}
	return k, nil
}

func configure(spec *ebpf.CollectionSpec, cfg Config) error {
	var comm [16]byte
	copy(comm[:15], cfg.Comm)
	values := map[string]any{
		"klp_only_targets":  flag(cfg.OnlyTargets),
		"klp_only_comm":     flag(cfg.Comm != ""),
		"klp_only_cgroup":   flag(cfg.CgroupID != 0),
		"klp_by_thread":     flag(cfg.ByThread),
		"klp_kernel_stacks": flag(cfg.KernelStacks),
		"klp_comm":          comm,
		"klp_cgroup":        cfg.CgroupID,
		"klp_cgroup_level":  cfg.CgroupLevel,
		"klp_subsystem":     uint8(cfg.Subsystem),
		"klp_hierarchy":     cfg.Hierarchy,
	}
	for name, value := range values {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set BPF constant %s: %w", name, err)
		}
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	spec.Maps["copies"].MaxEntries = uint32(cpus)
	if cfg.Rows != 0 {
		spec.Maps["rows"].MaxEntries = max(1, cfg.Rows/rowsPerChunk)
	}
	return nil
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// Refusal is what the kernel's verifier has against a program.
type Refusal struct {
	Err error
	Log []string // all that it says, line by line
}

// Error has the last lines of the log: the reason stands there.
func (r *Refusal) Error() string {
	return fmt.Sprintf("load BPF programs: %v\n%s", r.Err, strings.Join(r.Log[max(0, len(r.Log)-20):], "\n"))
}

// Unwrap gives the kernel's error.
func (r *Refusal) Unwrap() error { return r.Err }

func loadError(err error) error {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return &Refusal{ve.Cause, ve.Log}
	}
	return fmt.Errorf("load BPF programs: %w", err)
}

func (k *Kernel) start() error {
	if ret, err := k.objs.Self.Run(&ebpf.RunOptions{}); err != nil || ret != 0 {
		return fmt.Errorf("find the agent's PID namespace: returned %d: %w", ret, err)
	}
	var err error
	if k.Tables, err = newTables(&k.objs.kalypsoMaps); err != nil {
		return err
	}
	if k.reader, err = newReader(k.objs.Records); err != nil {
		return fmt.Errorf("open the ring buffer: %w", err)
	}
	for _, p := range []*ebpf.Program{k.objs.OnFork, k.objs.OnExec, k.objs.OnExit, k.objs.OnMkdir} {
		l, err := link.AttachTracing(link.TracingOptions{Program: p, AttachType: ebpf.AttachTraceRawTp})
		if err != nil {
			return fmt.Errorf("follow processes and cgroups with %s: %w", p, err)
		}
		k.links = append(k.links, l)
	}
	return nil
}

// Close stops sampling and frees everything.
func (k *Kernel) Close() error {
	k.Detach()
	var errs []error
	for _, l := range k.links {
		errs = append(errs, l.Close())
	}
	if k.reader != nil {
		errs = append(errs, k.reader.close())
	}
	if k.sampler != nil {
		errs = append(errs, k.sampler.Close())
	}
	errs = append(errs, k.objs.close())
	return errors.Join(errs...)
}

func (o *objects) close() error {
	var errs []error
	for _, p := range []*ebpf.Program{o.OnFork, o.OnExec, o.OnExit, o.OnMkdir, o.Self} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(append(errs, o.kalypsoMaps.Close())...)
}

// AddTarget makes a process a target; its future children are too.
func (k *Kernel) AddTarget(pid uint32) error {
	if err := k.objs.Targets.Put(pid, uint8(1)); err != nil {
		return fmt.Errorf("add PID %d to the sampled processes: %w", pid, err)
	}
	return nil
}

// Tick counts up the clock by which unwind tables are marked as used.
func (k *Kernel) Tick() error {
	var epoch uint32
	if err := k.objs.KlpEpoch.Get(&epoch); err != nil {
		return err
	}
	return k.objs.KlpEpoch.Set(epoch + 1)
}

// Epoch is the number of ticks so far.
func (k *Kernel) Epoch() (epoch uint32, err error) {
	err = k.objs.KlpEpoch.Get(&epoch)
	return epoch, err
}

// Read waits for the next record until the deadline given to SetDeadline and
// then gives os.ErrDeadlineExceeded. rec's buffer is reused.
func (k *Kernel) Read(rec *ringbuf.Record) error { return k.reader.read(rec) }

// Flush lets Read go on to what is in the ring buffer now, however little, and
// then give ringbuf.ErrFlushed.
func (k *Kernel) Flush() error { return k.reader.flush() }

// SetDeadline bounds the waiting of Read.
func (k *Kernel) SetDeadline(t time.Time) { k.reader.setDeadline(t) }

// Key identifies samples that are the same: struct klp_key.
type Key struct {
	Hash uint64
	PID  uint32
	TID  uint32
}

// DrainCounts takes all counts out of the kernel and calls fn for each. A
// stack that is seen again afterwards is sent again.
func (k *Kernel) DrainCounts(fn func(Key, uint64)) error {
	const batch = 1024
	keys, values := make([]Key, batch), make([]uint64, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := k.objs.Counts.BatchLookupAndDelete(&cursor, keys, values, nil)
		for i := range n {
			fn(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read counts: %w", err)
		}
	}
}

// Counters are the kernel side's totals since it was loaded; see status.h.
type Counters struct {
	Samples          uint64 // taken and wanted
	LostRing         uint64 // of these, dropped because the ring buffer was full
	Merged           uint64
	Uncounted        uint64
	Deferred         uint64
	DeferSkipped     uint64
	ProcessUntracked uint64
	Filtered         uint64     // of the samples, left out by verdicts before anything was walked
	Thinned          uint64     // of these, left out by chance: a share of them was wanted
	RunNs            uint64     // spent on samples, as the programs themselves measure it
	Stops            [12]uint64 // by profiler.Stop
}

// Counters reads the totals.
func (k *Kernel) Counters() (Counters, error) {
	var total [22]uint64
	var perCPU []uint64
	for i := range total {
		var err error
		if total[i], err = k.counter(uint32(i), &perCPU); err != nil {
			return Counters{}, err
		}
	}
	c := Counters{
		Samples: total[0], LostRing: total[1], Merged: total[2], Uncounted: total[3],
		Deferred: total[4], DeferSkipped: total[5], ProcessUntracked: total[6], Filtered: total[7], Thinned: total[8], RunNs: total[counterRunNs],
	}
	copy(c.Stops[:], total[10:])
	return c, nil
}

// counterRunNs is the place of Counters.RunNs.
const counterRunNs = 9

// RunNs is that counter alone, for whoever asks often.
func (k *Kernel) RunNs() (uint64, error) {
	var perCPU []uint64
	return k.counter(counterRunNs, &perCPU)
}

// counter sums one counter over all CPUs; perCPU is scratch.
func (k *Kernel) counter(i uint32, perCPU *[]uint64) (uint64, error) {
	if err := k.objs.Counters.Lookup(i, perCPU); err != nil {
		return 0, fmt.Errorf("read counter %d: %w", i, err)
	}
	total := uint64(0)
	for _, n := range *perCPU {
		total += n
	}
	return total, nil
}

// RunTime is the CPU time spent in our programs and how often they ran; zero
// where the kernel does not keep statistics (sysctl kernel.bpf_stats_enabled).
func (k *Kernel) RunTime() (time.Duration, uint64) {
	var total time.Duration
	var runs uint64
	for _, p := range []*ebpf.Program{k.sampler, k.objs.OnFork, k.objs.OnExec, k.objs.OnExit, k.objs.OnMkdir} {
		if st, err := p.Stats(); err == nil {
			total += st.Runtime
			runs += st.RunCount
		}
	}
	return total, runs
}

// MapBytes is the kernel memory that our maps take.
func (k *Kernel) MapBytes() uint64 {
	var total uint64
	m := &k.objs.kalypsoMaps
	for _, mp := range []*ebpf.Map{
		m.Mappings, m.Executables, m.Pages, m.Rows, m.Rules, m.Processes, m.Targets,
		m.Verdicts, m.Counts, m.Records, m.Walks, m.Memories, m.Copies, m.Counters,
	} {
		if info, err := mp.Info(); err == nil {
			if n, ok := info.Memlock(); ok {
				total += n
			}
		}
	}
	return total
}

// BTFAvailable says whether the kernel describes its own types, without which
// nothing can be loaded.
func BTFAvailable() bool {
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	return err == nil
}

var order = binary.LittleEndian // amd64 and arm64
