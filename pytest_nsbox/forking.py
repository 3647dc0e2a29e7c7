"""The one fork of pytest's process, and the at-fork handlers that send its child into a box's pid namespace."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_nsbox.warden.client import Box


class _Handlers:
    """Armed only for our own fork.

    Registered when the plugin is loaded, so ``before`` runs last and ``after_in_parent`` first: while pytest's
    children go to the box's pid namespace no thread can be started, which foreign handlers do.
    """

    def __init__(self) -> None:
        self._box: Box | None = None
        os.register_at_fork(before=self._before, after_in_parent=self._after_in_parent)

    def _before(self) -> None:
        if self._box is not None:
            self._box.before_fork()

    def _after_in_parent(self) -> None:
        if self._box is not None:
            self._box.after_fork_in_parent()

    def fork(self, box: Box) -> int:
        self._box = box
        try:
            if sys.version_info >= (3, 12) and threading.active_count() > 1:
                # os.fork warns of threads; ours are accounted for, and the user's filters may make it an error
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    return os.fork()
            return os.fork()
        finally:
            self._box = None


_handlers = _Handlers()


def fork_into(box: Box) -> int:
    """`os.fork`, the child a member of the box's pid namespace (and of no other namespace of it yet)."""
    return _handlers.fork(box)
