"""The seccomp door: have system calls of processes answered by another one. Source: seccomp(2), seccomp_unotify(2).

`listen` is called in the process that will be a box's; `Listener` is the other end, in the warden.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import sys

from pytest_nsbox.kernel import libc
from pytest_nsbox.policy.errors import KernelError

_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 1 << 3
_RET_USER_NOTIF = 0x7FC00000
_RET_ALLOW = 0x7FFF0000

# BPF: load a word of struct seccomp_data, jump if equal, return. Offsets: nr 0, arch 4.
_LD_W_ABS = 0x20
_JEQ_K = 0x15
_RET_K = 0x06

# struct seccomp_notif: id, pid, flags, nr, arch, instruction pointer, six arguments
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
# struct seccomp_notif_resp: id, val, error, flags
_RESPONSE = struct.Struct("=QqiI")


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("!") << 8 | number


_WRITE, _READ_WRITE = 1, 3
_NOTIF_RECV = _ioctl(_READ_WRITE, 0, _NOTIFICATION.size)
_NOTIF_SEND = _ioctl(_READ_WRITE, 1, _RESPONSE.size)
_NOTIF_ID_VALID = _ioctl(_WRITE, 2, 8)

_X32 = 0x40000000
# machine: (number of seccomp(2), {architecture: number of sysinfo(2)}), the native architecture first (linux/audit.h).
_64BIT, _LE = 0x80000000, 0x40000000
AUDIT_X86_64, AUDIT_I386 = 62 | _64BIT | _LE, 3 | _LE
AUDIT_AARCH64, AUDIT_ARM = 183 | _64BIT | _LE, 40 | _LE
_MACHINES: dict[str, tuple[int, dict[int, tuple[int, ...]]]] = {
    "x86_64": (317, {AUDIT_X86_64: (99, 99 | _X32), AUDIT_I386: (116,)}),
    "aarch64": (277, {AUDIT_AARCH64: (179,), AUDIT_ARM: (116,)}),
    "riscv64": (277, {243 | _64BIT | _LE: (179,)}),
    "loongarch64": (277, {258 | _64BIT | _LE: (179,)}),
    "ppc64le": (358, {21 | _64BIT | _LE: (116,)}),
    "s390x": (348, {22 | _64BIT: (116,)}),
}
# Architectures whose programs have words of 32 bits.
NARROW = frozenset({AUDIT_I386, AUDIT_ARM})


def listen() -> int:
    """Have sysinfo(2), called by this process or any that it will start, answered by who holds the descriptor that is
    returned.

    32-bit programs of the machine's family are answered too. Raises KernelError: EBUSY where the same was done already,
    around us; ENOSYS for a machine that is not known here.
    """
    # A 32-bit Python's own layout is not written here.
    machine = _MACHINES.get(os.uname().machine) if sys.maxsize > 1 << 32 else None
    if machine is None:
        raise KernelError("seccomp", f"new listener on {os.uname().machine}", errno.ENOSYS)
    number, callers = machine
    code = _program(callers)
    filters = libc.Buffer(code)
    # struct sock_fprog: length in instructions, (padding), pointer
    program = struct.pack("@HP", len(code) // 8, filters.address)
    return libc.syscall("seccomp", "new listener", number, _SET_MODE_FILTER, _FLAG_NEW_LISTENER, program)


def _program(callers: dict[int, tuple[int, ...]]) -> bytes:
    """The filter: sysinfo of each architecture is notified, everything else allowed."""
    code: list[tuple[int, int, int, int]] = []
    for arch, numbers in callers.items():
        block = [(_LD_W_ABS, 0, 0, 0)]
        for index, number in enumerate(numbers):
            # To this block's last instruction but one, or on to the next.
            block.append((_JEQ_K, len(numbers) - index, 0, number))
        block += [(_RET_K, 0, 0, _RET_ALLOW), (_RET_K, 0, 0, _RET_USER_NOTIF)]
        code += [(_LD_W_ABS, 0, 0, 4), (_JEQ_K, 0, len(block), arch), *block]
    code.append((_RET_K, 0, 0, _RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class Listener:
    """The answering end, `fd`. Readable when somebody waits for an answer; hung up when nobody can ask any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def receive(self) -> tuple[int, int, int, int] | None:
        """Return (id, process, architecture, first argument) of the next call; None if no caller waits any more.

        Never waits. Raises KernelError (EPIPE) when nobody is left who could ask.
        """
        waiting = select.poll()
        waiting.register(self.fd, select.POLLIN)
        found = waiting.poll(0)
        if not found:
            return None
        # Older kernels would have us wait for ever then.
        if not found[0][1] & select.POLLIN:
            raise KernelError("seccomp receive", "", errno.EPIPE)
        buffer = libc.Buffer(bytes(_NOTIFICATION.size))
        try:
            libc.call("ioctl", "seccomp receive", self.fd, _NOTIF_RECV, buffer.address)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        number, pid, _, _, arch, _, first, *_ = _NOTIFICATION.unpack(buffer.content())
        return number, pid, arch, first

    def answer(self, number: int, pid: int, address: int, content: bytes) -> None:
        """Write `content` to `address` of the caller, and let its call return 0; EFAULT if there is no such place."""
        try:
            memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        failure = 0
        try:
            # Only now: as long as the id is valid, what we opened is the caller's, and not of a new process of its pid.
            if not self._is_valid(number):
                return
            if os.pwrite(memory, content, address) != len(content):
                failure = errno.EFAULT
        except (OSError, OverflowError):
            failure = errno.EFAULT
        finally:
            os.close(memory)
        self._send(number, -failure)

    def _is_valid(self, number: int) -> bool:
        try:
            libc.call("ioctl", "seccomp check", self.fd, _NOTIF_ID_VALID, struct.pack("=Q", number))
        except KernelError:
            return False
        return True

    def _send(self, number: int, error: int) -> None:
        try:
            libc.call("ioctl", "seccomp answer", self.fd, _NOTIF_SEND, _RESPONSE.pack(number, 0, error, 0))
        except KernelError as failure:
            # The caller was killed meanwhile.
            if failure.errno not in (errno.ENOENT, errno.EINPROGRESS):
                raise
