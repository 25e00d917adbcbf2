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

/*
 * Copies a stack from a bit below sp up: as much as is readable, KLP_COPY_BYTES at
 * most. It begins at a multiple of a piece. No piece is in two pages then, and of
 * a stack that ends with its page nothing is left out: Go's do.
 */
static __always_inline __u32 klp_copy_stack(struct klp_copy *copy, __u64 sp)
{
	__u64 start = (sp - KLP_COPY_BELOW) & ~(KLP_COPY_PIECE - 1ULL);
	__u32 have = 0;

	copy->below = sp - start;

	for (int i = 0; i < KLP_COPY_BYTES / KLP_COPY_CHUNK; i++) {
		have = i * KLP_COPY_CHUNK;
		if (klp_read(&copy->stack[have], KLP_COPY_CHUNK, start + have))
			goto pieces;
	}
	return KLP_COPY_BYTES;
pieces:
	/* The top of a stack is seldom a number of chunks away. */
	for (int i = 0; i < KLP_COPY_CHUNK / KLP_COPY_PIECE; i++) {
		if (have > KLP_COPY_BYTES - KLP_COPY_PIECE)
			break;
		if (klp_read(&copy->stack[have], KLP_COPY_PIECE, start + have))
			break;
		have += KLP_COPY_PIECE;
	}
	return have;
}

#endif
