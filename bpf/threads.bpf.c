//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every thread of one process as it is now, without stopping it.
 *
 * klp_threads gives state, kernel stack and user registers. A task iterator: it
 * runs when user space reads, in the reader's context, once per thread. Where
 * the kernel cannot filter (before Linux 6.1) it is called for every thread of
 * the machine and lets those of other processes pass. The user stacks of
 * threads that wait are then read from user space: here it would have to sleep.
 *
 * klp_catch gives registers and both stacks of threads that run, where those of
 * the iterator are of a moment ago: a perf event per thread fires once it has
 * used some CPU time. It runs in interrupt context, once per thread.
 */
#include "include/kalypso/regs.h"
#include "include/kalypso/task.h"
#include <bpf/bpf_helpers.h>

static __always_inline long klp_read(void *dst, __u32 bytes, __u64 addr)
{
	return bpf_probe_read_user(dst, bytes, (void *)addr);
}

#include "unwind/copy.h"

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __relocated;

/* The context's layout is the kernel's ABI: include/linux/btf_ids.h, bpf_iter_reg. */
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

/* What only this program reads of a task; CO-RE looks for task_struct. */
struct task_struct___thread {
	unsigned int __state; /* since Linux 5.14 */
	int exit_state;
	int on_cpu; /* absent without CONFIG_SMP */
	unsigned long nvcsw;
	unsigned long nivcsw;
} __relocated;

#define KLP_WANTED 1024 /* threads caught at a time: more cannot run on most machines */

#define KLP_THREAD_ON_CPU     1 /* the registers are of its last entry into the kernel */
#define KLP_THREAD_NO_USER    2 /* a kernel thread, or one past exit_mm() */
#define KLP_THREAD_COMPAT     4 /* a 32-bit process */
#define KLP_THREAD_IN_SYSCALL 8

struct klp_thread {
	__u32 pid;
	__u32 tid;
	__u32 state; /* TASK_… and EXIT_…, include/linux/sched.h */
	__u32 flags;
	__s32 syscall;
	__u32 kernel_frames;
	/* How often it was taken off a CPU: the same twice, it did not run between. */
	__u64 switches;
	char comm[16];
	struct klp_regs regs;
	__u64 frames[KLP_MAX_KERNEL_FRAMES + 1];
};
_Static_assert(sizeof(struct klp_thread) == 48 + sizeof(struct klp_regs) + 8 * 128, "klp_thread");

/* One: user space reads one iterator at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct klp_thread);
} threads SEC(".maps");

/* The process, in the reader's PID namespace; 0: all. */
__u32 klp_threads_pid;

/* The PID namespace to look from is that of the task that reads. */
static __always_inline void klp_look_from_here(void)
{
	struct task_struct *self = bpf_get_current_task_btf();
	struct pid *pid = BPF_CORE_READ(self, thread_pid);
	__u32 inum = 0;

	klp_pidns_level = BPF_CORE_READ(pid, level);
	klp_upid(pid, klp_pidns_level, &inum);
	klp_pidns_inum = inum;
}

static __always_inline int klp_on_cpu_now(struct task_struct *task)
{
	struct task_struct___thread *t = (void *)task;

	if (bpf_core_field_exists(t->on_cpu))
		return BPF_CORE_READ(t, on_cpu);
	return task == bpf_get_current_task_btf(); /* the only CPU is ours */
}

SEC("iter/task")
int klp_threads(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task_struct___thread *t = (void *)task;
	struct klp_thread *out;
	struct pt_regs *regs;
	__u32 zero = 0, pid;
	__u8 compat = 0;
	long bytes = 0;

	if (ctx->meta->seq_num == 0)
		klp_look_from_here();
	if (!task)
		return 0;
	pid = klp_pid(task);
	if (!pid || (klp_threads_pid && pid != klp_threads_pid))
		return 0;
	out = bpf_map_lookup_elem(&threads, &zero);
	if (!out)
		return 0;

	out->pid = pid;
	out->tid = klp_tid(task);
	/*
	 * Whether it runs before how often it ran: a thread that leaves its CPU
	 * counts first, so one seen off it has counted (kernel/sched/core.c,
	 * __schedule and finish_task).
	 */
	out->flags = klp_on_cpu_now(task) ? KLP_THREAD_ON_CPU : 0;
	out->switches = BPF_CORE_READ(t, nvcsw) + BPF_CORE_READ(t, nivcsw);
	out->state = BPF_CORE_READ(t, __state) | BPF_CORE_READ(t, exit_state);
	out->syscall = -1;
	BPF_CORE_READ_STR_INTO(&out->comm, task, comm);

	if (task->flags & PF_KTHREAD || !task->mm)
		out->flags |= KLP_THREAD_NO_USER;
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	if (regs && !(out->flags & KLP_THREAD_NO_USER)) {
		klp_saved_regs(regs, &out->regs, &compat, &out->syscall);
		if (compat)
			out->flags |= KLP_THREAD_COMPAT;
		if (out->syscall >= 0)
			out->flags |= KLP_THREAD_IN_SYSCALL;
	} else {
		__builtin_memset(&out->regs, 0, sizeof(out->regs));
	}

	/* The stack of a thread on another CPU changes under the kernel's unwinder. */
	if (!(out->flags & KLP_THREAD_ON_CPU))
		bytes = bpf_get_task_stack(task, out->frames, KLP_MAX_KERNEL_FRAMES * sizeof(__u64),
					   0);
	out->kernel_frames = bytes > 0 ? (__u32)bytes / sizeof(__u64) : 0;

	bpf_seq_write(ctx->meta->seq, out, sizeof(*out));
	return 0;
}

/* Threads to be caught. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KLP_WANTED);
	__type(key, __u32);
	__type(value, __u8);
} wanted SEC(".maps");

/* Room for 13 copies; what finds none is caught at the next event. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} caught SEC(".maps");

SEC("perf_event")
int klp_catch(struct klp_perf_event *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 tid = klp_tid(task);
	__s32 syscall = -1;
	struct klp_copy *copy;
	__u8 compat = 0;
	int in_user = klp_in_user(ctx);
	long bytes = 0;

	if (!tid || !bpf_map_lookup_elem(&wanted, &tid))
		return 0;
	copy = bpf_ringbuf_reserve(&caught, sizeof(*copy), 0);
	if (!copy)
		return 0;
	bpf_map_delete_elem(&wanted, &tid);
	copy->header.kind = KLP_RECORD_COPY;
	copy->header.tid = tid;
	if (!in_user)
		bytes = bpf_get_stack(ctx, copy->frames, KLP_MAX_KERNEL_FRAMES * sizeof(__u64), 0);
	copy->header.kernel_frames = bytes > 0 ? (__u32)bytes / sizeof(__u64) : 0;
	copy->header.stop = KLP_STOP_NONE;
	copy->header.flags = 0;
	copy->bytes = 0;
	copy->below = 0;
	klp_saved_regs((struct pt_regs *)bpf_task_pt_regs(task), &copy->regs, &compat, &syscall);
	if (task->flags & PF_KTHREAD || !task->mm)
		copy->header.stop = KLP_STOP_NO_USER;
	else if (compat)
		copy->header.stop = KLP_STOP_COMPAT;
	else
		copy->bytes = klp_copy_stack(copy, copy->regs.sp);
	/* In a system call, pc is the instruction after it: like a return address. */
	if (in_user || syscall < 0)
		copy->header.flags = KLP_RECORD_EXACT;
	bpf_ringbuf_submit(copy, BPF_RB_FORCE_WAKEUP);
	return 0;
}

/* The helpers for tasks are for GPL-compatible programs; the source is dual-licensed. */
char klp_license[] SEC("license") = "Dual BSD/GPL";
