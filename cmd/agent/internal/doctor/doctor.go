// Package doctor holds the checks of "kalypso-agent doctor": can this machine
// be profiled, by this process, as it was started?
//
// Each check does what the profiler will do (creates a map, attaches a
// program and counts its samples, opens another process's files) and does not
// infer it from versions or capability bits: a seccomp filter, a user
// namespace or a security module can refuse what the bits allow. The bits
// are read only to word the fix. The programs are assembled here, a few
// instructions each, so that a failure names one cause; bpf/ loads the real
// ones. Nothing is left behind: maps, programs and events are closed.
package doctor

import (
	"github.com/kalypso-dev/kalypso/deploy/check"
)

// Checks is the list, in the order in which later checks build on earlier
// ones. record makes the recording that one of them looks at.
func Checks(record Recorder) []check.Check {
	self := readSelf("/proc/self")
	return []check.Check{
		{
			ID: "kernel", Title: "the kernel is 5.15 or newer, on amd64 or arm64", Severity: check.Required,
			Run:    kernel,
			Effect: "the programs need helpers that older kernels do not have: no profile at all",
			Fix:    "boot a kernel of 6.1 or newer",
		},
		{
			ID: "btf", Title: "the kernel describes its types", Severity: check.Required,
			Run:    vmlinuxBTF,
			Effect: "programs cannot be fitted to this kernel: no profile at all",
			Fix:    "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (Debian, Ubuntu, Fedora and RHEL kernels are)",
		},
		{
			ID: "cap_bpf", Title: "a map can be created, written and read", Severity: check.Required,
			Run:    self.capBPF,
			Effect: "no program or map can be loaded: no profile at all",
			Fix:    self.grant("CAP_BPF"),
		},
		{
			ID: "cap_perfmon", Title: "a program samples every CPU", Severity: check.Required,
			Run:    self.capPerfmon,
			Effect: "no CPU can be sampled: no profile at all",
			Fix:    self.grant("CAP_PERFMON"),
		},
		{
			ID: "lifecycle", Title: "a program sees processes start and end", Severity: check.Required,
			Run:    self.lifecycle,
			Effect: "processes are not known from their start: no profile at all",
			Fix:    self.grant("CAP_BPF and CAP_PERFMON"),
		},
		{
			ID: "lockdown", Title: "programs may read kernel memory", Severity: check.Required,
			Run:    self.lockdown,
			Effect: "the kernel refuses programs that read its memory: no profile at all",
			Fix:    "boot with lockdown=integrity or lockdown=none in place of lockdown=confidentiality",
		},
		{
			ID: "process_events", Title: "perf tells of processes and their mappings", Severity: check.Required,
			Run:    self.processEvents,
			Effect: "mappings of processes are not known: no profile at all",
			Fix:    self.grant("CAP_PERFMON"),
		},
		{
			ID: "programs", Title: "the profiler's own programs load and count samples", Severity: check.Required,
			Run:    self.programs,
			Effect: "the profiler's programs do not run on this kernel: no profile at all",
			Fix:    "report it with the output of: kalypso-agent doctor --only programs; uname -a",
		},
		{
			ID: "unwind", Title: "a stack is walked to its root and named", Severity: check.Limit,
			Run:    self.unwind(record),
			Effect: "stacks are cut or their functions have no names: see the quality line of a recording",
			Fix:    "report it with the output of: kalypso-agent doctor; kalypso-agent record --stats stats.json",
		},
		{
			ID: "bpf_loop", Title: "programs may loop: deep stacks", Severity: check.Limit,
			Run:    self.bpfLoop,
			Effect: "user stacks deeper than 264 frames are cut and end in [truncated]",
			Fix:    "boot a kernel of 5.17 or newer",
		},
		{
			ID: "hardware", Title: "the CPU's cycle counter counts", Severity: check.Note,
			Run:    hardwareCycles,
			Effect: "sampling by cpu-clock: code that runs with interrupts off is seen where they come back on",
			Fix:    "none needed; on a virtual machine, let the hypervisor pass the performance counters through",
		},
		{
			ID: "cap_syslog", Title: "/proc/kallsyms has addresses", Severity: check.Limit,
			Run:    self.kallsyms,
			Effect: "kernel frames show as [kernel]+0x…",
			Fix:    self.grant("CAP_SYSLOG"),
		},
		{
			ID: "cap_sys_ptrace", Title: "the mappings and files of other processes are open to us", Severity: check.Limit,
			Run:    self.otherProcesses,
			Effect: "stacks of those processes have no user frames: they end in [unwind: address in no mapping]",
			Fix:    self.grant("CAP_SYS_PTRACE"),
		},
		{
			ID: "cap_dac_read_search", Title: "files without read permission can be read", Severity: check.Limit,
			Run:    self.unreadableFile,
			Effect: "executables and perf maps that their owner keeps private have no names and no unwind rows",
			Fix:    self.grant("CAP_DAC_READ_SEARCH"),
		},
		{
			ID: "cap_checkpoint_restore", Title: "files that were deleted while mapped can be opened", Severity: check.Limit,
			Run:    self.mapFiles,
			Effect: "libraries that were deleted or replaced while in use have no names and no unwind rows",
			Fix:    self.grant("CAP_CHECKPOINT_RESTORE"),
		},
		{
			ID: "pid_namespace", Title: "this process sees the processes of the whole machine", Severity: check.Limit,
			Run:    pidNamespace,
			Effect: "only processes of this PID namespace can be named; those outside it are left out",
			Fix:    "share the host's PID namespace: hostPID: true in Kubernetes, --pid=host with docker or podman",
		},
		{
			ID: "cgroup", Title: "cgroup v2 tells processes apart", Severity: check.Note,
			Run:    cgroups,
			Effect: "a filter by cgroup goes by the v2 hierarchy, which is not there",
			Fix:    "boot with systemd.unified_cgroup_hierarchy=1",
		},
		{
			ID: "bpf_stats", Title: "the kernel can time its programs", Severity: check.Note,
			Run:    self.bpfStats,
			Effect: "bpf_run_seconds in the file of record --stats is 0",
			Fix:    "sysctl kernel.bpf_stats_enabled=1, or " + self.grant("CAP_SYS_ADMIN"),
		},
	}
}
