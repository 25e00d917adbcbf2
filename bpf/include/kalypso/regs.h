//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The user registers of a task, by DWARF number. */
#ifndef KALYPSO_REGS_H
#define KALYPSO_REGS_H

#include "kernel.h"
#include "contract.h"

/*
 * What a task's user registers were when it last entered the kernel. syscall
 * is the number of the system call that it is in, negative where it entered by
 * an interrupt or an exception.
 */
static __always_inline void klp_saved_regs(struct pt_regs *regs, struct klp_regs *out, __u8 *compat,
					   __s32 *syscall)
{
#if defined(__TARGET_ARCH_arm64)
	/* PSR_MODE32_BIT, arch/arm64/include/uapi/asm/ptrace.h */
	*compat = !!(regs->user_regs.pstate & 0x10);
	*syscall = regs->syscallno;
	out->pc = regs->user_regs.pc;
	out->sp = regs->user_regs.sp;
	out->fp = regs->user_regs.regs[29];
	out->lr = regs->user_regs.regs[30];
#pragma unroll
	for (int i = 0; i < 31; i++)
		out->r[i] = regs->user_regs.regs[i];
	out->r[31] = out->sp;
#else
	/* __USER_CS is 0x33 and __USER32_CS 0x23: arch/x86/include/asm/segment.h */
	*compat = regs->cs == 0x23;
	*syscall = (__s32)regs->orig_ax;
	out->pc = regs->ip;
	out->sp = regs->sp;
	out->fp = regs->bp;
	out->lr = 0;
	out->r[0] = regs->ax;
	out->r[1] = regs->dx;
	out->r[2] = regs->cx;
	out->r[3] = regs->bx;
	out->r[4] = regs->si;
	out->r[5] = regs->di;
	out->r[6] = regs->bp;
	out->r[7] = regs->sp;
	out->r[8] = regs->r8;
	out->r[9] = regs->r9;
	out->r[10] = regs->r10;
	out->r[11] = regs->r11;
	out->r[12] = regs->r12;
	out->r[13] = regs->r13;
	out->r[14] = regs->r14;
	out->r[15] = regs->r15;
#endif
}

/* Whether an event struck in user mode. */
static __always_inline int klp_in_user(struct klp_perf_event *ctx)
{
#if defined(__TARGET_ARCH_arm64)
	return (ctx->regs.pstate & 0xf) == 0; /* PSR_MODE_EL0t */
#else
	return (ctx->regs.cs & 3) == 3;
#endif
}

#endif
