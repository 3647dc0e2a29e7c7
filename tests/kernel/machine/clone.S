# kernel.program.CLONE: long clone(struct clone_args *arguments, size_t size, struct row *rows)
#
# Returns what clone3 returns, in the new process never: that has no stack of its own, and touches none. A row is nine
# words: number of a system call, its six arguments, room for its result, and the least result to go on with.
	.intel_syntax noprefix
	.text
	mov r8, rdx		# the kernel keeps it
	mov eax, 435		# clone3
	syscall
	test rax, rax
	jz first
	ret
first:	mov rbx, r8
next:	mov rax, [rbx]
	mov rdi, [rbx+8]
	mov rsi, [rbx+16]
	mov rdx, [rbx+24]
	mov r10, [rbx+32]
	mov r8, [rbx+40]
	mov r9, [rbx+48]
	syscall
	mov [rbx+56], rax
	cmp rax, [rbx+64]
	jl failed
	add rbx, 72
	jmp next
failed:	mov edi, 1
	mov eax, 231		# exit_group
	syscall
