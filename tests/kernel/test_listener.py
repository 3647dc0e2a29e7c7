"""System calls answered by another process, on the real kernel."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.kernel import listener, timer
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.policy.sysinfo import SysInfo
from tests.warden.boxes import in_a_process

pytestmark = pytest.mark.needs("root", "seccomp listener")

INFO = SysInfo(7, (1, 2, 3), 5 << 30, 4 << 30, 3, 2, 1 << 20, 1 << 19, 9)


def answer_all(fd: int) -> list[int]:
    """Answer until nobody can ask any more; return who asked, by kind."""
    asked = []
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    answerer = listener.Listener(fd)
    while poll.poll(10_000):
        try:
            call = answerer.receive()
        except KernelError as error:
            assert error.errno == errno.EPIPE
            break
        if call is not None:
            asked.append(call[2])
            answerer.answer(call[0], call[1], call[3], INFO.pack(narrow=call[2] in listener.NARROW))
    return asked


@contextmanager
def answering(function: Callable[[], Any]) -> Iterator[list[int]]:
    """Run `function` in a process that listens, and answer. Yields the list of who asked, filled at the end."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            fd = listener.listen()
            socket.send_fds(theirs, [b"l"], [fd])
            os.close(fd)
            theirs.close()
            function()
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    # Older kernels say that nobody can ask any more when the last who could has been waited for.
    statuses: list[int] = []
    waiter = threading.Thread(target=lambda: statuses.append(os.waitpid(pid, 0)[1]))
    waiter.start()
    asked: list[int] = []
    fds: list[int] = []
    try:
        fds = socket.recv_fds(ours, 1, 1)[1]
        yield asked
        asked += answer_all(fds[0])
    finally:
        waiter.join()
        ours.close()
        for fd in fds:
            os.close(fd)
    assert statuses == [0]


def call_sysinfo(address: Any) -> tuple[int, int]:
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.sysinfo(address), ctypes.get_errno()


def test_sysinfo_is_answered_in_this_process_and_in_programs_that_it_starts():
    def asks() -> None:
        place = ctypes.create_string_buffer(112)
        assert call_sysinfo(place)[0] == 0
        assert place.raw == INFO.pack(narrow=False)
        script = "import ctypes; b = ctypes.create_string_buffer(112); ctypes.CDLL(None).sysinfo(b); print(b.raw.hex())"
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert out.strip() == INFO.pack(narrow=False).hex()

    with answering(asks) as asked:
        pass
    assert len(asked) >= 2


def test_a_bad_address_is_the_callers_fault():
    def asks() -> None:
        for address in (0, 8, 2**63 + 4096):
            assert call_sysinfo(ctypes.c_void_p(address)) == (-1, errno.EFAULT)

    with answering(asks):
        pass


@pytest.mark.needs("32-bit system calls")
def test_callers_of_32_bits_get_the_structure_that_they_expect():
    def asks() -> None:
        # MAP_32BIT: the register of the old system call holds half an address.
        page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)
        start = ctypes.addressof(ctypes.c_char.from_buffer(page))
        # push rbx; mov eax, 116; mov ebx, start + 1024; int 0x80; pop rbx; ret
        page[:15] = (
            b"\x53\xb8" + struct.pack("<I", 116) + b"\xbb" + struct.pack("<I", start + 1024) + b"\xcd\x80\x5b\xc3"
        )
        assert ctypes.CFUNCTYPE(ctypes.c_int)(start)() == 0
        assert page[1024 : 1024 + 64] == INFO.pack(narrow=True)

    with answering(asks) as asked:
        pass
    assert asked == [listener.AUDIT_I386]


def test_a_caller_that_is_killed_while_it_waits_does_no_harm():
    reader, writer = os.pipe()

    def asks() -> None:
        pid = os.fork()
        if pid == 0:
            call_sysinfo(ctypes.create_string_buffer(112))
            os._exit(0)
        # Until it sleeps in the call, which nobody answers yet.
        while " S " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.write(writer, b"killed")

    with answering(asks) as asked:
        assert os.read(reader, 6) == b"killed"
    os.close(reader)
    os.close(writer)
    assert asked == []


def test_a_second_listener_is_refused():
    def asks() -> None:
        with pytest.raises(KernelError) as caught:
            listener.listen()
        assert caught.value.errno == errno.EBUSY

    with answering(asks):
        pass


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listener, "_MACHINES", {})
    with pytest.raises(KernelError, match=r"seccomp new listener on \w+: Function not implemented"):
        listener.listen()


def test_a_timer_ticks_and_counts():
    def ticks() -> list[int]:
        slow, fast = timer.open_ticks(60), timer.open_ticks(0.02)
        select.select([fast], [], [], 5)
        found = [timer.count(slow), timer.count(fast) > 0]
        os.close(slow)
        os.close(fast)
        return found

    assert in_a_process(ticks) == [0, True]
