"""Filters of system calls that tests put round themselves: what a container's manager, or an older kernel, refuses."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pytest_nsbox.kernel import libc

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


def refuse(answers: Mapping[int, int], *, no_new_privs: bool = False) -> None:
    """From now on, here and in all that is started from here, each call number in `answers` ends with that errno.

    no_new_privs  set it first, as who has no CAP_SYS_ADMIN must
    """
    program = [struct.pack("=HBBI", _LOAD, 0, 0, 0)]
    for number, answer in answers.items():
        program.append(struct.pack("=HBBI", _JUMP_IF_EQUAL, 0, 1, number))
        program.append(struct.pack("=HBBI", _RETURN, 0, 0, _ERRNO | answer))
    program.append(struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW))
    code = libc.Buffer(b"".join(program))
    header = libc.Buffer(struct.pack("@HP", len(program), code.address))
    if no_new_privs:
        libc.call("prctl", "PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.call("prctl", "PR_SET_SECCOMP", _PR_SET_SECCOMP, _MODE_FILTER, header.address, 0, 0)
