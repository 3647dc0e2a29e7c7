"""The only user of ctypes: raw system calls that Python has no function for.

Everything here returns what the kernel returned or raises KernelError. PyDLL keeps the GIL during a call: none of these
calls blocks for long, and no other Python thread may run between the two setns calls around pytest's fork.
"""

from __future__ import annotations

import ctypes
import errno as _errno
import sys

from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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

# Void pointers take both: a machine word (int), and the address of a bytes object's content, which the kernel only
# reads. (A ctypes array would do too, but each length is a new type: 20 us, and pages for an init to copy.)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 6]

_functions: dict[str, ctypes._NamedFuncPointer] = {}


def syscall(name: str, target: str, number: int, *arguments: int | bytes) -> int:
    """Make system call `number`; `name` and `target` are for the error's text. Source: syscall(2)."""
    result: int = _syscall(number, *arguments, *(0,) * (6 - len(arguments)))
    if result == -1:
        raise KernelError(name, target, ctypes.get_errno())
    return result


def call(name: str, target: str, *arguments: int | bytes | None) -> int:
    """Call the C function `name`, which says -1 on failure; None is a null pointer."""
    function = _functions.get(name)
    if function is None:
        try:
            function = prepare(name, len(arguments))
        except AttributeError:
            raise KernelError(name, target, _errno.ENOSYS) from None
    result: int = function(*arguments)
    if result == -1:
        raise KernelError(name, target, ctypes.get_errno())
    return result


def prepare(name: str, arguments: int) -> ctypes._NamedFuncPointer:
    """Look the C function up that `call` is going to call, with so many arguments. AttributeError: there is none.

    What is called in every test's process is looked up before the fork.
    """
    function = _functions[name] = _libc[name]
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p] * arguments
    return function


class Buffer:
    """Memory that the kernel reads or writes: its `address` is valid as long as this object lives."""

    __slots__ = ("_memory", "_place", "address", "size")

    def __init__(self, content: bytes) -> None:
        self._memory = bytearray(content + b"\0")
        self._place = ctypes.c_char.from_buffer(self._memory)
        self.address = ctypes.addressof(self._place)
        self.size = len(content)

    def word(self, offset: int = 0) -> int:
        """Return the native int at `offset`."""
        return int.from_bytes(self._memory[offset : offset + 4], sys.byteorder, signed=True)

    def content(self) -> bytes:
        """Return what is there now."""
        return bytes(self._memory[: self.size])

    def part(self, offset: int, size: int) -> bytes:
        """Return a part of what is there now."""
        return bytes(self._memory[offset : offset + size])

    def put(self, offset: int, content: bytes) -> None:
        """Replace a part of it."""
        self._memory[offset : offset + len(content)] = content


def machine_code(code: bytes) -> Callable[[bytes, int, int], int]:
    """Return the function long f(void *, size_t, void *) that `code` is, for ever. Raises KernelError where nothing can
    be made executable.
    """
    import mmap

    try:
        memory = mmap.mmap(-1, mmap.PAGESIZE)
    except OSError as error:
        raise KernelError("mmap", "machine code", error.errno or 0) from None
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    call("mprotect", "machine code", address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
    keep_for_ever(memory)
    # It keeps the GIL, as all here do.
    function: Callable[[bytes, int, int], int] = ctypes.PYFUNCTYPE(
        ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    )(address)
    return function


def keep_for_ever(value: object) -> None:
    """Leak a reference: `value` is never finalised, not even when the interpreter ends (for pytest's side)."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
