"""The warden's process, started before the rest of the plugin is imported, where the command line asks for boxes.

Its interpreter and its modules take longer than all that pytest does until it wants the first box. What was started for
nothing (`options.is_sure_to_box` decides when the options are read) is ended, and it ends with pytest's process, too.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from pytest_nsbox import importing as importing  # noqa: PLC0414 - before the other modules
from pytest_nsbox.warden.spawn import spawn

if TYPE_CHECKING:
    from pytest_nsbox.warden.spawn import Spawned

_started: Spawned | None = None


def start(words: list[str]) -> None:
    """Start one if it looks as if these words of a command line asked for boxes in this process."""
    global _started  # noqa: PLW0603 - it is one process's
    idle = any(word in ("--co", "--collect-only") or word.startswith(("-n", "--numprocesses")) for word in words)
    if "--sandbox-all" in words and not idle:
        _started = _try()


def take(*, wanted: bool) -> Spawned | None:
    """A process for the caller, if he wants one and it can be started; what was started is ended otherwise."""
    global _started
    started, _started = _started, None
    if wanted:
        return started or _try()
    if started is not None:
        started.discard()
    return None


def _try() -> Spawned | None:
    # A failure comes again, and is told, where the warden is needed.
    with contextlib.suppress(OSError):
        return spawn()
    return None


start(sys.argv[1:])
