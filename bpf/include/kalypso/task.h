//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a task is called and which PID the agent knows it by. */
#ifndef KALYPSO_TASK_H
#define KALYPSO_TASK_H

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/*
 * The agent's PID namespace: its depth and number, found by klp_self. PIDs in
 * the init namespace (depth 0) need no look-up.
 */
__u32 klp_pidns_level;
__u32 klp_pidns_inum;

/*
 * One level of a struct pid: struct upid, {nr, namespace}, has had this shape
 * since 2.6.24. Read as plain words: on the stack it needs no relocation.
 */
static __always_inline __u32 klp_upid(struct pid *pid, __u32 level, __u32 *inum)
{
	__u64 numbers = (__u64)pid + bpf_core_field_offset(struct pid, numbers);
	__u64 upid[2];

	if (bpf_probe_read_kernel(upid, sizeof(upid), (void *)(numbers + level * sizeof(upid))))
		return 0;
	*inum = BPF_CORE_READ((struct pid_namespace *)upid[1], ns.inum);
	return (__u32)upid[0];
}

/* The task's thread ID in the agent's PID namespace; 0 if it is not in it. */
static __always_inline __u32 klp_tid(struct task_struct *task)
{
	__u32 level = klp_pidns_level, inum = 0, tid;
	struct pid *pid;

	if (!level)
		return task->pid;
	pid = BPF_CORE_READ(task, thread_pid);
	if (!pid || BPF_CORE_READ(pid, level) < level)
		return 0;
	tid = klp_upid(pid, level, &inum);
	return inum == klp_pidns_inum ? tid : 0;
}

/* The process ID, likewise. */
static __always_inline __u32 klp_pid(struct task_struct *task)
{
	if (!klp_pidns_level)
		return task->tgid;
	return klp_tid(task->group_leader);
}

#endif
