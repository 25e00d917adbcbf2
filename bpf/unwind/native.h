//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Native code: find the mapping, find the row, apply its rule. Costs one
 * search in the process's mappings (skipped while callers stay in the same
 * one), one in a page's rows, and one or two reads of the stack per frame.
 */
#ifndef KALYPSO_NATIVE_H
#define KALYPSO_NATIVE_H

#include "walk.h"

/* DWARF register numbers: x86-64 psABI table 3.36, AADWARF64 section 4.1. */
#if defined(__TARGET_ARCH_arm64)
#define KLP_UC_PC 440 /* offsetof(ucontext_t, uc_mcontext.pc) */
#define KLP_UC_SP 432
#define KLP_UC_FP 416
#define KLP_UC_LR 424
#else
#define KLP_UC_PC 168 /* offsetof(ucontext_t, uc_mcontext.gregs[REG_RIP]) */
#define KLP_UC_SP 160
#define KLP_UC_FP 120
#endif

/*
 * A user address as the CPU uses it: without the pointer authentication code
 * that arm64 puts above bit 48 of a return address.
 */
static __always_inline __u64 klp_code_address(__u64 a)
{
#if defined(__TARGET_ARCH_arm64)
	return a & KLP_FRAME_ADDR_MASK;
#else
	return a;
#endif
}

/* Makes the mapping that holds addr the walk's current one; 0 if there is none. */
static __always_inline int klp_find_mapping(struct klp_walk *w, __u64 addr)
{
	__u32 low = 0, high = w->mappings;
	struct klp_mapping *m;

	if (addr >= w->start && addr < w->end)
		return 1;
	for (int i = 0; i < KLP_MAPPING_STEPS; i++) {
		__u32 mid;

		if (low >= high)
			break;
		mid = (low + high) >> 1;
		m = klp_mapping_at(w->first_mapping + mid);
		if (!m)
			return 0;
		if (m->start <= addr)
			low = mid + 1;
		else
			high = mid;
	}
	if (!low)
		return 0;
	m = klp_mapping_at(w->first_mapping + low - 1);
	if (!m || addr < m->start || addr >= m->end)
		return 0;
	w->start = m->start;
	w->end = m->end;
	w->bias = m->bias;
	w->executable = m->executable;
	w->kind = m->kind;
	return 1;
}

/*
 * Makes the rows of page number the walk's current ones; 0 if they are not
 * there. Callers are often in the same page, and always looking up anew would
 * cost two more cache lines per frame.
 */
static __always_inline int klp_find_page(struct klp_walk *w, __u32 number)
{
	struct klp_page *page;

	if (w->table != w->executable + 1) {
		struct klp_executable *exe = klp_executable_at(w->executable);

		if (!exe)
			return 0;
		if (exe->unavailable) {
			w->hopeless = 1;
			return 0;
		}
		w->pages = exe->pages;
		w->first_page = exe->first_page;
		w->page_count = exe->count;
		w->table = w->executable + 1;
		w->rows = 0;
	}
	if (w->rows && w->page == number)
		return 1;
	w->rows = 0;
	if (number - w->first_page >= w->page_count)
		return 0;
	page = klp_page_at(w->pages + number - w->first_page);
	if (!page || !page->count)
		return 0;
	if (page->count == KLP_PAGE_UNAVAILABLE) {
		w->hopeless = 1;
		return 0;
	}
	w->page = number;
	w->first_row = page->first;
	w->rows = page->count;
	if (page->used != klp_now())
		page->used = klp_now();
	return 1;
}

/* The rule in force at an offset of the current mapping's file; NULL sets stop. */
static __always_inline struct klp_rule *klp_find_rule(struct klp_walk *w, __u64 offset)
{
	struct klp_rule *rule;
	__u32 low, high, first, want;
	__u32 *row;

	w->stop = KLP_STOP_NO_TABLE;
	if (!klp_find_page(w, (__u32)(offset >> KLP_PAGE_SHIFT)))
		return NULL;
	first = w->first_row;

	/* The last row whose low 16 bits are <= ours; the first row has 0. */
	want = ((__u32)offset << 16) | 0xffff;
	low = 0;
	high = w->rows;
	for (int i = 0; i < KLP_ROW_STEPS; i++) {
		__u32 mid;

		if (low >= high)
			break;
		mid = (low + high) >> 1;
		row = klp_row_at(first + mid);
		if (!row)
			return NULL;
		if (*row <= want)
			low = mid + 1;
		else
			high = mid;
	}
	if (!low)
		return NULL;
	row = klp_row_at(first + low - 1);
	if (!row)
		return NULL;
	rule = klp_rule_at(*row & 0xffff);
	if (rule)
		w->stop = KLP_STOP_NONE;
	return rule;
}

/*
 * The rule in force at an offset, from memory if it was found before in this
 * epoch (each epoch's first search marks the page as used). The slot goes by
 * the stack pointer: callers stay where they are while the leaf changes, and
 * slots of neighbouring frames share cache lines and pages. At 97 Hz all of
 * this is cold, and cache misses are most of what a sample costs.
 */
static __always_inline struct klp_rule *klp_rule_of(struct klp_walk *w, __u64 offset)
{
	struct klp_known *known = klp_known_at((w->sp >> 5) % KLP_KNOWN);
	struct klp_rule *rule;

	if (known && known->offset == offset && known->executable == w->executable + 1 &&
	    known->epoch == klp_now()) {
		w->stop = KLP_STOP_NONE;
		return &known->rule;
	}
	rule = klp_find_rule(w, offset);
	if (rule && known) {
		known->rule = *rule;
		known->epoch = klp_now();
		known->executable = w->executable + 1;
		known->offset = offset;
	}
	return rule;
}

/* Notes the current frame. 0 when the stack is full. */
static __always_inline int klp_push(struct klp_walk *w, __u64 addr)
{
	__u32 i = w->base + w->frames;
	__u64 word = addr & KLP_FRAME_ADDR_MASK;

	if (w->frames >= KLP_MAX_FRAMES || i >= KLP_MAX_KERNEL_FRAMES + 1 + KLP_MAX_FRAMES) {
		w->stop = KLP_STOP_TRUNCATED;
		return 0;
	}
	word |= (__u64)(w->executable & 0x7fff) << KLP_FRAME_EXE_SHIFT;
	if (!w->exact)
		word |= KLP_FRAME_RETURN;
	w->stack.frames[i] = word;
	w->hash = klp_mix(w->hash, word);
	w->frames++;
	return 1;
}

/*
 * Reads a word of the stack. What a frame saved lies from its sp up, and its
 * callers' above: the window starts there. 0 sets stop.
 */
static __always_inline int klp_word(struct klp_walk *w, __u64 addr, __u64 *value)
{
	__u64 at = addr - w->window_at;

	if (at >= w->window_bytes || at & 7) {
		__u64 from = addr - w->sp < KLP_WINDOW_BYTES ? w->sp : addr;

		w->window_bytes = 0;
		at = addr - from;
		if (at & 7 || klp_read(w->window, KLP_WINDOW_BYTES, from)) {
			/* Near the end of the stack, or not aligned: just the word. */
			if (!klp_read(value, 8, addr))
				return 1;
			w->stop = KLP_STOP_BAD_READ;
			return 0;
		}
		w->window_at = from;
		w->window_bytes = KLP_WINDOW_BYTES;
	}
	*value = w->window[(at >> 3) & (KLP_WINDOW_BYTES / 8 - 1)];
	return 1;
}

/* Signal frame: the interrupted registers are in the ucontext at uc. */
static __always_inline int klp_signal_frame(struct klp_walk *w, __u64 uc)
{
	__u64 pc, sp, fp;

	if (klp_read(&pc, 8, uc + KLP_UC_PC) || klp_read(&sp, 8, uc + KLP_UC_SP) ||
	    klp_read(&fp, 8, uc + KLP_UC_FP)) {
		w->stop = KLP_STOP_BAD_READ;
		return 0;
	}
#if defined(__TARGET_ARCH_arm64)
	if (klp_read(&w->lr, 8, uc + KLP_UC_LR)) {
		w->stop = KLP_STOP_BAD_READ;
		return 0;
	}
	w->leaf = 1;
#else
	w->leaf = 0;
#endif
	/* The other registers are not read: a rule on them ends the walk. */
	w->registers = 0;
	w->pc = klp_code_address(pc);
	w->sp = sp;
	w->fp = fp;
	w->exact = 1;
	return 1;
}

/* Steps to the caller by frame pointer: {saved frame pointer, return address}. */
static __always_inline int klp_frame_pointer(struct klp_walk *w)
{
	__u64 fp, ra;

	if (!w->fp) {
		w->stop = KLP_STOP_ROOT;
		return 0;
	}
	if (w->fp & 7) {
		w->stop = KLP_STOP_BAD_READ;
		return 0;
	}
	if (!klp_word(w, w->fp, &fp) || !klp_word(w, w->fp + 8, &ra))
		return 0;
	if (fp == w->fp) {
		w->stop = KLP_STOP_BAD_FRAME;
		return 0;
	}
	w->sp = w->fp + 16;
	w->fp = fp;
	w->pc = klp_code_address(ra);
	return 1;
}

/* The CFA by rule; 0 sets stop. */
static __always_inline int klp_cfa_of(struct klp_walk *w, const struct klp_rule *rule, __u64 *cfa)
{
	__u64 off = (__u64)(__s64)rule->cfa_off;
	__u64 value = 0;

	switch (rule->cfa) {
	case KLP_CFA_SP:
		*cfa = w->sp + off;
		return 1;
	case KLP_CFA_FP:
		*cfa = w->fp + off;
		return 1;
	case KLP_CFA_REG:
		if (!w->registers)
			break;
		*cfa = w->regs.r[rule->reg & (KLP_REGS - 1)] + off;
		return 1;
	case KLP_CFA_PLT:
		/* binutils elf_x86_64_eh_frame_plt: one slot more once the index was pushed */
		*cfa = w->sp + 8 + ((w->pc & 15) >= (__u64)(__s64)rule->off2 ? 8 : 0);
		return 1;
	case KLP_CFA_DEREF_SP:
	case KLP_CFA_DEREF_FP:
		if (!klp_word(w, (rule->cfa == KLP_CFA_DEREF_SP ? w->sp : w->fp) + off, &value))
			return 0;
		*cfa = value + (__u64)(__s64)rule->off2;
		return 1;
	}
	w->stop = KLP_STOP_UNSUPPORTED;
	return 0;
}

/* Reads a register saved as kind says; 0 sets stop. */
static __always_inline int klp_saved(struct klp_walk *w, __u8 kind, __s16 offset, __u64 cfa,
				     __u64 *value)
{
	__u64 addr;

	if (kind == KLP_REG_CFA)
		addr = cfa;
	else if (kind == KLP_REG_DEREF_FP)
		addr = w->fp;
	else
		addr = w->sp;
	return klp_word(w, addr + (__u64)(__s64)offset, value);
}

/*
 * Notes the frame at pc and steps to its caller. 1: go on; 0: the walk ended
 * and w->stop says why.
 */
static __always_inline int klp_step(struct klp_walk *w)
{
	/* A call may be the last instruction of its function: look before the return address. */
	__u64 at = w->exact ? w->pc : w->pc - 1;
	__u64 cfa = 0, ra = 0, fp = w->fp;
	struct klp_rule *rule;

	if (!klp_find_mapping(w, at)) {
		w->executable = 0;
		w->stop = w->pc ? KLP_STOP_NO_MAPPING : KLP_STOP_ROOT;
		if (w->pc)
			klp_push(w, w->pc);
		return 0;
	}
	if (w->kind == KLP_MAPPING_FRAME_POINTER) {
		if (!klp_push(w, w->pc - w->bias) || !klp_frame_pointer(w))
			return 0;
		goto stepped;
	}
	rule = klp_rule_of(w, at - w->bias);
	/* A handler returns to code that called nothing: its name is the one there. */
	if (rule && rule->cfa == KLP_CFA_SIGNAL)
		w->exact = 1;
	if (!klp_push(w, w->pc - w->bias) || !rule)
		return 0;

	switch (rule->cfa) {
	case KLP_CFA_NONE:
		w->stop = KLP_STOP_NO_ROW;
		return 0;
	case KLP_CFA_STOP:
		w->stop = KLP_STOP_ROOT;
		return 0;
	case KLP_CFA_SIGNAL:
		return klp_signal_frame(w, w->sp + (__u64)(__s64)rule->cfa_off);
	case KLP_CFA_FRAME:
		if (!klp_frame_pointer(w))
			return 0;
		goto stepped;
	}
	if (!klp_cfa_of(w, rule, &cfa))
		return 0;
	/*
	 * The stack pointer moves up, but for a leaf of arm64, which may leave it
	 * where it is, and for a chain over two stacks (Go's systemstack on arm64).
	 */
	if (rule->ra_kind != KLP_REG_DEREF_FP &&
	    (cfa < w->sp || (cfa == w->sp && !(w->leaf && rule->ra_kind == KLP_REG_SAME)))) {
		w->stop = KLP_STOP_BAD_FRAME;
		return 0;
	}

	if (rule->ra_kind == KLP_REG_UNDEFINED) {
		w->stop = KLP_STOP_ROOT;
		return 0;
	}
	if (rule->ra_kind == KLP_REG_SAME) {
		if (!w->leaf) {
			w->stop = KLP_STOP_BAD_FRAME;
			return 0;
		}
		ra = w->lr;
	} else if (!klp_saved(w, rule->ra_kind, rule->ra_off, cfa, &ra)) {
		return 0;
	}
	if (rule->fp_kind == KLP_REG_UNDEFINED)
		fp = 0;
	else if (rule->fp_kind != KLP_REG_SAME &&
		 !klp_saved(w, rule->fp_kind, rule->fp_off, cfa, &fp))
		return 0;
	w->sp = cfa;
	w->fp = fp;
	w->pc = klp_code_address(ra);

stepped:
	w->exact = 0;
	w->leaf = 0;
	w->registers = 0;
	if (!w->pc) {
		w->stop = KLP_STOP_ROOT;
		return 0;
	}
	return 1;
}

#endif
