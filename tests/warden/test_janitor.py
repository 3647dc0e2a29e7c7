"""The process that takes away what ended boxes leave."""

from __future__ import annotations

import errno
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.warden.client import Warden
from pytest_nsbox.warden.doors import Doors
from pytest_nsbox.warden.janitor import Janitor
from tests.warden.boxes import run, started

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")


class Loop:
    """What a warden's loop does with descriptors."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        self.watched[fd] = action

    def forget(self, fd: int) -> None:
        del self.watched[fd]
        os.close(fd)

    def turn(self) -> None:
        ready, _, _ = select.select(list(self.watched), (), (), 10)
        assert ready
        for fd in ready:
            self.watched[fd]()


def janitors(warden: Warden) -> list[int]:
    pids = map(int, Path(f"/proc/{warden.pid}/task/{warden.pid}/children").read_text().split())
    found = []
    for pid in pids:
        with suppress(OSError):  # a box's init that has ended since
            if Path(f"/proc/{pid}/comm").read_text() == "nsbox-janitor\n":
                found.append(pid)
    return found


def use(warden: Warden, boxes: int) -> None:
    for number in range(boxes):
        # Every other one leaves a tree that no other box can have.
        run(warden, change if number % 2 else os.getpid, mem=64 << 20)


def change() -> int:
    return Path("/new").write_text("x")


def test_it_comes_with_the_first_boxes_and_goes_with_the_warden() -> None:
    with started() as warden:
        use(warden, 2)
        assert janitors(warden) == []
        use(warden, 10)
        (janitor,) = janitors(warden)
        # Nothing of the warden's: it would keep the client from seeing the warden's end, and inits from ending. What
        # comes with an order is closed when that is done.
        deadline = time.monotonic() + 10
        while len(fds := os.listdir(f"/proc/{janitor}/fd")) != 4:
            assert time.monotonic() < deadline, fds
    assert not os.path.exists(f"/proc/{janitor}")


def test_the_warden_does_what_a_dead_one_cannot() -> None:
    with started() as warden:
        use(warden, 12)
        (janitor,) = janitors(warden)
        os.kill(janitor, signal.SIGKILL)
        use(warden, 12)
        assert janitors(warden) == []


@pytest.mark.parametrize("ends", [True, False], ids=["killed", "stopped"])
def test_what_it_was_asked_is_done_by_the_warden_if_it_does_not_answer(ends: bool) -> None:
    loop, told, instead = Loop(), list[str](), list[int]()
    janitor = Janitor(Doors(), loop.watch, loop.forget)
    janitor.patience = 0.1
    janitor.start()
    os.kill(janitor.pid, signal.SIGSTOP)
    for number in range(20):
        janitor.ask("groups", [], (), told.append, lambda number=number: instead.append(number))  # type: ignore[misc]
    if ends:
        os.kill(janitor.pid, signal.SIGKILL)
    janitor.close()
    janitor.reap()
    assert sorted(instead) == list(range(20))
    assert told == []
    assert loop.watched == {}


def test_what_goes_wrong_in_it_is_told() -> None:
    class Broken(Doors):
        @staticmethod
        def forget_lookups(mount: int, target: str = "") -> None:
            assert os.fstat(mount).st_ino == os.stat("/").st_ino
            raise KernelError("injected", target, errno.EIO)

    loop, told = Loop(), list[str]()
    janitor = Janitor(Broken(), loop.watch, loop.forget)
    janitor.start()
    fd = os.open("/", os.O_PATH)
    try:
        janitor.ask("renew", [1, "root/t1"], [fd], told.append, lambda: told.append("instead"))
        loop.turn()
        janitor.ask("renew", [2, "root/t2"], [fd], told.append, lambda: told.append("instead"))
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "file").write_text("in the way")
            janitor.ask("tree", [directory, "/nowhere", False, False], [], told.append, lambda: told.append("instead"))
            janitor.close()
            janitor.reap()
    finally:
        os.close(fd)
    first, second, third = told
    assert "injected root/t1" in first
    assert second == "root/t2: 1 descriptors came of 2"
    assert "Directory not empty" in third
    assert loop.watched == {}
