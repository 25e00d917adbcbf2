/* SPDX-License-Identifier: Apache-2.0 */
/*
 * WIDE functions of five unwind rows each, and a table of them: see wide.c.
 * 48 bytes each, in all 14 MB of code and 1.5 million rows for 300,000.
 */
#ifndef __x86_64__
#error "wide.S is written for x86-64"
#endif

	.altmacro
	.macro WIDE_FUNCTION n
	.type	wide_function_number_\n, @function
wide_function_number_\n:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	push	%r12
	.cfi_def_cfa_offset 24
	.cfi_offset %r12, -24
	mov	%rdi, %rbx
	mov	$\n, %r12d
1:	imul	%r12, %r12
	add	$1, %r12
	dec	%rbx
	jnz	1b
	mov	%r12, %rax
	pop	%r12
	.cfi_def_cfa_offset 16
	pop	%rbx
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size	wide_function_number_\n, . - wide_function_number_\n
	.pushsection .data.rel.ro, "aw"
	.quad	wide_function_number_\n
	.popsection
	.endm

	.section .data.rel.ro, "aw"
	.globl	wide_table
	.balign	8
wide_table:
	.text
	.set	wide_i, 0
	.rept	WIDE
	WIDE_FUNCTION %wide_i
	.set	wide_i, wide_i + 1
	.endr

	.section .rodata
	.globl	wide_count
	.balign	8
wide_count:
	.quad	WIDE
	.section .note.GNU-stack, "", @progbits
