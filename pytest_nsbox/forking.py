"""The one fork of pytest's process, and the at-fork handlers that send its child into a box's pid namespace."""

from __future__ import annotations

import sys
import threading
import warnings
from types import FunctionType
from typing import TYPE_CHECKING

from pytest_nsbox.real import os

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.warden.client import Box


def _register(armed: list[_Handlers]) -> None:
    """Have the methods of who is in the list called at a fork.

    Python keeps the functions to its very end. Through their module's globals they would keep all of pytest alive (the
    modules of a plugin have pytest's own loader), which makes its end 10 ms longer; so they have none.
    """

    def before() -> None:
        for handlers in armed:
            handlers.before()

    def after_in_parent() -> None:
        for handlers in armed:
            handlers.after_in_parent()

    def after_in_child() -> None:
        for handlers in armed:
            handlers.after_in_child()

    bare = [
        FunctionType(each.__code__, {}, closure=each.__closure__) for each in (before, after_in_parent, after_in_child)
    ]
    os.register_at_fork(before=bare[0], after_in_parent=bare[1], after_in_child=bare[2])


class _Handlers:
    """Armed only for our own fork.

    Registered when the plugin is loaded, so ``before`` runs last and the others first: no thread can be started, which
    foreign handlers do, while pytest's children go to the box's pid namespace, or before the child is in its box (only
    a process of one thread can enter a user namespace).
    """

    def __init__(self) -> None:
        self._box: Box | None = None
        self._in_child: Callable[[], None] | None = None
        self._armed: list[_Handlers] = []
        _register(self._armed)

    def before(self) -> None:
        if self._box is not None:
            self._box.before_fork()

    def after_in_parent(self) -> None:
        if self._box is not None:
            self._box.after_fork_in_parent()

    def after_in_child(self) -> None:
        in_child, self._in_child = self._in_child, None
        if in_child is None:
            return
        if self._box is not None and self._box.after_fork_in_child():
            # Python repaired its state for the process in between.
            threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # as Thread's own handler does
        in_child()

    def fork(self, box: Box, in_child: Callable[[], None]) -> int:
        pid = self._fork(box, in_child)
        return box.child_of(pid) if pid else 0

    def fork_alone(self) -> int:
        return self._fork(None, None)

    def _fork(self, box: Box | None, in_child: Callable[[], None] | None) -> int:
        self._box, self._in_child = box, in_child
        self._armed.append(self)
        try:
            if sys.version_info >= (3, 12):
                # os.fork warns of threads, also of those that threading does not know (execnet's, a library's own);
                # they are accounted for, and the user's filters may make it an error
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    return os.fork()
            return os.fork()
        finally:
            self._armed.clear()
            self._box = self._in_child = None


_handlers = _Handlers()


def fork_outside() -> int:
    """`os.fork`; the child is no test's."""
    return _handlers.fork_alone()


def fork_into(box: Box, in_child: Callable[[], None]) -> int:
    """`os.fork`; the child is a member of the box's pid namespace and runs ``in_child`` before any at-fork handler."""
    return _handlers.fork(box, in_child)
