"""Filters of system calls, each set in a fork."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable

import pytest

from pytest_nsbox.kernel import process, seccomp
from pytest_nsbox.policy import syscalls
from tests.escapes.attempt import in_a_process
from tests.escapes.system import NUMBERS

pytestmark = pytest.mark.needs("root")


def on_a_terminal(function: Callable[[], object]) -> str:
    """Call `function` in a session with a terminal of its own; return what it returned, as text."""
    reader, writer = os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            try:
                text = repr(function())
            except BaseException as error:  # noqa: BLE001 - a fork of a test must not run on in it
                text = f"broken: {error!r}"
            os.write(writer, text.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    os.close(terminal)
    os.waitpid(pid, 0)
    return text


def typed() -> int:
    """Type into the terminal; the number of the error, or 0."""
    try:
        fcntl.ioctl(0, termios.TIOCSTI, b"X")
    except OSError as error:
        return error.errno or -1
    return 0


def test_typing_into_the_terminal_is_refused_and_all_else_is_not():
    def play() -> object:
        seccomp.Filter(typing=True, keys=True).set()
        return typed(), os.get_terminal_size(0).lines >= 0, len(termios.tcgetattr(0))

    assert on_a_terminal(typed) in ("0", str(errno.EIO)), "it does not even work without the filter"
    assert on_a_terminal(play) == f"({errno.EIO}, True, 7)"


def test_programs_that_a_filtered_process_starts_are_filtered_and_may_still_gain_rights():
    def play() -> object:
        seccomp.Filter(typing=True, keys=True).set()
        code = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSTI, b'X')"
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, stdin=0)
        with open("/proc/self/status", encoding="ascii") as file:
            status = file.read()
        return done.stderr.strip().rpartition("\n")[2], "NoNewPrivs:\t0" in status

    assert on_a_terminal(play) == "('OSError: [Errno 5] Input/output error', True)"


def test_a_process_without_a_terminal_has_nothing_to_type_into():
    def play() -> object:
        has = process.has_terminal_to_type_into()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os._exit(int(process.has_terminal_to_type_into()))
        return has, os.waitpid(pid, 0)[1]

    assert on_a_terminal(play) in ("(True, 0)", "(False, 0)")


KEY_CALLS = ("add_key", "request_key", "keyctl")


def errors_of_key_calls(column: int) -> list[int]:
    """Of calls with arguments that no kernel takes, by programs of 64 bits."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    for name in KEY_CALLS:
        number = syscalls.NUMBERS[name][column]
        assert number is not None
        ctypes.set_errno(0)
        assert libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(2**63 - 1)] * 5) == -1
        found.append(ctypes.get_errno())
    return found


def test_keys_are_refused_as_on_a_kernel_without_and_only_if_asked():
    column = 0 if os.uname().machine == "x86_64" else 2

    def play(typing: bool, keys: bool) -> str:
        seccomp.Filter(typing=typing, keys=keys).set()
        return repr(errors_of_key_calls(column))

    refused = repr([errno.ENOSYS] * 3)
    assert in_a_process(lambda: play(typing=False, keys=True)) == refused
    assert in_a_process(lambda: play(typing=True, keys=True)) == refused
    assert in_a_process(lambda: play(typing=True, keys=False)) == repr(errors_of_key_calls(column))
    assert in_a_process(lambda: play(typing=False, keys=False)) == repr(errors_of_key_calls(column))


def test_the_neighbours_of_refused_calls_are_not():
    """Whatever they say to nonsense, they say it with the filter too."""

    def neighbours() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        found = []
        for number in (NUMBERS["keyctl"] - 3, NUMBERS["keyctl"] + 1):
            ctypes.set_errno(0)
            libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(2**63 - 1)] * 5)
            found.append(ctypes.get_errno())
        return repr(found)

    def play() -> str:
        seccomp.Filter(typing=True, keys=True).set()
        return neighbours()

    assert in_a_process(play) == in_a_process(neighbours)


@pytest.mark.needs("32-bit system calls")
def test_callers_of_32_bits_are_refused_keys_too():
    def number_32(number: int) -> int:
        # MAP_32BIT: mov eax, number; int 0x80; ret
        page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)
        page[:8] = b"\xb8" + struct.pack("<I", number) + b"\xcd\x80\xc3"
        start = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return -int(ctypes.CFUNCTYPE(ctypes.c_int)(start)())

    def play() -> str:
        seccomp.Filter(typing=True, keys=True).set()
        # 20 is getpid there; and i386's numbers for keys are other calls here, which stay.
        assert number_32(20) == -os.getpid()
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            server.accept()[0].close()  # accept4 is 288
        return repr([number_32(syscalls.NUMBERS[name][1] or 0) for name in KEY_CALLS])

    assert in_a_process(play) == repr([errno.ENOSYS] * 3)
