//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * fork, exec, exit (BTF tracepoints: no tracefs, no kprobe). They run once per
 * process, cost under a microsecond, and keep the kernel side true without
 * waiting for user space: a child can be unwound and is a target from its
 * first instruction on, and no process is unwound by a dead one's mappings.
 * User space learns the same from perf's own records: see bpf/sideband.go.
 *
 * The making of cgroups likewise, once per cgroup: of a container that is gone
 * when user space looks, the number in its samples would say nothing.
 */
#include "include/kalypso/maps.h"
#include "include/kalypso/task.h"
#include <bpf/bpf_tracing.h>

SEC("tp_btf/sched_process_fork")
int BPF_PROG(klp_on_fork, struct task_struct *parent, struct task_struct *child)
{
	__u64 began = bpf_ktime_get_ns();
	__u32 pid = klp_pid(child), from = klp_pid(parent);
	struct klp_process *process;

	if (!pid || pid == from || child->pid != child->tgid)
		return 0;
	if (klp_only_targets && bpf_map_lookup_elem(&targets, &from)) {
		__u8 one = 1;

		if (bpf_map_update_elem(&targets, &pid, &one, BPF_ANY))
			klp_count(KLP_COUNT_PROCESS_UNTRACKED);
	}
	process = bpf_map_lookup_elem(&processes, &from);
	if (process) {
		struct klp_process copy = *process;

		/* No room is no loss: the child's first sample comes as a copy. */
		bpf_map_update_elem(&processes, &pid, &copy, BPF_ANY);
	}
	klp_ran_since(began);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(klp_on_exec, struct task_struct *task)
{
	__u64 began = bpf_ktime_get_ns();
	__u32 pid = klp_pid(task);

	bpf_map_delete_elem(&processes, &pid);
	klp_ran_since(began);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(klp_on_exit, struct task_struct *task)
{
	__u64 began = bpf_ktime_get_ns();
	__u32 pid = klp_pid(task);

	/* do_exit() counts the thread off before it comes here. */
	if (!pid || task->signal->live.counter)
		return 0;
	bpf_map_delete_elem(&processes, &pid);
	bpf_map_delete_elem(&targets, &pid);
	klp_ran_since(began);
	return 0;
}

/* A record that there is no room for is no loss: what is still there is found by its number. */
SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(klp_on_mkdir, struct cgroup *cgroup, const char *path)
{
	__u64 began = bpf_ktime_get_ns();
	int number = cgroup->root->hierarchy_id;
	struct klp_new_cgroup *made;

	if (number && number != klp_hierarchy)
		return 0; /* of a subsystem that nobody is told apart by */
	made = bpf_ringbuf_reserve(&records, sizeof(*made), 0);
	if (!made)
		return 0;
	made->kind = KLP_RECORD_CGROUP;
	made->hierarchy = number ? KLP_HIERARCHY_OLD : KLP_HIERARCHY_UNIFIED;
	made->id = cgroup->kn->id;
	bpf_probe_read_kernel_str(made->path, sizeof(made->path), path);
	bpf_ringbuf_submit(made, BPF_RB_NO_WAKEUP);
	klp_ran_since(began);
	return 0;
}
