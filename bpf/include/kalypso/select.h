//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The cgroups of a task, and selection: which samples are not wanted, by these.
 * It comes before anything is walked, and costs a look-up for each cgroup from the
 * task's own up to the one that user space has a verdict on.
 */
#ifndef KALYPSO_SELECT_H
#define KALYPSO_SELECT_H

#include "maps.h"
#include "kernel.h"
#include <bpf/bpf_core_read.h>

/* Values of klp_subsystem: whose hierarchy of version 1 is looked at. */
enum klp_subsystems {
	KLP_SUBSYSTEM_NONE = 0,
	KLP_SUBSYSTEM_CPU,
	KLP_SUBSYSTEM_MEMORY,
	KLP_SUBSYSTEM_PIDS,
};

/* Hierarchies that there are verdicts in: bits by KLP_HIERARCHY_…; and whether there is a share. */
__u32 klp_selecting;
#define KLP_SELECTING_SHARE (1 << KLP_HIERARCHIES)

/* What is taken of samples that no verdict is on. */
__u32 klp_share = KLP_VERDICT_ALL;

/* The nearest verdict upwards from a cgroup. */
static __always_inline struct klp_verdict *klp_verdict_on(struct cgroup *cgroup, __u32 hierarchy)
{
	struct klp_cgroup key = {.hierarchy = hierarchy};

	for (int i = 0; i < KLP_CGROUP_LEVELS; i++) {
		struct cgroup_subsys_state *parent;
		struct klp_verdict *v;

		if (!cgroup)
			break;
		key.id = cgroup->kn->id;
		v = bpf_map_lookup_elem(&verdicts, &key);
		if (v && (!i || v->flags & KLP_VERDICT_BELOW))
			return v;
		parent = cgroup->self.parent;
		if (!parent)
			break;
		cgroup = parent->cgroup;
	}
	return NULL;
}

/* A task's cgroup of version 1. Where the kernel lacks the subsystem, none. */
static __always_inline struct cgroup *klp_old_cgroup(struct css_set *set)
{
	struct cgroup_subsys_state *state = NULL;
	__u64 at = (__u64)set + bpf_core_field_offset(struct css_set, subsys);
	__u64 subsystem;

	if (klp_subsystem == KLP_SUBSYSTEM_CPU &&
	    bpf_core_enum_value_exists(enum cgroup_subsys_id, cpu_cgrp_id))
		subsystem = bpf_core_enum_value(enum cgroup_subsys_id, cpu_cgrp_id);
	else if (klp_subsystem == KLP_SUBSYSTEM_MEMORY &&
		 bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		subsystem = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	else if (klp_subsystem == KLP_SUBSYSTEM_PIDS &&
		 bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id))
		subsystem = bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id);
	else
		return NULL;
	state = *(struct cgroup_subsys_state **)(at + subsystem * sizeof(state));
	return state ? state->cgroup : NULL;
}

/* The numbers of a task's cgroups. */
static __always_inline void klp_cgroups_of(struct task_struct *task, __u64 *ids)
{
	struct css_set *set = task->cgroups;
	struct cgroup *old = klp_old_cgroup(set);

	ids[KLP_HIERARCHY_UNIFIED] = set->dfl_cgrp->kn->id;
	ids[KLP_HIERARCHY_OLD] = old ? old->kn->id : 0;
}

/*
 * Whether a sample of a task is taken: the share that is, or 0. The old hierarchy
 * goes first: where there are both, older runtimes have containers in it alone, and
 * in the unified one these are in their runtime's own cgroup.
 */
static __always_inline __u32 klp_taken(struct task_struct *task)
{
	struct css_set *set = task->cgroups;
	struct klp_verdict *v = NULL;
	__u32 share;

	if (klp_selecting & 1 << KLP_HIERARCHY_OLD)
		v = klp_verdict_on(klp_old_cgroup(set), KLP_HIERARCHY_OLD);
	if (!v && klp_selecting & 1 << KLP_HIERARCHY_UNIFIED)
		v = klp_verdict_on(set->dfl_cgrp, KLP_HIERARCHY_UNIFIED);
	share = v ? v->share : klp_share;
	if (!share || share == KLP_VERDICT_ALL)
		return share;
	/* By chance and not in turn: nothing is shared between CPUs, nothing marches in step. */
	if (bpf_get_prandom_u32() < share)
		return share;
	klp_count(KLP_COUNT_THINNED);
	return 0;
}

#endif
