"""Forks the process of a test into its box."""

from __future__ import annotations

import _socket
import contextlib
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pytest_nsbox import output, timeouts
from pytest_nsbox import zygote as zygotes
from pytest_nsbox.attempt import Attempt
from pytest_nsbox.child import Child
from pytest_nsbox.follow import flush_terminal
from pytest_nsbox.forking import fork_into, fork_outside
from pytest_nsbox.kernel.line import line
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.real import os
from pytest_nsbox.relay import Channel
from pytest_nsbox.warden.messages import encode_body
from pytest_nsbox.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pytest

    from pytest_nsbox.boxes import Boxes
    from pytest_nsbox.follow import Follower
    from pytest_nsbox.groups import Group
    from pytest_nsbox.pages import Pages
    from pytest_nsbox.terminal import Terminal

# Of the C module: pytest-socket forbids Python's own class in this process, and a suite may replace it.
_SOCKETPAIR: Final = _socket.socketpair
_ALL_SIGNALS: Final = signal.valid_signals()


class Launcher:
    """All forks of a session."""

    def __init__(
        self,
        config: pytest.Config,
        boxes: Boxes,
        follower: Follower,
        terminal: Terminal,
        pages: Pages,
        become: Callable[[Child], None],
    ) -> None:
        self.config = config
        self.tests_left = 0  # in boxes, the current one included
        self._boxes = boxes
        self._follower = follower
        self._terminal = terminal
        self._pages = pages
        self._become = become  # called in each child, inside the fork
        self._zygotes: list[Zygote] = []  # the last one is in service, if one is
        self._signals: Iterable[int] = ()  # in a zygote, what was blocked in pytest's process

    def close(self) -> None:
        """No more forks."""
        self._pages.close()

    def fork(self, attempt: Attempt, group: Group | None = None, running: Attempt | None = None) -> bool:
        """Fork into the attempt's box; True in the child. `running` is a test that runs meanwhile."""
        box = attempt.box
        assert box is not None
        ours, theirs = _SOCKETPAIR()
        child = Child(attempt.item, Channel(theirs), lockstep_output=self._follower.output_in_step, group=group)
        child.tells_pages = self._pages.before_fork(self.tests_left)
        attempt.keywords = child.keywords
        attempt.random_state = random.getstate()
        flush_terminal(self.config)
        watch_again = output.pause_faulthandler_timer(self.config)
        attempt.started = time.perf_counter()
        # An exception of a signal's handler would be lost inside of os.fork, or lose us the process.
        child.signals = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            closes = [ours.close] if running is None else [ours.close, running.close_in_child]
            pid = fork_into(box, partial(self._enter, attempt, child, closes))
            if pid:
                self._pages.forked(time.perf_counter() - attempt.started)
                theirs.close()
                attempt.attach(pid, os.pidfd_open(pid), Channel(ours))
        except BaseException:
            ours.close()
            theirs.close()
            _give_up_box(attempt)
            raise
        finally:
            if attempt.child is None:
                signal.pthread_sigmask(signal.SIG_SETMASK, child.signals)
        if pid == 0:
            watch_again()
            return True
        if self._follower.output_in_step:
            self._terminal.give()
        self._see_to(attempt)
        return False

    def _see_to(self, attempt: Attempt) -> None:
        """In pytest's process, when a test is on its way."""
        self._boxes.make_next()
        attempt.backstop = timeouts.leave_to_child(attempt.item)
        self._follower.reap_dying()

    # --- zygotes

    @property
    def pages_are_settled(self) -> bool:
        """Whether a zygote would know which pages to copy."""
        return self._pages.are_settled

    def fork_zygote(self, known: Iterable[Attempt], items: Sequence[pytest.Item]) -> Zygote | Attempt:
        """Fork a zygote; in each process that it forks, return the attempt that is to be run there.

        known  attempts whose descriptors are open in pytest's process, and none of its business
        """
        ours, theirs = line()
        random_state = random.getstate()
        flush_terminal(self.config)
        watch_again = output.pause_faulthandler_timer(self.config)
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            pid = fork_outside()
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            ours.close()
            theirs.close()
            raise
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            theirs.close()
            zygote = Zygote(pid, ours, random_state)
            self._zygotes.append(zygote)
            self._pages.pass_on = zygote.learn
            return zygote
        nest = _Nest(self, self._boxes, items, random_state)
        self._signals = signals
        zygotes.serve(partial(self._settle_down, ours, known), zygotes.Service(theirs, nest.fork, self._pages.learn))
        watch_again()
        assert nest.attempt is not None
        return nest.attempt

    def _settle_down(self, ours: _socket.socket, known: Iterable[Attempt]) -> None:
        """In a new zygote: let go of what is pytest's."""
        ours.close()
        for attempt in known:
            attempt.close_in_child()
        self.close_zygotes()
        self._pages.move()

    def fork_in_zygote(self, attempt: Attempt, channel: Channel) -> int:
        """`fork`, for a test that pytest's process follows; the pid, 0 in the child."""
        assert attempt.box is not None
        self.tests_left -= 1
        child = Child(attempt.item, channel, lockstep_output=False)
        child.tells_pages = self._pages.before_fork(self.tests_left)
        child.signals = self._signals
        return fork_into(attempt.box, partial(self._enter, attempt, child, []))

    def ask(self, zygote: Zygote, attempt: Attempt, number: int) -> None:
        """Have a zygote fork into the attempt's box. OSError if it is gone."""
        assert attempt.box is not None
        ours, theirs = _SOCKETPAIR()
        made, fds = attempt.box.parts
        try:
            zygote.ask(number, attempt.item.nodeid, encode_body(made), (theirs.fileno(), *fds))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        attempt.channel = Channel(ours)
        attempt.keywords = dict.fromkeys(attempt.item.keywords, 1)
        attempt.random_state = zygote.random_state
        self._see_to(attempt)

    def forget_zygote(self, zygote: Zygote) -> None:
        """It forks no more; what it has forked is asked about until the next one is made."""
        self._pages.pass_on = None
        for old in self._zygotes:
            if old is not zygote:
                old.close()
        self._zygotes = [zygote]

    def close_zygotes(self) -> None:
        """Let all of them end with their last process; in a fork, close what leads to them."""
        for zygote in self._zygotes:
            zygote.close()
        self._zygotes.clear()

    def _enter(self, attempt: Attempt, child: Child, closes: Iterable[Callable[[], None]]) -> None:
        """The child's first steps, still inside `os.fork`; `closes` let go of what is none of its business."""
        attempt.child = child
        assert attempt.box is not None
        child.clock_jump = dict(attempt.box.spec.clock).get("monotonic", 0.0)
        child.shell = self._follower.shell
        self._become(child)
        child.enter(partial(self._go_into_box, attempt, closes), attempt.random_state)
        if self._follower.output_in_step:
            self._terminal.take()
        else:
            self._terminal.stay_behind()

    def _go_into_box(self, attempt: Attempt, closes: Iterable[Callable[[], None]]) -> None:
        for close in closes:
            close()
        self.close_zygotes()
        self._pages.close()
        assert attempt.box is not None
        self._boxes.enter(attempt.box)


class _Nest:
    """In a zygote: what it forks into."""

    def __init__(self, launcher: Launcher, boxes: Boxes, items: Sequence[pytest.Item], random_state: Any) -> None:
        self._launcher = launcher
        self._boxes = boxes
        self._items = items
        self._random_state = random_state
        self.attempt: Attempt | None = None  # the last one; in a process that was forked, that process' own

    def fork(self, number: int, nodeid: str, made: bytes, fds: list[int]) -> int:
        """What `zygotes.Service` calls; ``fds`` are ours."""
        item = self._items[number]
        if item.nodeid != nodeid:
            raise BoxFailed(f"test {number} of the session is another one now: {item.nodeid}")
        spec = self._boxes.spec_of(item)
        assert spec is not None
        attempt = self.attempt = Attempt(item, spec)
        attempt.random_state = self._random_state
        attempt.box = self._boxes.handed_on(made, fds[1:], spec)
        channel, pid = Channel(_socket.socket(fileno=fds[0])), -1
        try:
            pid = self._launcher.fork_in_zygote(attempt, channel)
        finally:
            if pid != 0:
                channel.close()
                attempt.box.close_in_child()
        return pid


def _give_up_box(attempt: Attempt) -> None:
    """There is no process to put into it."""
    assert attempt.box is not None
    attempt.ended = True
    with contextlib.suppress(BoxFailed):
        attempt.box.release()
