//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sizes, with the sums that make them safe. */
#ifndef KALYPSO_LIMITS_H
#define KALYPSO_LIMITS_H

/* User frames of one stack, with bpf_loop (Linux 5.17). */
#define KLP_MAX_FRAMES 1024

/*
 * Without bpf_loop: 33 tail calls of 8 frames, 264 frames. The verifier sees
 * one call; MAX_TAIL_CALL_CNT is 33 in every kernel.
 */
#define KLP_FRAMES_PER_CALL 8
#define KLP_TAIL_CALLS      33

/* bpf_get_stack gives at most PERF_MAX_STACK_DEPTH (127) kernel frames. */
#define KLP_MAX_KERNEL_FRAMES 127

/* Bytes of user stack that a walk reads at once: about five frames. */
#define KLP_WINDOW_BYTES 512

/* Bytes of user stack sent along when the kernel side cannot unwind yet. */
#define KLP_COPY_BYTES 65536
#define KLP_COPY_CHUNK 4096
#define KLP_COPY_PIECE 256

/*
 * Of these, below the stack pointer: on arm64 Go keeps the caller's frame
 * pointer there, at sp - 8 (cmd/internal/obj/arm64/obj7.go).
 */
#if defined(__TARGET_ARCH_arm64)
#define KLP_COPY_BELOW 16
#else
#define KLP_COPY_BELOW 0
#endif

/* Unwind rows are found by 64 KiB pages of the file: the low 16 bits of an
 * address are in the row, so a row takes 4 bytes. */
#define KLP_PAGE_SHIFT 16

/* Steps of a binary search: 2^17 > 65536 rows of a page, 2^16 mappings. */
#define KLP_ROW_STEPS     17
#define KLP_MAPPING_STEPS 16

/*
 * Cgroups that are asked from a process's own upwards. A pod is one above its
 * containers; systemd in a container, with a user's session, adds six.
 */
#define KLP_CGROUP_LEVELS 16

/* What the kernel tells of a path: TRACE_CGROUP_PATH_LEN, kernel/cgroup/cgroup-internal.h */
#define KLP_CGROUP_PATH 1024

/* Table sizes. User space may make pages, rows and mappings smaller. */
#define KLP_EXECUTABLES 8192    /* 16 B each */
#define KLP_PAGES       65536   /* 16 B each: 4 GiB of code */
#define KLP_ROWS        1048576 /* 4 B each */
#define KLP_RULES       16384   /* 16 B each; 4,000 distinct ones in a desktop's /usr/lib */
#define KLP_KNOWN       512 /* remembered rules of 32 B, per CPU: 16 KiB of stack, a slot for each 32 B */
#define KLP_MAPPINGS    49152 /* 32 B each */
#define KLP_PROCESSES   16384
#define KLP_VERDICTS    4096 /* about 80 B each; a node has 110 pods unless told otherwise */
#define KLP_COUNTS      16384
#define KLP_RING_BYTES  (2 << 20)

#endif
