//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Copies a stack that is to be walked in user space. Runs once per walk that
 * met a table which is not built: 16 reads of 4 KiB, and up to 16 of 256 bytes
 * where the stack ends earlier.
 */
#ifndef KALYPSO_COPY_H
#define KALYPSO_COPY_H

#include "walk.h"

/*
 * Caps a length right where it is used. The barrier keeps the compiler from
 * moving the comparison away, or dropping it because it knows better than the
 * verifier.
 */
#define klp_bound(length, limit)                 \
	do {                                     \
		asm volatile("" : "+r"(length)); \
		if (length > (limit))            \
			length = (limit);        \
	} while (0)

/* Copies the stack from sp up: as much as is readable, KLP_COPY_BYTES at most. */
static __always_inline __u32 klp_copy_stack(struct klp_copy *copy, __u64 sp)
{
	__u32 have = 0;

	for (int i = 0; i < KLP_COPY_BYTES / KLP_COPY_CHUNK; i++) {
		have = i * KLP_COPY_CHUNK;
		if (klp_read(&copy->stack[have], KLP_COPY_CHUNK, sp + have))
			goto pieces;
	}
	return KLP_COPY_BYTES;
pieces:
	/* The top of a thread's stack is seldom at a multiple of a chunk. */
	for (int i = 0; i < KLP_COPY_CHUNK / KLP_COPY_PIECE; i++) {
		if (have > KLP_COPY_BYTES - KLP_COPY_PIECE)
			break;
		if (klp_read(&copy->stack[have], KLP_COPY_PIECE, sp + have))
			break;
		have += KLP_COPY_PIECE;
	}
	return have;
}

#endif
