//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Everything that runs in the kernel, as one object with one set of maps. */
#include "include/kalypso/kernel.h"
#include <bpf/bpf_helpers.h>

/* Knobs, set before loading. */
const volatile __u8 klp_only_targets;
const volatile __u8 klp_only_comm;
const volatile __u8 klp_only_cgroup;
const volatile __u8 klp_by_thread;
const volatile __u8 klp_kernel_stacks = 1;
const volatile char klp_comm[16];
const volatile __u64 klp_cgroup;       /* cgroup v2 ID */
const volatile __u32 klp_cgroup_level; /* its depth; the root is 0 */
const volatile __u8 klp_subsystem;     /* enum klp_subsystems: of cgroup v1 */
const volatile __u32 klp_hierarchy;    /* its hierarchy's number in /proc/PID/cgroup; 0: none */

#include "lifecycle.bpf.c"
#include "sampler.bpf.c"

/*
 * The verifier lets only GPL-compatible programs call some of the helpers we
 * need; the source is dual-licensed.
 */
char klp_license[] SEC("license") = "Dual BSD/GPL";
