//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * On-CPU samples: a perf event fires on every CPU at the sampling rate. The
 * program runs in interrupt context, unwinds, and either counts the stack (seen
 * before) or sends it. What it cannot unwind yet goes to user space as
 * registers and a copy of the stack.
 */
#include "include/kalypso/maps.h"
#include "include/kalypso/regs.h"
#include "include/kalypso/select.h"
#include "include/kalypso/task.h"
#include "unwind/copy.h"
#include "unwind/native.h"
#include <bpf/bpf_tracing.h>

static __always_inline int klp_wanted(struct task_struct *task, __u32 pid)
{
	if (klp_only_targets && !bpf_map_lookup_elem(&targets, &pid))
		return 0;
	if (klp_only_comm) {
		char comm[16] = {};

		BPF_CORE_READ_STR_INTO(&comm, task, group_leader, comm);
#pragma unroll
		for (int i = 0; i < 16; i++) {
			if (comm[i] != klp_comm[i])
				return 0;
			if (!comm[i])
				break;
		}
	}
	if (klp_only_cgroup && bpf_get_current_ancestor_cgroup_id(klp_cgroup_level) != klp_cgroup)
		return 0;
	return 1;
}

/* Bytes at which a wake-up of user space pays; below, it polls. */
#define KLP_WAKE_BYTES (KLP_RING_BYTES / 8)

/* Sends what is in the walk's stack, or counts it if user space has it. */
static __always_inline void klp_emit(struct klp_walk *w, __u32 pid, __u32 tid)
{
	struct klp_header *header = &w->stack.header;
	__u32 frames = w->base + w->frames;
	struct klp_key key = {};
	__u64 flags, bytes, one = 1, *count;
	int counted;

	header->user_frames = w->frames;
	header->stop = w->stop;
	header->hash = klp_mix(w->hash, w->stop);
	klp_count(KLP_COUNT_STOPS + (w->stop & 15));

	key.hash = header->hash;
	key.pid = pid;
	key.tid = klp_by_thread ? tid : 0;
	count = bpf_map_lookup_elem(&counts, &key);
	if (count) {
		__sync_fetch_and_add(count, 1);
		klp_count(KLP_COUNT_MERGED);
		return;
	}
	/* The record itself stands for the first sample: the count starts at 0. */
	one = 0;
	counted = bpf_map_update_elem(&counts, &key, &one, BPF_NOEXIST) == 0;
	header->flags = counted ? KLP_RECORD_COUNTED : 0;
	if (!counted)
		klp_count(KLP_COUNT_UNCOUNTED);

	bytes = sizeof(struct klp_header) + frames * sizeof(__u64);
	flags = bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA) >= KLP_WAKE_BYTES ?
			BPF_RB_FORCE_WAKEUP :
			BPF_RB_NO_WAKEUP;
	klp_bound(bytes, sizeof(struct klp_stack));
	if (bpf_ringbuf_output(&records, &w->stack, bytes, flags)) {
		klp_count(KLP_COUNT_LOST_RING);
		if (counted)
			bpf_map_delete_elem(&counts, &key);
	}
}

/*
 * Hands the walk over to user space, from the frame whose table is missing on:
 * frames before it may have been on another stack (Go's system stack, a signal
 * stack), which no copy could follow. 0 when that cannot be: the ring buffer is
 * too full.
 */
static __always_inline int klp_defer(struct klp_walk *w)
{
	__u32 cpu = bpf_get_smp_processor_id();
	__u64 have, frames;
	struct klp_copy *copy;

	if (bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA) > KLP_RING_BYTES / 4 * 3)
		goto skipped;
	copy = bpf_map_lookup_elem(&copies, &cpu);
	if (!copy)
		goto skipped;
	frames = w->frames;
	if (frames)
		frames--; /* user space begins with this one */
	copy->header = w->stack.header;
	copy->header.kind = KLP_RECORD_COPY;
	copy->header.stop = w->stop;
	copy->header.user_frames = frames;
	copy->header.flags = (w->exact ? KLP_RECORD_EXACT : 0) | (w->leaf ? KLP_RECORD_LEAF : 0) |
			     (w->registers ? KLP_RECORD_REGISTERS : 0);
	copy->regs = w->regs;
	copy->regs.pc = w->pc;
	copy->regs.sp = w->sp;
	copy->regs.fp = w->fp;
	copy->regs.lr = w->lr;
	frames = (frames + w->base) * sizeof(__u64);
	klp_bound(frames, sizeof(copy->frames));
	bpf_probe_read_kernel(copy->frames, frames, w->stack.frames);
	have = klp_copy_stack(copy, w->sp);
	klp_bound(have, KLP_COPY_BYTES);
	copy->bytes = have;
	if (bpf_ringbuf_output(&records, copy, __builtin_offsetof(struct klp_copy, stack) + have,
			       BPF_RB_FORCE_WAKEUP))
		goto skipped;
	klp_count(KLP_COUNT_DEFERRED);
	return 1;
skipped:
	klp_count(KLP_COUNT_DEFER_SKIPPED);
	return 0;
}

/* The last thing done for a sample. */
static __always_inline void klp_account(const struct klp_walk *w)
{
	klp_ran_since(w->stack.header.ktime_ns);
}

/* After the walk: send the stack, or the copy if tables were missing. */
static __always_inline void klp_deliver(struct klp_walk *w)
{
	__u32 pid = w->stack.header.pid, tid = w->stack.header.tid;

	if ((w->stop == KLP_STOP_NO_TABLE && !w->hopeless) || w->stop == KLP_STOP_NO_MAPPING) {
		struct klp_process *process = bpf_map_lookup_elem(&processes, &pid);

		if (!(process && process->flags & KLP_PROCESS_NO_DEFER) && klp_defer(w))
			return;
	}
	klp_emit(w, pid, tid);
}

static __always_inline void klp_finish(struct klp_walk *w)
{
	klp_deliver(w);
	klp_account(w);
}

/* Everything up to the first user frame. 0: there is nothing more to walk. */
static __always_inline struct klp_walk *klp_begin(struct klp_perf_event *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct klp_process *process;
	struct klp_walk *w;
	struct klp_header *header;
	__u32 zero = 0, pid, tid, kernel = 0, share = KLP_VERDICT_ALL;
	__u8 compat = 0;
	__s32 syscall = -1;
	__u64 hash, *words;
	struct pt_regs *regs;
	__u64 began = bpf_ktime_get_ns();
	int from_user = klp_in_user(ctx);

	tid = klp_tid(task);
	if (!tid) /* idle, or not in the agent's PID namespace */
		return NULL;
	pid = klp_pid(task);
	if (!klp_wanted(task, pid))
		return NULL;
	klp_count(KLP_COUNT_SAMPLES);
	if (klp_selecting)
		share = klp_taken(task);
	if (!share) {
		klp_count(KLP_COUNT_FILTERED);
		klp_ran_since(began);
		return NULL;
	}
	w = bpf_map_lookup_elem(&walks, &zero);
	if (!w)
		return NULL;

	header = &w->stack.header;
	header->kind = KLP_RECORD_STACK;
	header->flags = 0;
	header->pid = pid;
	header->tid = tid;
	header->ktime_ns = began;
	BPF_CORE_READ_STR_INTO(&header->comm, task, group_leader, comm);
	bpf_get_current_comm(header->thread, sizeof(header->thread));
	header->started_ns = task->group_leader->start_boottime;
	klp_cgroups_of(task, header->cgroups);
	header->share = share;
	words = (__u64 *)header->comm;
	hash = klp_mix(klp_mix(0, words[0]), words[1]);
	hash = klp_mix(klp_mix(hash, header->started_ns), share);
	hash = klp_mix(klp_mix(hash, header->cgroups[0]), header->cgroups[1]);

	if (!from_user && klp_kernel_stacks) {
		long bytes = bpf_get_stack(ctx, w->stack.frames,
					   KLP_MAX_KERNEL_FRAMES * sizeof(__u64), 0);

		if (bytes > 0)
			kernel = bytes / sizeof(__u64);
		if (kernel > KLP_MAX_KERNEL_FRAMES)
			kernel = KLP_MAX_KERNEL_FRAMES;
		for (int i = 0; i < KLP_MAX_KERNEL_FRAMES; i++) {
			if (i >= kernel)
				break;
			hash = klp_mix(hash, w->stack.frames[i]);
		}
	}
	header->kernel_frames = kernel;

	w->hash = hash;
	w->base = kernel;
	w->frames = 0;
	w->start = w->end = 0;
	w->mappings = 0;
	w->table = w->rows = 0;
	w->window_bytes = 0;
	w->hopeless = 0;

	/* A kernel thread, or a process that has already given its memory back. */
	if (task->flags & PF_KTHREAD || !task->mm) {
		w->stop = KLP_STOP_NO_USER;
		klp_emit(w, pid, tid);
		klp_account(w);
		return NULL;
	}
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	w->regs.pc = 0;
	if (regs)
		klp_saved_regs(regs, &w->regs, &compat, &syscall);
	if (!w->regs.pc || compat) {
		w->stop = compat ? KLP_STOP_COMPAT : KLP_STOP_NO_REGISTERS;
		klp_emit(w, pid, tid);
		klp_account(w);
		return NULL;
	}
	w->pc = w->regs.pc;
	w->sp = w->regs.sp;
	w->fp = w->regs.fp;
	w->lr = w->regs.lr;
	/* In a system call, pc is the instruction after it: like a return address. */
	w->exact = from_user || syscall < 0;
	w->leaf = 1;
	w->registers = 1;
	w->stop = KLP_STOP_TRUNCATED;

	process = bpf_map_lookup_elem(&processes, &pid);
	if (process) {
		w->first_mapping = process->first;
		w->mappings = process->count;
	}
	return w;
}

static long klp_walk_step(__u32 i, void *unused)
{
	__u32 zero = 0;
	struct klp_walk *w = bpf_map_lookup_elem(&walks, &zero);

	return !w || !klp_step(w);
}

/* Linux 5.17 and later. */
SEC("perf_event")
int klp_on_cpu(struct klp_perf_event *ctx)
{
	struct klp_walk *w = klp_begin(ctx);

	if (!w)
		return 0;
	/* One turn more than frames: the last finds the stack full and says so. */
	bpf_loop(KLP_MAX_FRAMES + 1, klp_walk_step, NULL, 0);
	klp_finish(w);
	return 0;
}

/* Linux 5.15 and 5.16: tail calls. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} tails SEC(".maps");

SEC("perf_event")
int klp_on_cpu_tail(struct klp_perf_event *ctx)
{
	__u32 zero = 0;
	struct klp_walk *w = bpf_map_lookup_elem(&walks, &zero);

	if (!w)
		return 0;
	for (int i = 0; i < KLP_FRAMES_PER_CALL; i++) {
		if (!klp_step(w)) {
			klp_finish(w);
			return 0;
		}
	}
	bpf_tail_call(ctx, &tails, 0);
	/* No tail calls left: the stack is deeper than this kernel lets us walk. */
	w->stop = KLP_STOP_TRUNCATED;
	klp_finish(w);
	return 0;
}

SEC("perf_event")
int klp_on_cpu_legacy(struct klp_perf_event *ctx)
{
	if (klp_begin(ctx))
		bpf_tail_call(ctx, &tails, 0);
	return 0;
}

/* Run once by user space, which cannot see where its PID namespace is. */
SEC("syscall")
int klp_self(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 inum = 0;

	klp_pidns_level = BPF_CORE_READ(pid, level);
	if (!klp_upid(pid, klp_pidns_level, &inum))
		return 1;
	klp_pidns_inum = inum;
	return 0;
}
