//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Calls the functions that the sampling programs are made of, one at a time:
 * a perf_event program cannot be run by hand, a "syscall" program can. Run by
 * tests only. The target memory is that of the process that calls.
 */
#include "../include/kalypso/kernel.h"
#include <bpf/bpf_helpers.h>
#include "../include/kalypso/maps.h"
#include "../unwind/copy.h"
#include "../unwind/native.h"

/* Arguments, and what the function gave beside its return value. */
struct klp_call {
	__u64 address;
	__u64 value; /* in or out */
	__u32 offset;
	__u32 kind;
	struct klp_rule rule; /* in or out */
};

/* The walk that a call works on: set and looked at by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct klp_walk);
} walk SEC(".maps");

static __always_inline struct klp_walk *klp_the_walk(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&walk, &zero);
}

#define KLP_NO_WALK -1

SEC("syscall")
int test_find_mapping(struct klp_call *call)
{
	struct klp_walk *w = klp_the_walk();

	return w ? klp_find_mapping(w, call->address) : KLP_NO_WALK;
}

SEC("syscall")
int test_find_rule(struct klp_call *call)
{
	struct klp_walk *w = klp_the_walk();
	struct klp_rule *rule;

	if (!w)
		return KLP_NO_WALK;
	rule = klp_find_rule(w, call->address);
	if (!rule)
		return 0;
	call->rule = *rule;
	return 1;
}

SEC("syscall")
int test_push(struct klp_call *call)
{
	struct klp_walk *w = klp_the_walk();

	return w ? klp_push(w, call->address) : KLP_NO_WALK;
}

SEC("syscall")
int test_signal_frame(struct klp_call *call)
{
	struct klp_walk *w = klp_the_walk();

	return w ? klp_signal_frame(w, call->address) : KLP_NO_WALK;
}

SEC("syscall")
int test_frame_pointer(struct klp_call *call)
{
	struct klp_walk *w = klp_the_walk();

	return w ? klp_frame_pointer(w) : KLP_NO_WALK;
}

SEC("syscall")
int test_cfa_of(struct klp_call *call)
{
	struct klp_walk *w = klp_the_walk();
	struct klp_rule rule = call->rule;
	__u64 cfa = 0;
	int ok;

	if (!w)
		return KLP_NO_WALK;
	ok = klp_cfa_of(w, &rule, &cfa);
	call->value = cfa;
	return ok;
}

SEC("syscall")
int test_saved(struct klp_call *call)
{
	struct klp_walk *w = klp_the_walk();
	__u64 address = call->address, value = 0;
	int ok;

	if (!w)
		return KLP_NO_WALK;
	/* The verifier refuses one instruction that reads of call or of the walk. */
	asm volatile("" : "+r"(address));
	ok = klp_saved(w, call->kind, (__s16)call->offset, address, &value);
	call->value = value;
	return ok;
}

SEC("syscall")
int test_step(struct klp_call *call)
{
	struct klp_walk *w = klp_the_walk();

	return w ? klp_step(w) : KLP_NO_WALK;
}

static long klp_test_turn(__u32 i, void *unused)
{
	struct klp_walk *w = klp_the_walk();

	return !w || !klp_step(w);
}

/* A whole walk, as klp_on_cpu does it. */
SEC("syscall")
int test_walk(struct klp_call *call)
{
	return bpf_loop(KLP_MAX_FRAMES + 1, klp_test_turn, NULL, 0);
}

SEC("syscall")
int test_mix(struct klp_call *call)
{
	call->value = klp_mix(call->value, call->address);
	return 0;
}

SEC("syscall")
int test_bound(struct klp_call *call)
{
	__u64 length = call->value;

	klp_bound(length, KLP_COPY_BYTES);
	call->value = length;
	return 0;
}

SEC("syscall")
int test_copy_stack(struct klp_call *call)
{
	__u32 zero = 0;
	struct klp_copy *copy = bpf_map_lookup_elem(&copies, &zero);

	return copy ? klp_copy_stack(copy, call->address) : KLP_NO_WALK;
}

char klp_license[] SEC("license") = "Dual BSD/GPL";
