//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel types we read, with only the members we name: CO-RE finds
 * where they are in the running kernel.
 */
#ifndef KALYPSO_KERNEL_H
#define KALYPSO_KERNEL_H

#include <linux/bpf.h>

#define __relocated __attribute__((preserve_access_index))

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

struct ns_common {
	unsigned int inum;
} __relocated;

struct pid_namespace {
	struct ns_common ns;
} __relocated;

struct pid {
	unsigned int level;
	char numbers[1]; /* struct upid[] */
} __relocated;

struct kernfs_node {
	__u64 id;
} __relocated;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __relocated;

struct cgroup_root {
	int hierarchy_id; /* 0: unified */
} __relocated;

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
} __relocated;

/* Only those that every container of version 1 is in. Not all are in every kernel. */
enum cgroup_subsys_id {
	cpu_cgrp_id,
	memory_cgrp_id,
	pids_cgrp_id,
};

struct css_set {
	struct cgroup_subsys_state *subsys[1]; /* by cgroup_subsys_id */
	struct cgroup *dfl_cgrp;               /* in the unified hierarchy */
} __relocated;

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live;
} __relocated;

struct task_struct {
	unsigned int flags;
	int pid;
	int tgid;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct signal_struct *signal;
	struct css_set *cgroups;
	__u64 start_boottime;
	void *mm;
	char comm[16];
} __relocated;

#if defined(__TARGET_ARCH_x86)

struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
} __relocated;

/* What a perf_event program may read of its context: fixed by the kernel's ABI. */
struct klp_perf_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

#elif defined(__TARGET_ARCH_arm64)

struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
} __relocated;

struct pt_regs {
	union {
		struct user_pt_regs user_regs;
	};
	int syscallno;
} __relocated;

struct klp_perf_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};

#else
#error "build for x86 or arm64"
#endif

/* The context of a perf_event program. */
struct klp_perf_event {
	struct klp_perf_regs regs;
	__u64 sample_period;
	__u64 addr;
};

#endif
