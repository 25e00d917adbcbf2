//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The state of one walk, and what a walker needs of its surroundings.
 *
 * Walkers are plain C over struct klp_walk: this file and the walkers compile
 * for BPF and natively, where tests run them under sanitizers. The
 * surroundings give
 *
 *   klp_mapping_at, klp_executable_at, klp_page_at, klp_row_at, klp_rule_at
 *                       the tables; NULL past their end
 *   klp_known_at        the CPU's own memory of rules found before; NULL: none
 *   klp_read            target memory; 0 on success
 *   klp_now             the epoch that marks tables as used
 */
#ifndef KALYPSO_WALK_H
#define KALYPSO_WALK_H

#include "../include/kalypso/contract.h"

struct klp_walk {
	/* where we are */
	__u64 pc;
	__u64 sp;
	__u64 fp;
	__u64 lr;
	/* the mapping of the last frame: callers are often in the same one */
	__u64 start;
	__u64 end;
	__u64 bias;
	__u32 executable;
	__u32 kind;
	/* the tables of the last frame: likewise */
	__u32 table; /* 1 + executable whose pages these are; 0: none */
	__u32 pages;
	__u32 first_page;
	__u32 page_count;
	__u32 page; /* number of the page whose rows these are */
	__u32 first_row;
	__u32 rows; /* 0: none */
	__u32 pad2;
	/* the process's mappings */
	__u32 first_mapping;
	__u32 mappings;
	/* outcome */
	__u64 hash;
	__u32 base;   /* index in stack.frames of the first user frame */
	__u32 frames; /* user frames so far */
	__u32 stop;
	__u8 exact;           /* pc is the next instruction to run, not a return address */
	__u8 leaf;            /* lr is that of the frame */
	__u8 registers;       /* regs are those of the frame, too */
	__u8 hopeless;        /* the missing table will never come */
	struct klp_regs regs; /* of the leaf */
	/* the stack as last read: one read of 512 bytes costs what three of 8 do */
	__u64 window_at;
	__u32 window_bytes; /* KLP_WINDOW_BYTES, or 0: none */
	__u32 pad3;
	__u64 window[KLP_WINDOW_BYTES / 8];
	struct klp_stack stack;
};

static __always_inline struct klp_mapping *klp_mapping_at(__u32 i);
static __always_inline struct klp_executable *klp_executable_at(__u32 i);
static __always_inline struct klp_page *klp_page_at(__u32 i);
static __always_inline __u32 *klp_row_at(__u32 i);
static __always_inline struct klp_rule *klp_rule_at(__u32 i);
static __always_inline struct klp_known *klp_known_at(__u32 slot);
static __always_inline __u32 klp_now(void);
static __always_inline long klp_read(void *dst, __u32 bytes, __u64 addr);

/*
 * 64-bit mixing of one word (multiply, shift). Equal stacks must hash alike
 * in Go too: profiler/sampler/record.go.
 */
static __always_inline __u64 klp_mix(__u64 h, __u64 word)
{
	h = (h ^ word) * 0x9e3779b97f4a7c15ULL;
	return h ^ (h >> 29);
}

#endif
