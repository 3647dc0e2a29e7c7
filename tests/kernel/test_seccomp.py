"""Filters of system calls, each set in a fork."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable

import pytest

from pytest_nsbox.kernel import process, seccomp

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
        seccomp.refuse_typing()
        return typed(), os.get_terminal_size(0).lines >= 0, len(termios.tcgetattr(0))

    assert on_a_terminal(typed) in ("0", str(errno.EIO)), "it does not even work without the filter"
    assert on_a_terminal(play) == f"({errno.EIO}, True, 7)"


def test_programs_that_a_filtered_process_starts_are_filtered_and_may_still_gain_rights():
    def play() -> object:
        seccomp.refuse_typing()
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
