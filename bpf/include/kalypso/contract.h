//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Everything that crosses between the kernel side and Go. Sizes are asserted
 * here; bpf2go reads the same structs from BTF.
 */
#ifndef KALYPSO_CONTRACT_H
#define KALYPSO_CONTRACT_H

#include "limits.h"
#include "status.h"

/*
 * A user frame is one 64-bit word:
 *   bit 63      the address is a return address: name the instruction before it
 *   bits 62-48  executable; 0: code without a file, the address is absolute
 *   bits 47-0   offset in the executable's file
 * Executables from 0x7f00 on are reserved for frames that take several words
 * (interpreters).
 */
#define KLP_FRAME_RETURN    (1ULL << 63)
#define KLP_FRAME_EXE_SHIFT 48
#define KLP_FRAME_ADDR_MASK 0x0000ffffffffffffULL

/* How frames of a mapping are unwound. */
enum klp_mapping_kind {
	KLP_MAPPING_FILE = 0,      /* by the file's unwind rows */
	KLP_MAPPING_FRAME_POINTER, /* code made at run time: by frame pointers */
};

/* One executable mapping of a process; sorted by start, not overlapping. */
struct klp_mapping {
	__u64 start;
	__u64 end;
	__u64 bias; /* address - bias = offset in the file */
	__u32 executable;
	__u32 kind;
};
_Static_assert(sizeof(struct klp_mapping) == 32, "klp_mapping");

#define KLP_PROCESS_NO_DEFER 1 /* stop sending copies of this process's stacks */

/* A process: its slice of map "mappings". */
struct klp_process {
	__u32 first;
	__u32 count;
	__u32 flags;
	__u32 pad;
};

/* An executable: its slice of map "pages", by 64 KiB pages of the file. */
struct klp_executable {
	__u32 pages;       /* index of the first entry */
	__u32 first_page;  /* number of the page it stands for */
	__u32 count;       /* 0 until the file was opened */
	__u32 unavailable; /* the file cannot be read, or is for another machine */
};

#define KLP_PAGE_UNAVAILABLE 0xffffffff

/* A page of code: its slice of map "rows". */
struct klp_page {
	__u32 first;
	__u32 count; /* 0: not built yet; KLP_PAGE_UNAVAILABLE: will not be built */
	__u32 used;  /* klp_epoch when a walk last used it: user space evicts the oldest */
	__u32 pad;
};

/*
 * A row: low 16 bits of the offset << 16 | index of the rule. In chunks,
 * because the elements of an array map are rounded up to 8 bytes.
 */
#define KLP_ROWS_PER_CHUNK 1024

struct klp_rows {
	__u32 row[KLP_ROWS_PER_CHUNK];
};

/* In step with cfi.Rule and its constants. */
enum klp_cfa {
	KLP_CFA_NONE = 0,
	KLP_CFA_STOP,
	KLP_CFA_UNSUPPORTED,
	KLP_CFA_SP,
	KLP_CFA_FP,
	KLP_CFA_REG,
	KLP_CFA_DEREF_SP,
	KLP_CFA_DEREF_FP,
	KLP_CFA_PLT,
	KLP_CFA_SIGNAL,
	KLP_CFA_FRAME,
};

enum klp_reg {
	KLP_REG_SAME = 0,
	KLP_REG_CFA,
	KLP_REG_UNDEFINED,
	KLP_REG_DEREF_FP,
	KLP_REG_DEREF_SP,
};

struct klp_rule {
	__s32 cfa_off;
	__s16 off2;
	__s16 fp_off;
	__s16 ra_off;
	__u8 cfa;
	__u8 fp_kind;
	__u8 ra_kind;
	__u8 reg;
	__u8 pad[2];
};
_Static_assert(sizeof(struct klp_rule) == 16, "klp_rule");

/*
 * A rule found before, by the address it was found for. A rule never changes
 * while its executable keeps its number, so what is remembered stays true even
 * when the rows it came from were evicted.
 */
struct klp_known {
	__u64 offset;
	__u32 executable; /* 1 + its number; 0: nothing */
	__u32 epoch;
	struct klp_rule rule;
};
_Static_assert(sizeof(struct klp_known) == 32, "klp_known");

/* Registers by DWARF number; enough for x86-64 (0-15) and aarch64 (0-30, 31 = sp). */
#define KLP_REGS 32

struct klp_regs {
	__u64 pc;
	__u64 sp;
	__u64 fp;
	__u64 lr; /* aarch64 only */
	__u64 r[KLP_REGS];
};

/* Kinds of record in the ring buffer. */
enum klp_record_kind {
	KLP_RECORD_STACK = 1, /* a whole stack */
	KLP_RECORD_COPY, /* the frames so far, and a copy of the stack to go on from in user space */
	KLP_RECORD_CGROUP, /* a cgroup was made: struct klp_new_cgroup */
};

#define KLP_RECORD_COUNTED 1 /* further samples of this stack are in map "counts" under its key */
/* Copy: the state of the walk where it stopped, see struct klp_walk. */
#define KLP_RECORD_EXACT     2
#define KLP_RECORD_LEAF      4
#define KLP_RECORD_REGISTERS 8

/*
 * A cgroup's number is one of its hierarchy only. Hierarchies are the unified
 * one (version 2), and that of klp_subsystem where version 1 is mounted too.
 */
#define KLP_HIERARCHY_UNIFIED 0
#define KLP_HIERARCHY_OLD     1
#define KLP_HIERARCHIES       2

/*
 * PIDs are given again and processes change their cgroup, so a sample says when
 * its process was started and which cgroups its task is in, by KLP_HIERARCHY_…;
 * 0: none. They are part of the hash, and so is what the sample stands for.
 */
struct klp_header {
	__u8 kind;
	__u8 stop;
	__u8 flags;
	__u8 pad;
	__u16 kernel_frames;
	__u16 user_frames;
	__u32 pid;
	__u32 tid;
	__u64 hash;
	__u64 ktime_ns;   /* CLOCK_MONOTONIC */
	__u64 started_ns; /* CLOCK_BOOTTIME */
	__u64 cgroups[KLP_HIERARCHIES];
	char comm[16]; /* of the process */
	char thread[16];
	__u32 share; /* of such samples that is taken: see struct klp_verdict */
	__u32 pad2;
};
_Static_assert(sizeof(struct klp_header) == 96, "klp_header");

/* Kernel frames, then user frames, both leaf first. */
struct klp_stack {
	struct klp_header header;
	__u64 frames[KLP_MAX_KERNEL_FRAMES + 1 + KLP_MAX_FRAMES];
};

/*
 * A walk that user space is to finish: the frames so far, the registers of the
 * next one, and the stack from a bit below its sp up.
 */
struct klp_copy {
	struct klp_header header;
	struct klp_regs regs;
	__u32 bytes; /* of stack */
	__u32 below; /* of these, below sp */
	__u64 frames[KLP_MAX_KERNEL_FRAMES + 1 + KLP_MAX_FRAMES];
	__u8 stack[KLP_COPY_BYTES];
};

/* A cgroup that was made, before anything is in it. */
struct klp_new_cgroup {
	__u8 kind;
	__u8 pad[3];
	__u32 hierarchy;
	__u64 id;
	char path[KLP_CGROUP_PATH]; /* from the root of its hierarchy on */
};
_Static_assert(sizeof(struct klp_new_cgroup) == 1040, "klp_new_cgroup");

/* A cgroup, by its number and hierarchy. */
struct klp_cgroup {
	__u64 id; /* inode number of its directory */
	__u32 hierarchy;
	__u32 pad;
};

/* What is to be done with samples of a cgroup. */
#define KLP_VERDICT_ALL   0xffffffff
#define KLP_VERDICT_BELOW 1 /* holds for cgroups below that have none of their own */

struct klp_verdict {
	__u32 share; /* that is taken, of 2^32; 0: none, KLP_VERDICT_ALL: all */
	__u32 flags;
};

/* What makes samples the same. tid is 0 unless threads are told apart. */
struct klp_key {
	__u64 hash;
	__u32 pid;
	__u32 tid;
};

#endif
