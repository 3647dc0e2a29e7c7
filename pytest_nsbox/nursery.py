"""When there is a zygote (see `zygote`): from the second quiet test on, and not a moment longer than it is quiet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from pytest_nsbox import foresight
from pytest_nsbox import zygote as zygotes
from pytest_nsbox.policy.errors import BoxFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pluggy import HookCaller

    from pytest_nsbox.attempt import Attempt
    from pytest_nsbox.follow import Follower
    from pytest_nsbox.launch import Launcher
    from pytest_nsbox.zygote import Zygote

    Make = Callable[[Iterable[Attempt], HookCaller], Zygote]
    Fork = Callable[[Attempt, Attempt | None, HookCaller], None]

QUIET: Final = 2  # tests in a row, after which a zygote is made
MOST_QUIET: Final = 64  # the same, where zygotes were made for few
FEW: Final = 8  # tests; a zygote for fewer costs more than it saves
WORTH: Final = 16  # tests in boxes that are left
MOST: Final = 500  # tests of one zygote; the next one knows what pytest has found out about items since
AT_ONCE: Final = 100  # items that are got to know at a time
MOST_LOST: Final = 2  # zygotes that were killed, or had no process to give


class Nursery:
    """At most one zygote, and the one before.

    make  forks a zygote, given the attempts that are none of its business; `fork` forks a test from pytest's process
    """

    def __init__(
        self, items: Sequence[pytest.Item], launcher: Launcher, follower: Follower, make: Make, fork: Fork
    ) -> None:
        self._items = items
        self._launcher = launcher
        self._follower = follower
        self._make, self._fork = make, fork
        self._zygote: Zygote | None = None
        self._asked: Attempt | None = None  # it is being forked
        self._quiet = 0  # tests in a row
        self._known = 0  # number of the first item that is not known yet, where they run in order
        self._wanted = QUIET
        self._lost = 0
        self.made = 0

    def note_quiet(self) -> None:
        """Count a test that left nothing that another could see."""
        self._quiet += 1

    def fork(self, attempt: Attempt, number: int, running: Attempt | None, caller: HookCaller) -> None:
        """Fork for item `number`, beside a test that runs, or have it done; `has_forked` follows.

        caller  runs the test's protocol
        """
        if not self._ask(attempt, number, running, caller):
            foresight.know(attempt.item)
            self._fork(attempt, running, caller)
            self._know(number, AT_ONCE)  # while tests run

    def _ask(self, attempt: Attempt, number: int, running: Attempt | None, caller: HookCaller) -> bool:
        """Ask a zygote; False if there is none."""
        if self._zygote is not None and self._zygote.asked >= MOST:
            self._retire()
        if self._zygote is None and running is not None and self._is_worth_one():
            self._know(number, MOST)
            try:
                self._zygote = self._make((attempt, running), caller)
            except OSError:  # pytest's process cannot fork, and will find out itself
                self._lost += 1
            else:
                self.made += 1
        assert attempt.box is not None
        if self._zygote is None or attempt.box.spec is not attempt.spec:
            return False
        try:
            self._launcher.ask(self._zygote, attempt, number)
        except OSError:
            self._lose()
            return False
        self._asked = attempt
        return True

    def has_forked(self, attempt: Attempt) -> bool:
        """Wait until an attempt has its process; False if it has none."""
        if attempt is not self._asked:
            return attempt.pid != 0
        assert self._zygote is not None
        self._asked, zygote = None, self._zygote
        try:
            forked = zygote.answer()
        except BoxFailed:
            self._lose()
            return False
        assert attempt.channel is not None
        attempt.attach(forked.pid, forked.pidfd, attempt.channel)
        attempt.zygote = zygote
        return True

    def disturb(self) -> None:
        """Pytest's process is about to do something besides logging."""
        self._quiet = 0
        if self._zygote is not None:
            self._wanted = QUIET if self._zygote.asked >= FEW else min(self._wanted * 2, MOST_QUIET)
            self._retire()

    def close(self) -> None:
        """No test is run any more."""
        self.disturb()
        self._launcher.close_zygotes()

    def _is_worth_one(self) -> bool:
        return (
            self._quiet >= self._wanted
            and self._launcher.tests_left >= WORTH
            and self._lost < MOST_LOST
            and self._launcher.pages_are_settled
            and zygotes.is_alone()
        )

    def _know(self, number: int, most: int) -> None:
        """Find out now what the processes of item `number` and of those after it, as many as a zygote forks, would have
        to by themselves: once, and not in both processes, for it takes a while, and many pages of memory.
        """
        first = max(number, self._known)
        self._known = min(first + most, number + MOST)
        for item in self._items[first : self._known]:
            if isinstance(item, (pytest.Function, pytest.DoctestItem)):
                foresight.know(item)

    def _lose(self) -> None:
        self._lost += 1
        self._retire()

    def _retire(self) -> None:
        """Have it hold nothing open any more; its processes live on, and it waits for them."""
        if self._asked is not None:
            self.has_forked(self._asked)
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.retire()
            self._launcher.forget_zygote(zygote)
            self._follower.reap_later(zygote.pid)
