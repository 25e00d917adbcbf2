//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* All maps, and the knobs that user space sets. */
#ifndef KALYPSO_MAPS_H
#define KALYPSO_MAPS_H

#include "../../unwind/walk.h"

#define KLP_TABLE(map, count, entry)               \
	struct {                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);  \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__uint(max_entries, count);        \
		__type(key, __u32);                \
		__type(value, entry);              \
	} map SEC(".maps")

/* Unwind tables: written by user space through shared memory. */
KLP_TABLE(mappings, KLP_MAPPINGS, struct klp_mapping);
KLP_TABLE(executables, KLP_EXECUTABLES, struct klp_executable);
KLP_TABLE(pages, KLP_PAGES, struct klp_page);
KLP_TABLE(rows, KLP_ROWS / KLP_ROWS_PER_CHUNK, struct klp_rows);
KLP_TABLE(rules, KLP_RULES, struct klp_rule);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KLP_PROCESSES);
	__type(key, __u32);
	__type(value, struct klp_process);
} processes SEC(".maps");

/* Processes to sample, where only some are wanted; children inherit. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KLP_PROCESSES);
	__type(key, __u32);
	__type(value, __u8);
} targets SEC(".maps");

/* Which cgroups are sampled, where not all are. Lookups from perf events need it preallocated. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KLP_VERDICTS);
	__type(key, struct klp_cgroup);
	__type(value, struct klp_verdict);
} verdicts SEC(".maps");

/* Samples of stacks that user space already has, since it last looked. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KLP_COUNTS);
	__type(key, struct klp_key);
	__type(value, __u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, KLP_RING_BYTES);
} records SEC(".maps");

/* Where a walk lives: too big for the 512-byte stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct klp_walk);
} walks SEC(".maps");

/* One per CPU, sized when loading: a per-CPU array's values end at 32 KiB. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct klp_copy);
} copies SEC(".maps");

/* The same few return addresses make up most stacks: no need to search twice. */
struct klp_memory {
	struct klp_known known[KLP_KNOWN];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct klp_memory);
} memories SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KLP_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void klp_count(__u32 counter)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &counter);

	if (n)
		(*n)++;
}

static __always_inline void klp_count_by(__u32 counter, __u64 by)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &counter);

	if (n)
		*n += by;
}

/*
 * Counts the time that a program ran. Unlike the kernel's own statistics of
 * programs this is always on and takes no privilege: the agent's CPU budget
 * counts it.
 */
static __always_inline void klp_ran_since(__u64 began)
{
	klp_count_by(KLP_COUNT_RUN_NS, bpf_ktime_get_ns() - began);
}

static __always_inline struct klp_mapping *klp_mapping_at(__u32 i)
{
	return bpf_map_lookup_elem(&mappings, &i);
}

static __always_inline struct klp_executable *klp_executable_at(__u32 i)
{
	return bpf_map_lookup_elem(&executables, &i);
}

static __always_inline struct klp_page *klp_page_at(__u32 i)
{
	return bpf_map_lookup_elem(&pages, &i);
}

static __always_inline __u32 *klp_row_at(__u32 i)
{
	__u32 chunk = i / KLP_ROWS_PER_CHUNK;
	struct klp_rows *r = bpf_map_lookup_elem(&rows, &chunk);

	return r ? &r->row[i % KLP_ROWS_PER_CHUNK] : NULL;
}

static __always_inline struct klp_rule *klp_rule_at(__u32 i)
{
	return bpf_map_lookup_elem(&rules, &i);
}

static __always_inline struct klp_known *klp_known_at(__u32 slot)
{
	__u32 zero = 0;
	struct klp_memory *memory = bpf_map_lookup_elem(&memories, &zero);

	return memory && slot < KLP_KNOWN ? &memory->known[slot] : NULL;
}

/* Counted up by user space once a second. */
__u32 klp_epoch;

static __always_inline __u32 klp_now(void)
{
	return klp_epoch;
}

static __always_inline long klp_read(void *dst, __u32 bytes, __u64 addr)
{
	return bpf_probe_read_user(dst, bytes, (void *)addr);
}

#endif
