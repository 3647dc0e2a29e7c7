"""The file by which processes share memory and CPUs, with real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_nsbox.kernel.claims import Claims
from pytest_nsbox.policy.errors import KernelError

BUDGET = (100.0, 2.0)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "budget")


class Other:
    """A process that has done what it was told, and waits."""

    def __init__(self, act: Callable[[], object]) -> None:
        ready, told = os.pipe()
        waits, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._go)
                act()
                os.write(told, b"r")
                os.read(waits, 1)
            finally:
                os._exit(0)
        for fd in (told, waits):
            os.close(fd)
        assert os.read(ready, 1) == b"r"
        os.close(ready)

    def end(self, number: int = 0) -> None:
        if number:
            os.kill(self.pid, number)
        os.close(self._go)
        os.waitpid(self.pid, 0)


def claiming(path: str, mem: int, cpu: float) -> Callable[[], object]:
    return lambda: Claims(path).claim(mem, cpu, BUDGET, None)


def test_claims_of_two_processes_stay_within_the_budget(path: str):
    other = Other(claiming(path, 60, 0.5))
    ours = Claims(path)
    assert not ours.claim(41, 0.5, BUDGET, None)
    assert not ours.claim(1, 1.6, BUDGET, None)
    assert ours.claim(40, 1.5, BUDGET, None)
    # Memory that is not asked for may be overdrawn by others.
    assert ours.claim(0, 1.5, (0.0, 2.0), None)
    other.end()
    ours.close()
    assert not os.path.exists(path)


def test_who_was_killed_claims_nothing(path: str):
    other = Other(claiming(path, 100, 2))
    ours = Claims(path)
    assert not ours.claim(1, 0, BUDGET, None)
    other.end(signal.SIGKILL)
    assert ours.claim(100, 2, BUDGET, None)
    ours.close()
    assert not os.path.exists(path)


def test_a_claim_waits_until_there_is_room(path: str):
    other = Other(claiming(path, 100, 2))
    ours = Claims(path)
    waits = []

    def wait() -> None:
        waits.append(1)
        if len(waits) == 3:
            other.end()

    assert ours.claim(50, 1, BUDGET, wait)
    assert len(waits) == 3
    ours.close()


def test_a_fork_has_no_claim_and_cannot_end_that_of_its_parent(path: str):
    ours = Claims(path)
    assert ours.claim(100, 0, BUDGET, None)
    Other(ours.close_in_child).end()
    another = Other(claiming(path, 1, 0))  # refused, or the sum would be more now
    assert not ours.claim(101, 0, BUDGET, None)
    assert ours.claim(100, 0, BUDGET, None)
    another.end()
    ours.close()
    assert not os.path.exists(path)


def test_a_file_that_is_removed_while_it_is_opened_is_made_again(path: str, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def gone_once(self: Claims, found: os.stat_result) -> bool:
        seen.append(found.st_ino)
        if len(seen) == 1:
            os.unlink(path)
        return original(self, found)

    original = Claims._is_there
    monkeypatch.setattr(Claims, "_is_there", gone_once)
    ours = Claims(path)
    assert len(seen) == 2
    ours.close()
    assert not os.path.exists(path)


@pytest.mark.parametrize("make", [os.mkdir, lambda path: os.symlink("/dev/null", path), os.mkfifo])
def test_what_is_no_file_of_the_user_is_refused(path: str, make: Callable[[str], object]):
    make(path)
    with pytest.raises(KernelError, match=f"open {path}: "):
        Claims(path)
