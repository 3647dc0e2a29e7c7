"""The C library and raw system calls, as an attacker has them: OSError on failure, and no check before the kernel's."""

from __future__ import annotations

import ctypes
import os
import platform

C = ctypes.CDLL(None, use_errno=True)
C.syscall.restype = ctypes.c_long

# Those without a wrapper in every C library. Younger ones have one number everywhere (but on alpha).
_NUMBERS = {
    "x86_64": {
        "acct": 163, "add_key": 248, "bpf": 321, "delete_module": 176, "finit_module": 313, "init_module": 175,
        "kexec_load": 246, "keyctl": 250, "perf_event_open": 298, "pivot_root": 155,
    },
    "aarch64": {
        "acct": 89, "add_key": 217, "bpf": 280, "delete_module": 106, "finit_module": 273, "init_module": 105,
        "kexec_load": 104, "keyctl": 219, "perf_event_open": 241, "pivot_root": 41,
    },
}  # fmt: skip
_EVERYWHERE = {
    "pidfd_send_signal": 424, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
NUMBERS = {**_EVERYWHERE, **_NUMBERS.get(platform.machine(), {})}

NEWNS, NEWCGROUP, NEWUSER, NEWPID, NEWNET = 0x20000, 0x2000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD = -100


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call the C function `name`."""
    return _checked(name, getattr(C, name)(*map(_argument, arguments)))


def syscall(name: str, *arguments: int | bytes | None) -> int:
    """Make the system call `name`."""
    return _checked(name, C.syscall(ctypes.c_long(NUMBERS[name]), *map(_argument, arguments)))


def _argument(value: int | bytes | None) -> object:
    # Without this, an int is passed as 32 bits: pointers and (unsigned) -1 would be cut.
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(name: str, result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def address_of(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str | None = None) -> None:
    call("mount", source.encode(), target.encode(), fstype.encode(), flags, None if data is None else data.encode())


def umount(target: str) -> None:
    call("umount2", target.encode(), MNT_DETACH)


def unshare(flags: int) -> None:
    call("unshare", flags)


def setns(fd: int, kind: int = 0) -> None:
    call("setns", fd, kind)


def write_file(path: str, text: str) -> None:
    """One write, to a file that must be there."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_back(path: str) -> None:
    """Write to a setting what it says already ("[always] never" has its choice in brackets)."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    write_file(path, text.partition("[")[2].partition("]")[0] or text)


def open_to_write(path: str) -> None:
    """Be let in, and write nothing."""
    os.close(os.open(path, os.O_WRONLY))
