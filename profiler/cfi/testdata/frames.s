# Frames whose unwind information compilers and hand-written assembly produce
# and that need more than "stack pointer plus offset". assembly_test.go builds
# this file with gcc and names the rule at each label.
	.text

	.globl _start
_start:					# no entry: ends the stack by its place
	xorl %ebp, %ebp
	call plain
_start_end:
	hlt
	.balign 16

plain:
	.cfi_startproc
	pushq %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
plain_body:
	nop
	popq %rbx
	.cfi_def_cfa_offset 8
plain_ret:
	ret
	.cfi_endproc
	.balign 16

realigned:				# gcc -mavx2 with an aligned local
	.cfi_startproc
	leaq 8(%rsp), %r10
	.cfi_def_cfa %r10, 0
realigned_r10:
	andq $-32, %rsp
	pushq -8(%r10)
	pushq %rbp
	movq %rsp, %rbp
	.cfi_escape 0x10,0x06,0x02,0x76,0x00		# rbp at *rbp
	pushq %r10
	.cfi_escape 0x0f,0x03,0x76,0x78,0x06		# CFA = *(rbp-8)
realigned_body:
	nop
	popq %r10
	.cfi_def_cfa %r10, 0
	popq %rbp
	leaq -8(%r10), %rsp
	.cfi_def_cfa %rsp, 8
	ret
	.cfi_endproc
	.balign 16

saved_sp:				# OpenSSL: the caller's rsp is kept in the frame
	.cfi_startproc
	movq %rsp, %rax
	.cfi_def_cfa_register %rax
saved_sp_rax:
	pushq %rbp
	.cfi_offset %rbp, -16
	subq $64, %rsp
	andq $-64, %rsp
	movq %rax, 40(%rsp)
	.cfi_escape 0x0f,0x05,0x77,0x28,0x06,0x23,0x08	# CFA = *(rsp+40)+8
saved_sp_body:
	nop
	movq 40(%rsp), %rsp
	.cfi_def_cfa %rsp, 8
	ret
	.cfi_endproc
	.balign 16

saved_by_sp:
	.cfi_startproc
	subq $24, %rsp
	.cfi_def_cfa_offset 32
	movq %rbp, 8(%rsp)
	.cfi_escape 0x10,0x06,0x02,0x77,0x08		# rbp at *(rsp+8)
saved_by_sp_body:
	nop
	.cfi_escape 0x10,0x06,0x02,0x23,0x70		# rbp at CFA+112: plus_uconst on the CFA
saved_by_cfa:
	addq $24, %rsp
	ret
	.cfi_endproc
	.balign 16

early_return:
	.cfi_startproc
	pushq %rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	.cfi_remember_state
	.cfi_remember_state
	popq %rbp
	.cfi_restore %rbp
	.cfi_def_cfa_offset 8
early_return_first:
	ret
	.cfi_restore_state
early_return_second:
	popq %rbp
	.cfi_def_cfa_offset 8
	ret
	.cfi_restore_state
early_return_third:
	ud2
	.cfi_endproc
	.balign 16

in_registers:
	.cfi_startproc
	popq %rdi
	.cfi_register %rip, %rdi
	.cfi_def_cfa_offset 0
in_registers_ra:				# vfork
	pushq %rdi
	.cfi_offset %rip, -8
	.cfi_def_cfa_offset 8
	movq %rbp, %rax
	.cfi_register %rbp, %rax
in_registers_fp:
	ret
	.cfi_endproc
	.balign 16

large:
	.cfi_startproc
	subq $0x20000, %rsp
	.cfi_def_cfa_offset 0x20008
	movq %rbp, 16(%rsp)
	.cfi_offset %rbp, -0x1fff8
large_body:
	addq $0x20000, %rsp
	ret
	.cfi_endproc
	.balign 16

outermost:
	.cfi_startproc
	.cfi_undefined %rip
outermost_body:
	call plain@PLT
	hlt
	.cfi_endproc
	.balign 16

indexed:				# an expression on a register that is gone after the leaf
	.cfi_startproc
	.cfi_escape 0x0f,0x09,0x77,0x08,0x79,0x00,0x38,0x1e,0x22,0x06,0x96
indexed_body:
	ret
	.cfi_endproc
	.balign 16

	nop				# glibc's entry starts before the stub
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_escape 0x0f,0x04,0x77,0xa0,0x01,0x06	# CFA = *(rsp+160)
	.cfi_escape 0x10,0x10,0x03,0x77,0xa8,0x01	# rip at *(rsp+168)
	.cfi_escape 0x10,0x06,0x03,0x77,0xf8,0x00	# rbp at *(rsp+120)
	nop
restorer:
	movq $15, %rax
	syscall
	.cfi_endproc
restorer_end:
	.balign 32
	nop

restorer_without_cfi:			# musl's
	movq $15, %rax
	syscall
restorer_without_cfi_end:
	.section .note.GNU-stack,"",@progbits
