# kernel.program.WAIT: a program that says that it is there, on descriptor 3, and ends when the other end is closed.
	.intel_syntax noprefix
	.text
	mov edi, 15		# PR_SET_NAME
	lea rsi, name[rip]
	mov eax, 157		# prctl
	syscall
	mov edi, 1		# PR_SET_PDEATHSIG
	mov esi, 9
	mov eax, 157
	syscall
	mov edi, 4		# PR_SET_DUMPABLE
	xor esi, esi
	mov eax, 157
	syscall
	mov edi, 3
	lea rsi, ready[rip]
	mov edx, 1
	mov eax, 1		# write
	syscall
	mov edi, 3
	lea rsi, [rsp-8]
	mov edx, 1
	xor eax, eax		# read
	syscall
	xor edi, edi
	mov eax, 231		# exit_group
	syscall
name:	.asciz "nsbox-init"
ready:	.ascii "r"
