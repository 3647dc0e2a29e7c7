"""The only user of ctypes: raw system calls that Python has no function for.

Everything here returns what the kernel returned or raises KernelError. PyDLL keeps the GIL during a call: none of these
calls blocks for long, and no other Python thread may run between the two setns calls around pytest's fork.
"""

from __future__ import annotations

import ctypes
import errno as _errno

from pytest_nsbox.policy.errors import KernelError

_libc = ctypes.PyDLL(None, use_errno=True)

# Numbers of system calls younger than 5.0 are the same on all architectures but alpha.
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_FSPICK = 433
SYS_CLONE3 = 435
SYS_CLOSE_RANGE = 436
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442

# One prototype for all: six machine words are what a system call can take.
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 7

_functions: dict[str, ctypes._NamedFuncPointer] = {}


def syscall(name: str, target: str, number: int, *words: int) -> int:
    """Make system call `number`; `name` and `target` are for the error's text. Source: syscall(2)."""
    result: int = _syscall(number, *words, *(0,) * (6 - len(words)))
    if result == -1:
        raise KernelError(name, target, ctypes.get_errno())
    return result


def call(name: str, target: str, *arguments: int | bytes | None) -> int:
    """Call the C function `name`, which says -1 on failure; None is a null pointer."""
    function = _functions.get(name)
    if function is None:
        try:
            function = _libc[name]
        except AttributeError:
            raise KernelError(name, target, _errno.ENOSYS) from None
        function.restype = ctypes.c_int
        function.argtypes = [_ARGUMENT[type(argument)] for argument in arguments]
        _functions[name] = function
    result: int = function(*arguments)
    if result == -1:
        raise KernelError(name, target, ctypes.get_errno())
    return result


_ARGUMENT: dict[type, type] = {int: ctypes.c_ulong, bytes: ctypes.c_char_p, type(None): ctypes.c_char_p}


class Buffer:
    """Memory that the kernel reads: its address stays valid as long as this object lives."""

    __slots__ = ("_memory", "address", "size")

    def __init__(self, content: bytes) -> None:
        self._memory = ctypes.create_string_buffer(content, len(content) + 1)
        self.address = ctypes.addressof(self._memory)
        self.size = len(content)

    def word(self, offset: int) -> int:
        """Return the native int at `offset`."""
        return ctypes.c_int.from_buffer(self._memory, offset).value


def keep_for_ever(value: object) -> None:
    """Leak a reference, so that `value` is never finalised, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
