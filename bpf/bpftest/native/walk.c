//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The walker as an ordinary program, for the sanitizers of the compiler: walks
 * what it reads from standard input and writes frames and stop reasons to
 * standard output. The tables and stacks lie in memory of their exact size, so
 * that a read past their end is found.
 *
 * Input, little endian, one after the other:
 *   'T' tables   5 x u32 number of entries, then the entries, in the order of
 *                mappings, executables, pages, rows, rules
 *   'S' stack    u64 address, u64 bytes, the bytes
 *   'W' walk     struct request
 *   'F' flush    give the output of all walks so far
 * Output for each walk: u32 stop, u32 number of frames, u64 hash, the frames.
 */
#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

#include "../../unwind/walk.h"
#include "../../unwind/copy.h"
#include "../../unwind/native.h"

static struct klp_mapping *mappings;
static struct klp_executable *executables;
static struct klp_page *pages;
static __u32 *rows;
static struct klp_rule *rules;
static __u32 entries[5];

static __u64 stack_at, stack_bytes;
static __u8 *stack;

static inline struct klp_mapping *klp_mapping_at(__u32 i)
{
	return i < entries[0] ? &mappings[i] : NULL;
}

static inline struct klp_executable *klp_executable_at(__u32 i)
{
	return i < entries[1] ? &executables[i] : NULL;
}

static inline struct klp_page *klp_page_at(__u32 i)
{
	return i < entries[2] ? &pages[i] : NULL;
}

static inline __u32 *klp_row_at(__u32 i)
{
	return i < entries[3] ? &rows[i] : NULL;
}

static inline struct klp_rule *klp_rule_at(__u32 i)
{
	return i < entries[4] ? &rules[i] : NULL;
}

/* Forgotten with the tables, as with an executable that gives its number back. */
static struct klp_known known[KLP_KNOWN];

static inline struct klp_known *klp_known_at(__u32 slot)
{
	return slot < KLP_KNOWN ? &known[slot] : NULL;
}

static inline __u32 klp_now(void)
{
	return 7;
}

static inline long klp_read(void *dst, __u32 bytes, __u64 addr)
{
	__u64 at = addr - stack_at;

	if (addr < stack_at || at > stack_bytes || stack_bytes - at < bytes)
		return -14; /* EFAULT */
	memcpy(dst, stack + at, bytes);
	return 0;
}

static void fail(const char *what)
{
	fprintf(stderr, "walk: %s\n", what);
	exit(2);
}

static void take(void *dst, size_t bytes)
{
	if (bytes && fread(dst, bytes, 1, stdin) != 1)
		fail("input ends early");
}

static void *table(__u32 count, size_t size)
{
	void *p = malloc(count * size);

	take(p, count * size);
	return p;
}

static void take_tables(void)
{
	free(mappings);
	free(executables);
	free(pages);
	free(rows);
	free(rules);
	memset(known, 0, sizeof(known));
	take(entries, sizeof(entries));
	mappings = table(entries[0], sizeof(*mappings));
	executables = table(entries[1], sizeof(*executables));
	pages = table(entries[2], sizeof(*pages));
	rows = table(entries[3], sizeof(*rows));
	rules = table(entries[4], sizeof(*rules));
}

static void take_stack(void)
{
	struct klp_copy *copy = malloc(sizeof(*copy));
	__u64 from, want = 0;
	__u32 have;

	take(&stack_at, sizeof(stack_at));
	take(&stack_bytes, sizeof(stack_bytes));
	free(stack);
	stack = malloc(stack_bytes);
	take(stack, stack_bytes);

	from = -stack_at & (KLP_COPY_PIECE - 1);
	if (from < stack_bytes)
		want = (stack_bytes - from) / KLP_COPY_PIECE * KLP_COPY_PIECE;
	if (want > KLP_COPY_BYTES)
		want = KLP_COPY_BYTES;
	have = klp_copy_stack(copy, stack_at + from + KLP_COPY_BELOW);
	if (have != want || copy->below != KLP_COPY_BELOW ||
	    memcmp(copy->stack, stack + from, have))
		fail("the copy of the stack is not the stack");
	free(copy);
}

struct request {
	struct klp_regs regs;
	__u32 first_mapping;
	__u32 mappings;
	__u32 base;
	__u8 exact;
	__u8 leaf;
	__u8 registers;
	__u8 pad;
};

static void walk(void)
{
	struct klp_walk *w = malloc(sizeof(*w));
	struct request r;
	__u32 head[2];

	take(&r, sizeof(r));
	/* What klp_begin does not set is what the walk before left there. */
	memset(w, 0xa5, sizeof(*w));
	w->hash = 0;
	w->base = r.base;
	w->frames = 0;
	w->start = w->end = 0;
	w->table = w->rows = 0;
	w->window_bytes = 0;
	w->first_mapping = r.first_mapping;
	w->mappings = r.mappings;
	w->regs = r.regs;
	w->pc = r.regs.pc;
	w->sp = r.regs.sp;
	w->fp = r.regs.fp;
	w->lr = r.regs.lr;
	w->exact = r.exact;
	w->leaf = r.leaf;
	w->registers = r.registers;
	w->stop = KLP_STOP_TRUNCATED;
	for (int i = 0; i < KLP_MAX_FRAMES + 1; i++) {
		if (!klp_step(w))
			break;
	}
	head[0] = w->stop;
	head[1] = w->frames;
	fwrite(head, sizeof(head), 1, stdout);
	fwrite(&w->hash, sizeof(w->hash), 1, stdout);
	fwrite(&w->stack.frames[w->base], sizeof(__u64), w->frames, stdout);
	free(w);
}

int main(void)
{
	int c;

	while ((c = getchar()) != EOF) {
		switch (c) {
		case 'T':
			take_tables();
			break;
		case 'S':
			take_stack();
			break;
		case 'W':
			walk();
			break;
		case 'F':
			fflush(stdout);
			break;
		default:
			fail("unknown input");
		}
	}
	free(mappings);
	free(executables);
	free(pages);
	free(rows);
	free(rules);
	free(stack);
	return fflush(stdout) ? 2 : 0;
}
