"""What a test leaves in cycles, collected before its process ends, where it would fail the run.

pytest collects garbage when a session ends. What a ``__del__`` raises there is a warning, and where the user's filters
make it an error, pytest ends with status 1. So where they do, a test's process collects what it made itself: what stood
in pytest's process at the fork is left alone there, and costs no copies of its pages. Elsewhere no outcome hangs on it.
"""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Final

import pytest

from pytest_nsbox import internals

if TYPE_CHECKING:
    from collections.abc import Sequence

_OLD: Final = 2  # the oldest generation
_QUEUE: Final = ("unraisableexception", "unraisable_exceptions")  # pytest's plugin, and its name for it


class Garbage:
    """In a test's process, from the beginning of the test on."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        if gc.get_freeze_count() == 0:  # else it would undo what somebody else did
            gc.freeze()
            gc.unfreeze()  # all that there is belongs to the oldest generation now
        self._grown_old = _grown_old()

    @classmethod
    def start(cls, config: pytest.Config) -> Garbage | None:
        """None where it makes no difference."""
        return cls(config) if _fails_the_run() else None

    def collect(self) -> list[str]:
        """Texts of what was raised where nobody could catch it, and pytest was not told of yet."""
        gc.collect(_OLD if _grown_old() != self._grown_old else _OLD - 1)
        queue = internals.untold(self._config, *_QUEUE)
        return [each.msg for each in queue or () if not isinstance(each, BaseException)]


def _fails_the_run() -> bool:
    """Say if the filters in force make an error of an exception that nobody could catch."""
    for action, message, category, module, _ in warnings.filters:
        if message is None and module is None and issubclass(pytest.PytestUnraisableExceptionWarning, category):
            return action == "error"
    return False


def tell(config: pytest.Config, texts: Sequence[str]) -> None:
    """In pytest's process, when no more tests run: pytest finds them when it ends."""
    queue = internals.untold(config, *_QUEUE)
    meta = getattr(config.pluginmanager.get_plugin(_QUEUE[0]), "UnraisableMeta", None)
    if queue is not None and meta is not None:
        queue.extend(meta(msg=str(text), cause_msg=str(text), exc_value=None) for text in texts)


def _grown_old() -> int:
    """How often objects have joined the oldest generation."""
    return sum(int(each["collections"]) for each in gc.get_stats()[_OLD - 1 :])
