"""Forks the process of a test into its box."""

from __future__ import annotations

import _socket
import contextlib
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from pytest_nsbox import output, timeouts
from pytest_nsbox.child import Child
from pytest_nsbox.follow import flush_terminal
from pytest_nsbox.forking import fork_into
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.relay import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from pytest_nsbox.attempt import Attempt
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
            pid = fork_into(box, partial(self._enter, attempt, child, ours, running))
            if pid:
                self._pages.forked(time.perf_counter() - attempt.started)
                theirs.close()
                attempt.attach(pid, Channel(ours))
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
        self._boxes.make_next()
        attempt.backstop = timeouts.leave_to_child(attempt.item)
        self._follower.reap_dying()
        return False

    def _enter(self, attempt: Attempt, child: Child, ours: _socket.socket, running: Attempt | None) -> None:
        """The child's first steps, still inside `os.fork`."""
        attempt.child = child
        assert attempt.box is not None
        child.clock_jump = dict(attempt.box.spec.clock).get("monotonic", 0.0)
        child.shell = self._follower.shell
        self._become(child)
        child.enter(partial(self._go_into_box, attempt, ours, running), attempt.random_state)
        if self._follower.output_in_step:
            self._terminal.take()
        else:
            self._terminal.stay_behind()

    def _go_into_box(self, attempt: Attempt, ours: _socket.socket, running: Attempt | None) -> None:
        ours.close()
        if running is not None:
            running.close_in_child()
        self._pages.close()
        assert attempt.box is not None
        self._boxes.enter(attempt.box)


def _give_up_box(attempt: Attempt) -> None:
    """There is no process to put into it."""
    assert attempt.box is not None
    attempt.ended = True
    with contextlib.suppress(BoxFailed):
        attempt.box.release()
