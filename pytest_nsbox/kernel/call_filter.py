"""A filter that refuses system calls by name. Source: seccomp(2), bpf(4), seccomp_filter.rst of the kernel.

What is refused ends with EPERM. Calls newer than the table, clone3(2), whose flags no filter can see, and those
of another architecture end with ENOSYS, so that programs fall back to what they did before there were such calls.
"""

from __future__ import annotations

import errno
import os
import struct

from pytest_nsbox.kernel import libc
from pytest_nsbox.policy import syscalls
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Instruction: TypeAlias = tuple[int, int, int, int]

# machine: architectures of its callers (AUDIT_ARCH_*), each with its column of the table of numbers
_MACHINES = {
    "x86_64": ((0xC000003E, 0), (0x40000003, 1)),
    "aarch64": ((0xC00000B7, 2),),
    "riscv64": ((0xC00000F3, 2),),
    "loongarch64": ((0xC0000102, 2),),
}
_CLONE_NEW = 0x7E020000  # namespaces of every kind that clone(2) can make
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32-bit, with uname26, and the question which it is
_AF_VSOCK = 40

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JEQ, _JGT, _JSET, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
# Offsets in struct seccomp_data; of arguments the lower half on the machines above, which are all little-endian.
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16


def build(capabilities: frozenset[str]) -> bytes | None:
    """The program of a filter for processes with these capabilities; None on a machine that the table has not."""
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return None
    code: list[Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture, column in machine:
        block = _block(column, capabilities)
        # A jump passes over 255 instructions at most, so that over the block is one without condition.
        code += [(_JEQ, 1, 0, architecture), (0x05, 0, 0, len(block)), *block]
    code.append((_RETURN, 0, 0, _ERRNO | errno.ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _block(column: int, capabilities: frozenset[str]) -> list[Instruction]:
    """What is done with a call of one architecture."""
    numbers = {name: row[column] for name, row in syscalls.NUMBERS.items()}
    no, missing, yes = ((_RETURN, 0, 0, value) for value in (_ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS, _ALLOW))
    code: list[Instruction] = [(_LOAD, 0, 0, _NUMBER), (_JGT, 0, 1, syscalls.LAST), missing]
    for name in syscalls.refused(capabilities):
        number = numbers[name]
        if number is not None:
            code += [(_JEQ, 0, 1, number), no]

    def on(name: str, *instructions: Instruction) -> None:
        number = numbers[name]
        if number is not None:
            code.extend([(_JEQ, 0, len(instructions), number), *instructions])

    if "sys_admin" not in capabilities:
        on("clone3", missing)
        on("clone", (_LOAD, 0, 0, _ARGUMENT), (_JSET, 0, 1, _CLONE_NEW), no, yes)
    same = [(_JEQ, len(_PERSONALITIES) - index, 0, value) for index, value in enumerate(_PERSONALITIES)]
    on("personality", (_LOAD, 0, 0, _ARGUMENT), *same, no, yes)
    on("socket", (_LOAD, 0, 0, _ARGUMENT), (_JEQ, 0, 1, _AF_VSOCK), no, yes)
    return [*code, yes]


def install(program: bytes) -> None:
    """Filter the calls of this process and of all that it starts, for good. Needs no_new_privs, or CAP_SYS_ADMIN."""
    code = libc.Buffer(program)
    fprog = struct.pack("@HP", len(program) // 8, code.address)
    try:
        libc.call("prctl", "PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0)
    except KernelError as error:
        # A kernel that has no filters.
        if error.errno != errno.EINVAL:
            raise
