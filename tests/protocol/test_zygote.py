"""A zygote by itself: what it forks here are processes of this test's."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_nsbox import zygote as zygotes
from pytest_nsbox.kernel.line import line
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.zygote import Service, Zygote

Start = Callable[..., Zygote]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts one whose processes do what `fork` says, and end with the number of their test."""
    begun: list[Zygote] = []
    monkeypatch.setattr(zygotes, "_SILENCE", 1.0)

    def start(before: Callable[[int], None] = lambda number: None, live: Callable[[], None] = lambda: None) -> Zygote:
        ours, theirs = line()
        number = 0

        def fork(asked: int, nodeid: str, made: bytes, fds: list[int]) -> int:
            nonlocal number
            assert (nodeid, made) == ("test", b"box")
            number = asked
            before(asked)
            pid = os.fork()
            if pid:
                for fd in fds:
                    os.close(fd)
            return pid

        pid = os.fork()
        if pid == 0:
            try:
                zygotes.serve(ours.close, Service(theirs, fork, print))
                live()
                os._exit(number)
            finally:
                os._exit(99)
        theirs.close()
        begun.append(Zygote(pid, ours, None))
        return begun[-1]

    yield start
    for zygote in begun:
        zygote.close()
        with suppress(ChildProcessError):
            os.waitpid(zygote.pid, 0)


def fork(zygote: Zygote, number: int) -> zygotes.Forked:
    zygote.ask(number, "test", b"box", ())
    return zygote.answer()


def has_ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def test_it_forks_and_tells_how_processes_ended(start: Start):
    zygote = start()
    forked = [fork(zygote, number) for number in range(1, 5)]
    assert [os.waitstatus_to_exitcode(zygote.status(each.pid)) for each in forked] == [1, 2, 3, 4]
    assert all(has_ended(each.pidfd, 1) for each in forked)
    assert zygote.asked == 4
    for each in forked:
        os.close(each.pidfd)


def test_it_remembers_the_last_ones(start: Start):
    zygote = start()
    pids = []
    for _ in range(zygotes._REMEMBERED + 10):
        each = fork(zygote, 7)
        assert has_ended(each.pidfd, 5)
        os.close(each.pidfd)
        pids.append(each.pid)
    assert os.waitstatus_to_exitcode(zygote.status(pids[-1])) == 7
    assert zygote.status(pids[0]) == 0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BoxFailed("no such box"), "no such box"),
        (KernelError("setns", "pid", 1), "setns pid: Operation not permitted"),
        (OSError(11, "Resource temporarily unavailable"), "[Errno 11] Resource temporarily unavailable"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_keeps_it_from_forking_is_told_and_it_goes_on(start: Start, error: Exception, text: str):
    def refuse(number: int) -> None:
        if number == 1:
            raise error

    zygote = start(refuse)
    zygote.ask(1, "test", b"box", ())
    with pytest.raises(BoxFailed) as caught:
        zygote.answer()
    assert str(caught.value) == text
    forked = fork(zygote, 2)
    assert os.waitstatus_to_exitcode(zygote.status(forked.pid)) == 2
    os.close(forked.pidfd)


def test_one_that_retires_holds_nothing_open_and_waits_for_its_processes(start: Start):
    reader, writer = os.pipe()
    go_on, go = os.pipe()

    def live() -> None:
        os.close(writer)
        os.close(go)
        os.read(go_on, 1)

    zygote = start(live=live)
    forked = fork(zygote, 5)
    os.close(writer)
    zygote.retire()
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert poll.poll(5000) == [(reader, select.POLLHUP)]
    assert not has_ended(forked.pidfd, 0)
    os.close(go)
    assert os.waitstatus_to_exitcode(zygote.status(forked.pid)) == 5
    for fd in (reader, go_on, forked.pidfd):
        os.close(fd)


def test_one_that_is_closed_ends_after_its_processes(start: Start):
    zygote = start(live=lambda: time.sleep(1))
    forked = fork(zygote, 5)
    zygote.close()
    assert os.waitpid(zygote.pid, os.WNOHANG) == (0, 0)
    assert os.waitpid(zygote.pid, 0)[1] == 0
    assert has_ended(forked.pidfd, 0)
    os.close(forked.pidfd)


def test_children_are_reaped_while_nobody_asks(start: Start):
    forked = fork(start(), 0)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{forked.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{forked.pid}").exists()
    os.close(forked.pidfd)


def test_one_that_was_killed_is_found_out(start: Start):
    zygote = start()
    os.kill(zygote.pid, signal.SIGKILL)
    os.waitpid(zygote.pid, 0)
    with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
        zygote.ask(1, "test", b"box", ())
    with pytest.raises(BoxFailed, match="is gone"):
        zygote.answer()
    assert zygote.status(1) == 0
    zygote.retire()
    zygote.learn([1])


def test_one_that_was_stopped_is_killed(start: Start):
    zygote = start()
    os.kill(zygote.pid, signal.SIGSTOP)
    zygote.ask(1, "test", b"box", ())
    with pytest.raises(BoxFailed, match="is gone"):
        zygote.answer()
    assert os.waitstatus_to_exitcode(os.waitpid(zygote.pid, 0)[1]) == -signal.SIGKILL


def test_one_that_takes_its_time_is_waited_for(start: Start):
    zygote = start(lambda number: time.sleep(2.5))
    forked = fork(zygote, 3)
    assert os.waitstatus_to_exitcode(zygote.status(forked.pid)) == 3
    os.close(forked.pidfd)
