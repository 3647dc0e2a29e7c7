"""The filter of system calls and what is left of capabilities, each set in a fork."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable

import pytest

from pytest_nsbox.kernel import call_filter, process
from pytest_nsbox.policy import syscalls
from pytest_nsbox.policy.confinement import ALL, DEFAULT, Confinement
from tests.escapes.attempt import in_a_process

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers are looked up in the table's first column"),
]
LIBC = ctypes.CDLL(None, use_errno=True)
NONSENSE = 2**63 - 1  # what no call takes for an argument, so that none does anything


def result(number: int, *arguments: int) -> str:
    """The error of a call."""
    ctypes.set_errno(0)
    LIBC.syscall(ctypes.c_long(number), *(ctypes.c_ulong(argument) for argument in arguments or (NONSENSE,) * 6))
    return errno.errorcode.get(ctypes.get_errno(), "")


def number_of(name: str) -> int:
    number = syscalls.NUMBERS[name][0]
    assert number is not None
    return number


def confined(capabilities: frozenset[str], function: Callable[[], str]) -> str:
    def play() -> str:
        mask = Confinement(capabilities, filtered=True).mask
        process.bound_capabilities(mask)
        process.keep_capabilities(mask)
        program = call_filter.build(capabilities)
        assert program is not None
        call_filter.install(program)
        return function()

    return in_a_process(play)


def test_every_refused_call_is_refused():
    def play() -> str:
        names = [name for name in syscalls.refused(DEFAULT) if syscalls.NUMBERS[name][0] is not None]
        return repr({name: told for name in names if (told := result(number_of(name))) != "EPERM"})

    assert confined(DEFAULT, play) == "{}"


def test_arguments_decide_where_they_must():
    def play() -> str:
        told = [
            result(number_of("clone"), 0x10000000 | 17, 0, 0, 0, 0),  # CLONE_NEWUSER
            result(number_of("clone3")),
            result(number_of("personality"), 0x40000),  # ADDR_NO_RANDOMIZE
            result(number_of("personality"), 0xFFFFFFFF),
            result(number_of("socket"), 40, 1, 0),
            result(syscalls.LAST + 1),
            result(0x40000000 | 39),  # getpid, as a program of x32 calls it
        ]
        return " ".join(name or "-" for name in told)

    assert confined(DEFAULT, play) == "EPERM ENOSYS EPERM - EPERM ENOSYS ENOSYS"


def test_ordinary_programs_run():
    def play() -> str:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
        return subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout

    status = dict(line.split(":\t", 1) for line in confined(DEFAULT, play).splitlines() if ":\t" in line)
    masks = {status[name] for name in ("CapPrm", "CapEff", "CapBnd")}
    assert masks == {"00000000a80425fb"}
    assert (status["CapInh"], status["NoNewPrivs"], status["Seccomp"]) == ("0" * 16, "1", "2")


def test_what_a_capability_unlocks_reaches_the_kernel():
    # What the kernel says of pointers to nowhere; user-mode Linux has no memory for the names.
    assert confined(ALL, lambda: result(number_of("mount"))) in ("EFAULT", "ENOMEM")
    assert confined(ALL, lambda: result(number_of("keyctl"))) == "EPERM"


def test_another_machine_has_no_filter(monkeypatch: pytest.MonkeyPatch):
    other = os.uname_result(("Linux", "", "", "", "s390x"))
    monkeypatch.setattr(os, "uname", lambda: other)
    assert call_filter.build(DEFAULT) is None
