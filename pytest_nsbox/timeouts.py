"""pytest-timeout's limits in lockstep: its own timer in the child, and one around the box in case that cannot fire.

Timers do not survive a fork. Until then the one that pytest-timeout set guards the outer fixtures; then the child
sets it anew, so a test fails of it as without a box, with its own stack. A test that its timer cannot stop (it blocks
signals, or sits in C code) is killed from outside, `GRACE` later. A child that was forked ahead of its test is the only
one that pytest-timeout sets a timer in, and tells pytest's process of it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

if TYPE_CHECKING:
    from pytest_nsbox.attempt import Attempt
    from pytest_nsbox.relay import Frame

PLUGIN: Final = "nsbox-timeouts"
GRACE: Final = 5.0  # seconds for the child's own timer to do its work

_SETTINGS: Final = pytest.StashKey[Any]()  # pytest_timeout.Settings of an item whose timer runs


class Backstop(NamedTuple):
    """Another plugin's limit: the box is killed after ``seconds``; ``limit`` and ``whose`` are for the text."""

    seconds: float
    limit: float
    whose: str


class Timeouts:
    """Registered where pytest-timeout is: remembers whose timer runs."""

    def __init__(self) -> None:
        self.tell: Callable[[float | None, bool], None] | None = None  # in a child that was forked ahead

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> object:
        item.stash[_SETTINGS] = settings
        if self.tell is None:
            return None
        thread = settings.method == "thread"
        self.tell(float(settings.timeout), thread)
        return thread or None  # see `take_over`: pytest-timeout is asked only after None

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> Generator[None, object, object]:
        if _SETTINGS in item.stash:
            del item.stash[_SETTINGS]
            if self.tell is not None:
                self.tell(None, False)
        return (yield)


def go_alone(config: pytest.Config, tell: Callable[[float | None, bool], None]) -> None:
    """In a child that goes through all of its protocol: `tell` of each timer, its seconds and whether it is a thread's,
    and with None of its end.
    """
    plugin = config.pluginmanager.get_plugin(PLUGIN)
    if plugin is not None:
        plugin.tell = tell


def guard(attempt: Attempt, frame: Frame) -> None:
    """In pytest's process: the child has told of a timer."""
    seconds = frame["seconds"]
    if seconds is None:
        attempt.backstop = None
    else:
        passed = time.perf_counter() - attempt.started
        attempt.backstop = _backstop(seconds, thread=frame["thread"], passed=passed)


def _backstop(limit: float, *, thread: bool, passed: float = 0.0) -> Backstop:
    if thread:
        return Backstop(passed + limit, limit, "pytest-timeout")
    return Backstop(passed + limit + GRACE, limit, "pytest-timeout, whose own timer did not stop the test")


def rest(item: pytest.Item) -> None:
    """In pytest's process, before a box is asked for: the time that this takes is not the test's."""
    settings = item.stash.get(_SETTINGS, None)
    if settings is not None:
        item.config.hook.pytest_timeout_cancel_timer(item=item)
        item.stash[_SETTINGS] = settings  # as if it ran


def leave_to_child(item: pytest.Item) -> Backstop | None:
    """In pytest's process, after the fork: its timer has done its part. Returns what guards the box from now on."""
    settings = item.stash.get(_SETTINGS, None)
    if settings is None:
        return None
    item.config.hook.pytest_timeout_cancel_timer(item=item)
    return _backstop(float(settings.timeout), thread=settings.method == "thread")


def take_over(item: pytest.Item) -> None:
    """In the child: set the timer again.

    Not that of method ``thread``, which prints the stacks and ends the whole process: there the box is ended instead.
    """
    settings = item.stash.get(_SETTINGS, None)
    if settings is not None and settings.method != "thread":
        item.config.hook.pytest_timeout_set_timer(item=item, settings=settings)


def give_back(item: pytest.Item) -> None:
    """In the child, at the end of a test that another one follows: its timer has done its part."""
    if _SETTINGS in item.stash:
        item.config.hook.pytest_timeout_cancel_timer(item=item)


def told(item: pytest.Item) -> list[Any] | None:
    """The item's settings as plain data, for a child that was forked before they were known; see `hear`."""
    settings = item.stash.get(_SETTINGS, None)
    return None if settings is None else list(settings)


def hear(item: pytest.Item, values: list[Any] | None) -> None:
    """In the child: the settings that pytest's process has `told`."""
    if values is not None:
        settings: Any = importlib.import_module("pytest_timeout").Settings
        item.stash[_SETTINGS] = settings(*values)
