//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Why a stack walk ended, and what is counted. In step with profiler.Stop. */
#ifndef KALYPSO_STATUS_H
#define KALYPSO_STATUS_H

enum klp_stop {
	KLP_STOP_NONE = 0,
	KLP_STOP_ROOT,         /* the root of the stack was reached */
	KLP_STOP_TRUNCATED,    /* frame limit */
	KLP_STOP_NO_MAPPING,   /* the address is in no known executable mapping */
	KLP_STOP_NO_TABLE,     /* the unwind rows of this page are not built */
	KLP_STOP_NO_ROW,       /* the file has no unwind information here */
	KLP_STOP_UNSUPPORTED,  /* a rule that cannot be expressed */
	KLP_STOP_BAD_READ,     /* stack memory not readable */
	KLP_STOP_BAD_FRAME,    /* the stack pointer did not move up */
	KLP_STOP_NO_REGISTERS, /* user registers not readable */
	KLP_STOP_COMPAT,       /* 32-bit process */
	KLP_STOP_NO_USER,      /* kernel thread, or a process past exit_mm() */
	KLP_STOP_COUNT,
};

/* Indexes of the per-CPU counters in map "counters". */
enum klp_counter {
	KLP_COUNT_SAMPLES = 0,   /* samples that passed the filter */
	KLP_COUNT_LOST_RING,     /* dropped: ring buffer full */
	KLP_COUNT_MERGED,        /* merged into a stack that user space has */
	KLP_COUNT_UNCOUNTED,     /* sent one by one: the table of counts was full */
	KLP_COUNT_DEFERRED,      /* sent with a copy of the stack */
	KLP_COUNT_DEFER_SKIPPED, /* would have been deferred, but the ring buffer was too full */
	KLP_COUNT_PROCESS_UNTRACKED, /* children of targets not sampled: table of targets full */
	KLP_COUNT_FILTERED, /* of the samples, those that a verdict on their cgroup left out */
	KLP_COUNT_THINNED,  /* of these, those of which a share was taken */
	KLP_COUNT_RUN_NS,   /* time that our programs ran, but for entering and leaving them */
	KLP_COUNT_STOPS,    /* + enum klp_stop: samples walked in the kernel, by reason */
	KLP_COUNTERS = KLP_COUNT_STOPS + KLP_STOP_COUNT,
};

#endif
