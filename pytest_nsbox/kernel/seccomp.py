"""Filters of system calls. Source: seccomp(2), Documentation/userspace-api/seccomp_filter.rst of the kernel, bpf(4).

A filter stays for the life of the process and of its children. Calls that it cannot refuse cost nothing: since Linux
5.11 the kernel finds out which those are when the filter is set.
"""

from __future__ import annotations

import errno
import os
import struct

from pytest_nsbox.kernel import libc
from pytest_nsbox.policy.errors import KernelError

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000
_X32 = 0x40000000

# machine: (AUDIT_ARCH_*, number of ioctl, numbers of ioctl under the machine's other names for the same architecture)
_MACHINES = {
    "x86_64": (0xC000003E, 16, _X32 | 514),
    "aarch64": (0xC00000B7, 29, 29),
    "riscv64": (0xC00000F3, 29, 29),
    "loongarch64": (0xC0000102, 29, 29),
    "ppc64le": (0xC0000015, 54, 54),
    "s390x": (0x80000016, 54, 54),
}
# Of every 32-bit architecture that one of those can run.
_IOCTL_32 = 54

_TIOCSTI = 0x5412
_TIOCLINUX = 0x541C

# Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _ARGUMENT_1 = 0, 4, 24

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06


def refuse_typing() -> None:
    """Have the kernel refuse, with EIO, to put input into a terminal: what sysctl dev.tty.legacy_tiocsti=0 does.

    Needs CAP_SYS_ADMIN in the user namespace; programs that are started may gain rights as ever. Does nothing on a
    kernel that has no filters, and on an architecture whose system calls it does not know.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return
    architecture, ioctl, other_ioctl = machine
    little = struct.pack("=H", 1) == b"\1\0"
    # Jumps count the instructions that they pass over: (code, if equal, if not, value).
    program = (
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 2, 0, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 3, 7, _IOCTL_32),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 1, 0, ioctl),
        (_JUMP_IF_EQUAL, 0, 4, other_ioctl),
        # The kernel looks at the lower half only.
        (_LOAD, 0, 0, _ARGUMENT_1 + (0 if little else 4)),
        (_JUMP_IF_EQUAL, 1, 0, _TIOCSTI),
        (_JUMP_IF_EQUAL, 0, 1, _TIOCLINUX),
        (_RETURN, 0, 0, _RET_ERRNO | errno.EIO),
        (_RETURN, 0, 0, _RET_ALLOW),
    )
    code = libc.Buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    fprog = struct.pack("@HP", len(program), code.address)
    try:
        libc.call("prctl", "PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0, 0)
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
