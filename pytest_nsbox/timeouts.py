"""pytest-timeout's limits in lockstep: its own timer in the child, and one around the box in case that cannot fire.

Timers do not survive a fork. Until the fork the one that pytest-timeout set guards the outer fixtures; then the child
sets it anew, so a test fails of it as without a box, with its own stack. A test that its timer cannot stop (it blocks
signals, or sits in C code) is killed from outside, `GRACE` later.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import pytest

GRACE: Final = 5.0  # seconds for the child's own timer to do its work

_SETTINGS: Final = pytest.StashKey[Any]()  # pytest_timeout.Settings of an item whose timer runs


class Timeouts:
    """Registered where pytest-timeout is: remembers whose timer runs."""

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> Generator[None, object, object]:
        item.stash[_SETTINGS] = settings
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> Generator[None, object, object]:
        if _SETTINGS in item.stash:
            del item.stash[_SETTINGS]
        return (yield)


def running(item: pytest.Item) -> float | None:
    """The limit, in seconds, of pytest-timeout's timer that runs for the item; None without one."""
    settings = item.stash.get(_SETTINGS, None)
    return None if settings is None else float(settings.timeout)


def leave_to_child(item: pytest.Item) -> None:
    """In pytest's process, after the fork: its timer has done its part."""
    if _SETTINGS in item.stash:
        item.config.hook.pytest_timeout_cancel_timer(item=item)


def take_over(item: pytest.Item) -> None:
    """In the child: set the timer again."""
    settings = item.stash.get(_SETTINGS, None)
    if settings is not None:
        item.config.hook.pytest_timeout_set_timer(item=item, settings=settings)
