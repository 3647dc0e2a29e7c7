"""Programs of system calls, which a new process runs without a copy of our memory.

A fork copies the tables of our memory, and then, as both sides write, the pages: for an init that makes fifty system
calls and waits, that is dearer than its namespaces, and the warden pays as well. A process that shares our memory
copies nothing, but it cannot run Python in it. So the calls are written down beforehand, as rows of numbers, and
`CLONE`, 76 bytes of machine code, makes them one after the other without touching a stack. The last row executes
`WAIT`, a program of 114 bytes in a file without a name, and what was shared is shared no more. So does posix_spawn(3),
and runc executes itself from such a file. The sources of both pieces are beside the tests, which assemble them.

For x86-64 alone. Source: clone(2), execveat(2), memfd_create(2), elf(5), linux/kernel/fork.c.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import struct
import sys

from pytest_nsbox.kernel import libc, process
from pytest_nsbox.kernel.mount import AT_EMPTY_PATH
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    # A number; bytes, by the address of a copy with a null behind; a Slot; or a null-terminated vector of bytes.
    Argument: TypeAlias = "int | bytes | Slot | tuple[bytes, ...]"

CLONE = bytes.fromhex(
    "4989d0b8b30100000f054885c07401c34c89c3488b03488b7b08488b7310488b53184c8b53204c8b43284c8b4b300f05"
    "48894338483b43407c064883c348ebd3bf01000000b8e70000000f05"
)
WAIT = bytes.fromhex(
    "bf0f000000488d355a000000b89d0000000f05bf01000000be09000000b89d0000000f05bf0400000031f6b89d000000"
    "0f05bf03000000488d3533000000ba01000000b8010000000f05bf03000000488d7424f8ba0100000031c00f0531ffb8"
    "e70000000f056e73626f782d696e69740072"
)

# System calls whose numbers are the machine's own.
SYS_READ, SYS_CLOSE, SYS_RT_SIGACTION, SYS_IOCTL, SYS_DUP2, SYS_SOCKET = 0, 3, 13, 16, 33, 41
SYS_CHDIR, SYS_FCHDIR, SYS_SETGROUPS, SYS_SETRESUID, SYS_SETRESGID, SYS_PIVOT_ROOT = 80, 81, 116, 117, 119, 155
SYS_UMOUNT2, SYS_SETHOSTNAME, SYS_DUP3, SYS_EXECVEAT = 166, 170, 292, 322

LINE = 3  # the descriptor on which `WAIT` says READY, and that it reads until it ends
READY = b"r"
LONGEST_TEXT = 4096  # bytes of a `Slot`'s text with its null: a path's

_EXECUTABLE = 4  # the descriptor of `WAIT`
_OUT_OF_THE_WAY = 100
_CLONE_VM = 0x00000100
_CLONE_CLEAR_SIGHAND = 1 << 32
_MFD_CLOEXEC, _MFD_EXEC = 0x1, 0x10
_WORD = 8  # bytes
_RESULT, _LEAST, _ROW = 7, 8, 9  # words


class Slot(str):
    """The name of something that is known only when the program is started: a number, or a text."""

    __slots__ = ()


class Program:
    """System calls in order, to be made in a process without descriptors but LINE. A call that returns less than its
    `least` is the last one.

    line, executable  Slots: the descriptors in the process that starts it
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []  # for an error's text
        self.rows: list[tuple[int, tuple[Argument, ...], int]] = []
        self._used = {LINE, _EXECUTABLE}
        self.add("dup2", "line", SYS_DUP2, Slot("line"), LINE)
        self.add("dup3", "program", SYS_DUP3, Slot("executable"), _EXECUTABLE, os.O_CLOEXEC)
        self.add("close_range", "0-2", libc.SYS_CLOSE_RANGE, 0, 2, 0)
        self.add("close_range", "5-", libc.SYS_CLOSE_RANGE, 5, 0xFFFFFFFF, 0)

    def add(self, call: str, target: str, number: int, *arguments: Argument, least: int = 0) -> None:
        """Make system call `number`; `call` and `target` are for an error's text."""
        self.calls.append((call, target))
        self.rows.append((number, arguments, least))

    def open(self, call: str, target: str, number: int, *arguments: Argument) -> int:
        """Make a system call that returns a descriptor; return its number, which will be the lowest that is free."""
        fd = next(fd for fd in itertools.count() if fd not in self._used)
        self._used.add(fd)
        self.add(call, target, number, *arguments, least=fd)
        return fd

    def close(self, fd: int) -> None:
        """Close a descriptor that `open` returned. What is left open the kernel closes in the end."""
        self._used.discard(fd)
        self.add("close", str(fd), SYS_CLOSE, fd)

    def wait(self) -> None:
        """Become the program that waits."""
        self.add("execveat", "nsbox-init", SYS_EXECVEAT, _EXECUTABLE, b"", (b"nsbox-init",), (), AT_EMPTY_PATH)


class Loaded:
    """A program where a process can run it: one after the other, since it keeps the results."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values: Mapping[str, int | str] = {}
        self._slots: dict[str, list[int]] = {}
        image = _Image(len(program.rows) * _ROW * _WORD)
        for index, (number, arguments, least) in enumerate(program.rows):
            row = index * _ROW * _WORD
            for word, value in ((0, number), (_RESULT, least), (_LEAST, least)):
                image.put(row + word * _WORD, value)
            for word, argument in enumerate(arguments, 1):
                place = row + word * _WORD
                if isinstance(argument, Slot):
                    self._slots.setdefault(argument, []).append(place)
                else:
                    image.put(place, argument)
        # Where the texts of slots go.
        self._texts = {name: image.append(bytes(LONGEST_TEXT)) for name in self._slots}
        self._memory = libc.Buffer(bytes(image.content))
        for place in image.addresses:
            offset = int.from_bytes(self._memory.part(place, _WORD), sys.byteorder)
            self._memory.put(place, _packed(self._memory.address + offset))

    @property
    def address(self) -> int:
        """Where its rows are."""
        return self._memory.address

    def fill(self, values: Mapping[str, int | str]) -> None:
        """Say what is in the slots. Raises KernelError for a text that is too long."""
        self._values = values
        for name, places in self._slots.items():
            value = values[name]
            if isinstance(value, str):
                text = os.fsencode(value) + b"\0"
                if len(text) > LONGEST_TEXT:
                    raise KernelError("open_tree", value, errno.ENAMETOOLONG)
                self._memory.put(self._texts[name], text)
                value = self._memory.address + self._texts[name]
            for place in places:
                self._memory.put(place, _packed(value))

    def refusal(self) -> KernelError | None:
        """Return what the kernel refused, once the process has ended."""
        for index, (call, target) in enumerate(self._program.calls):
            result, least = struct.unpack("=2q", self._memory.part((index * _ROW + _RESULT) * _WORD, 2 * _WORD))
            if result < least:
                told = str(self._values[target]) if isinstance(target, Slot) else target
                return KernelError(call, told, -result if result < 0 else errno.EPIPE)
        return None


class _Image:
    """Memory before it has an address: rows, and what they point to."""

    def __init__(self, rows: int) -> None:
        self.content = bytearray(rows)
        # Places of words that are offsets, and are to become addresses.
        self.addresses: list[int] = []

    def put(self, place: int, argument: int | bytes | tuple[bytes, ...]) -> None:
        """Put `argument`, or the offset of what it is, into the word at `place`."""
        vector: tuple[bytes, ...] = ()
        if isinstance(argument, int):
            word = argument
        elif isinstance(argument, bytes):
            word = self.append(argument + b"\0")
        else:
            vector = argument
            word = self.append(bytes((len(vector) + 1) * _WORD))
        if not isinstance(argument, int):
            self.addresses.append(place)
        self.content[place : place + _WORD] = _packed(word)
        for index, each in enumerate(vector):
            self.put(word + index * _WORD, each)

    def append(self, content: bytes) -> int:
        """Return the offset of a copy."""
        self.content += bytes(-len(self.content) % _WORD)
        offset = len(self.content)
        self.content += content
        return offset


def _packed(word: int) -> bytes:
    return word.to_bytes(_WORD, sys.byteorder, signed=True)


class Starter:
    """Starts processes that run a program. Raises KernelError where that is impossible."""

    def __init__(self) -> None:
        if os.uname().machine != "x86_64" or sys.maxsize < 1 << 32:
            raise KernelError("clone3", "a program of system calls", errno.ENOSYS)
        self._clone = libc.machine_code(CLONE)
        self._executable = _make_executable()

    def start(self, flags: int, loaded: Loaded, values: Mapping[str, int | str]) -> tuple[int, int]:
        """Start `loaded` in new namespaces of the kinds in `flags`; return (pid, pidfd). What is loaded must stay until
        the program that waits has answered, or the process has ended.

        values  what is in its slots; `line` among them
        """
        loaded.fill({**values, "executable": self._executable})
        pidfd = libc.Buffer(bytes(4))
        # No handler of ours can run there.
        flags |= process.CLONE_PIDFD | _CLONE_VM | _CLONE_CLEAR_SIGHAND
        arguments = process.clone_arguments(flags, pidfd.address, signal.SIGCHLD)
        pid = self._clone(arguments, len(arguments), loaded.address)
        if pid < 0:
            raise KernelError("clone3", hex(flags), -pid)
        return pid, pidfd.word()

    def close(self) -> None:
        """Close the executable."""
        os.close(self._executable)


def _make_executable() -> int:
    """Return a descriptor of `WAIT` as an executable."""
    name = "nsbox-init"
    try:
        try:
            fd = os.memfd_create(name, _MFD_CLOEXEC | _MFD_EXEC)
        except OSError as error:
            # Before Linux 6.3.
            if error.errno != errno.EINVAL:
                raise
            fd = os.memfd_create(name, _MFD_CLOEXEC)
        try:
            os.write(fd, _elf())
            # Who cannot read what a process executes cannot look into it either: the process's memory belongs to the
            # user namespace that owns the file, ours, and not to the box's.
            os.fchmod(fd, 0o111)
            # Not one of those that a program moves its own to.
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError("memfd_create", name, error.errno or 0) from None


def _elf() -> bytes:
    """Return `WAIT` as a file: a header, one segment, and what it holds."""
    base, headers = 0x400000, 64 + 56
    end = headers + len(WAIT)
    # e_ident, e_type EXEC, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum, …
    ident = b"\x7fELF\x02\x01\x01"
    header = struct.pack("<16s2HI3QI6H", ident, 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    # p_type LOAD, p_flags readable and executable, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    segment = struct.pack("<2I6Q", 1, 5, 0, base, base, end, end, 4096)
    return header + segment + WAIT
