"""The filter of system calls that tests have. Source: seccomp(2), Documentation/userspace-api/seccomp_filter.rst of the
kernel, bpf(4); keyctl(2), whose keys have no namespace.

A filter stays for the life of the process and of its children. Calls that it cannot refuse cost nothing: since Linux
5.11 the kernel finds out which those are when the filter is set, which takes it 40 us.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from pytest_nsbox.kernel import libc
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Instruction: TypeAlias = tuple[int, int, int, int]

_SET_MODE_FILTER = 1
# Without it, kernels before 5.16 make every program slower that has a filter.
_FLAG_SPEC_ALLOW = 1 << 2
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000
_X32 = 0x40000000

# machine: (number of seccomp(2), architecture (AUDIT_ARCH_*) and numbers of its programs, those of its
# 32-bit programs). Numbers are of ioctl, and of the first of add_key, request_key and keyctl, which follow each
# other everywhere.
_MACHINES = {
    "x86_64": (317, 0xC000003E, ((16, 248), (_X32 | 514, _X32 | 248)), (54, 286)),
    "aarch64": (277, 0xC00000B7, ((29, 217),), (54, 309)),
    "riscv64": (277, 0xC00000F3, ((29, 217),), (29, 217)),
    "loongarch64": (277, 0xC0000102, ((29, 217),), (29, 217)),
    "ppc64le": (358, 0xC0000015, ((54, 269),), (54, 269)),
    "s390x": (348, 0x80000016, ((54, 278),), (54, 278)),
}

_TIOCSTI = 0x5412
_TIOCLINUX = 0x541C

# Offsets in struct seccomp_data; of an argument the kernel looks at the lower half only.
_NUMBER, _ARCHITECTURE, _ARGUMENT_1 = 0, 4, 24 + (0 if sys.byteorder == "little" else 4)

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_GREATER, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06


class Filter:
    """What processes of tests are refused: made once, set in each of them.

    typing  to put input into a terminal: EIO, which sysctl dev.tty.legacy_tiocsti=0 makes of it
    keys    add_key(2), request_key(2) and keyctl(2): ENOSYS, as on a kernel that has no keys

    Refuses nothing on an architecture whose system calls it does not know.
    """

    def __init__(self, *, typing: bool, keys: bool) -> None:
        # A 32-bit Python's own layout is not written here.
        machine = _MACHINES.get(os.uname().machine) if sys.maxsize > 1 << 32 else None
        if machine is None or not (typing or keys):
            self._number = 0
            return
        self._number, architecture, numbers, narrow = machine
        own = [instruction for pair in numbers for instruction in _refuse(*pair, typing=typing, keys=keys)]
        # Jumps count the instructions that they pass over: (code, if so, if not, value).
        program = (
            (_LOAD, 0, 0, _ARCHITECTURE),
            (_JUMP_IF_EQUAL, 0, len(own) + 1, architecture),
            *own,
            (_RETURN, 0, 0, _RET_ALLOW),
            *_refuse(*narrow, typing=typing, keys=keys),
            (_RETURN, 0, 0, _RET_ALLOW),
        )
        self._code = libc.Buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
        self._fprog = struct.pack("@HP", len(program), self._code.address)

    def set(self) -> None:
        """Filter the calls of this process and of all that it starts, for good. Raises KernelError.

        Needs CAP_SYS_ADMIN in the user namespace; programs that are started may gain rights as ever. Does nothing on a
        kernel that has no filters.
        """
        if not self._number:
            return
        try:
            libc.syscall("seccomp", "", self._number, _SET_MODE_FILTER, _FLAG_SPEC_ALLOW, self._fprog)
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise


def _refuse(ioctl: int, first_of_keys: int, *, typing: bool, keys: bool) -> list[Instruction]:
    """Look at one call's number; go on behind the last instruction with what is not refused."""
    code: list[Instruction] = [(_LOAD, 0, 0, _NUMBER)]
    if keys:
        code += [
            (_JUMP_IF_AT_LEAST, 0, 2, first_of_keys),
            (_JUMP_IF_GREATER, 1, 0, first_of_keys + 2),
            (_RETURN, 0, 0, _RET_ERRNO | errno.ENOSYS),
        ]
    if typing:
        code += [
            (_JUMP_IF_EQUAL, 0, 4, ioctl),
            (_LOAD, 0, 0, _ARGUMENT_1),
            (_JUMP_IF_EQUAL, 1, 0, _TIOCSTI),
            (_JUMP_IF_EQUAL, 0, 1, _TIOCLINUX),
            (_RETURN, 0, 0, _RET_ERRNO | errno.EIO),
        ]
    return code
