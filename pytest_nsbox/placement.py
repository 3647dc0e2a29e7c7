"""Which process an outer fixture lives in: pytest's own, or the box of each test that requests it.

A fork carries no threads over, and shares connections: a TLS session that two processes use breaks in the second.
So what a fixture's set-up leaves in the process is compared, once, when it is first set up.
"""

from __future__ import annotations

import _socket
import contextlib
import stat
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_nsbox import internals
from pytest_nsbox.policy.record import record
from pytest_nsbox.real import os

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

COSTLY: Final = 0.5  # seconds of set-up per test from which a fixture that moved into boxes is worth a warning


_DEPENDS: Final = "depends on a fixture that lives in the box"
# Sockets that are no fixture's doing: connections to the warden (descriptors as texts).
OWN_SOCKETS: Final[set[str]] = set()


class SandboxWarning(pytest.PytestWarning):
    """Something about boxes that works, and that the user may want otherwise."""


SandboxWarning.__module__ = "pytest_nsbox"


class _Seen:
    """One set-up of an outer fixture in pytest's process."""

    def __init__(self, fixture: Any, request: Any, seconds: float = 0.0) -> None:
        self.fixture = fixture
        self.request = request
        self.seconds = seconds
        self.reason = ""
        self.inside: list[str] = []  # fixtures that were set up during this one's set-up


class Placement:
    """Decides for each outer fixture of a session, by what its first set-up leaves behind."""

    def __init__(self, host: Iterable[str], box: Iterable[str]) -> None:
        self._host = frozenset(host)
        self._box: dict[str, str] = dict.fromkeys(box, "ini sandbox_box_fixtures")
        self._running: list[_Seen] = []
        self._seen: list[_Seen] = []
        self.undone: dict[str, str] = {}  # what was torn down again, to be set up in boxes
        self._outside: dict[str, str] = {}  # what stayed in pytest's process for a reason
        self.watching = False

    def on_host(self, item: pytest.Item, names: Sequence[str]) -> list[str]:
        """Those of an item's outer fixtures that are set up in pytest's process, as far as is known by now."""
        if self._box:
            for name in self._dependents(item, names, ()):
                self._box.setdefault(name, _DEPENDS)
        return [name for name in names if name not in self._box]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, object, object]:
        """Compare the process around a fixture's set-up."""
        if not self.watching:
            return (yield)
        seen = _Seen(fixturedef, request)
        for outer in self._running:
            outer.inside.append(fixturedef.argname)
        before, began = _Process.now(), time.perf_counter()
        self._running.append(seen)
        try:
            result = yield
        finally:
            self._running.pop()
        seen.seconds = time.perf_counter() - began
        after, name = _Process.now(), fixturedef.argname
        # What an inner fixture left was noted with that one.
        if not any(each.reason for each in self._seen if each.fixture.argname in seen.inside):
            seen.reason = after.left_since(before)
        if name in self._host:
            kept = f"{seen.reason}; " if seen.reason else ""
            self._outside[name], seen.reason = f"{kept}ini sandbox_host_fixtures", ""
        elif after.children - before.children:
            self._outside[name] = "started a process, which tests reach but cannot wait for"
        self._seen.append(seen)
        return result

    def move(self, item: pytest.Item, names: Sequence[str]) -> None:
        """Tear down what has to live in boxes, with the outer fixtures that depend on it."""
        moved = {seen.fixture.argname: seen for seen in self._seen if seen.reason}
        seen_now, self._seen = self._seen, []
        if not moved:
            return
        for name, seen in moved.items():
            self._box[name] = seen.reason
        for name in self._dependents(item, names, seen_now):
            self._box.setdefault(name, _DEPENDS)
        undone = [seen for seen in reversed(seen_now) if seen.fixture.argname in self._box]
        for seen in undone:
            self._outside.pop(seen.fixture.argname, None)
            self.undone[seen.fixture.argname] = self._box[seen.fixture.argname]
            internals.undo_fixture(item, seen.fixture, seen.request)
        self._warn_of_costs(
            [seen for seen in undone if not any(seen.fixture.argname in each.inside for each in undone)]
        )

    def _warn_of_costs(self, undone: Sequence[_Seen]) -> None:
        """Say so if what moved into boxes takes long to set up there, once for each."""
        seconds = sum(seen.seconds for seen in undone)
        if seconds <= COSTLY:
            return
        names = [seen.fixture.argname for seen in reversed(undone)]
        told = ", ".join(f"{name!r} {self._box[name]}" for name in names)
        first = next((name for name in names if self._box[name] != _DEPENDS), names[0])
        internals.warn_at_fixture(
            undone[-1].fixture,
            SandboxWarning(
                f"fixture {told}, so every test sets {'it' if len(names) == 1 else 'them'} up in its own box, "
                f'{seconds:.1f} s each; one box for a module (marker key scope="module") sets up once, and ini '
                f"sandbox_host_fixtures = {first} keeps it outside"
            ),
        )

    def _dependents(self, item: pytest.Item, names: Sequence[str], seen: Sequence[_Seen]) -> list[str]:
        inside = {each.fixture.argname: set(each.inside) for each in seen}
        found: list[str] = []
        changed = True
        while changed:
            changed = False
            for name in names:
                needs = {*internals.fixture_arguments(item, name), *inside.get(name, ())}
                if name not in self._box and name not in found and needs & {*self._box, *found}:
                    found.append(name)
                    changed = True
        return found

    def tell(self) -> list[str]:
        """One line for each fixture that was placed for a reason, for ``-v``."""
        lines = [f"{name}: in the box of each test ({reason})" for name, reason in self._box.items()]
        lines += [f"{name}: in pytest's process ({reason})" for name, reason in self._outside.items()]
        return lines


@record
class _Process:
    """What of this process a fork does not carry over."""

    threads: frozenset[int]
    descriptors: dict[str, str]
    children: frozenset[str]

    @classmethod
    def now(cls) -> _Process:
        threads = frozenset(thread.ident or 0 for thread in threading.enumerate())
        return cls(threads, _descriptors(), _children())

    def left_since(self, before: _Process) -> str:
        if self.threads - before.threads:
            return "started a thread"
        for fd, kind in self.descriptors.items():
            if before.descriptors.get(fd) == kind or fd in OWN_SOCKETS:
                continue
            if "[eventpoll]" in kind:
                return "opened an epoll descriptor"
            if "[io_uring]" in kind:
                return "opened an io_uring descriptor"
            if kind.startswith("socket:") and _is_connected(int(fd)):
                return "opened a connection"
        return ""


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def _children() -> frozenset[str]:
    pids: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            fd = os.open(f"/proc/self/task/{task}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a thread that ended, or a kernel without CONFIG_PROC_CHILDREN
            continue
        try:
            while data := os.read(fd, 1 << 16):
                pids.update(data.decode("ascii").split())
        finally:
            os.close(fd)
    return frozenset(pids)


def _is_connected(fd: int) -> bool:
    """Whether a socket has a peer outside this process; both ends of a socketpair here have their copies in a fork."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        copy = _socket.socket(fileno=os.dup(fd))  # Python's own class may be forbidden by pytest-socket
        try:
            copy.getpeername()
            return copy.family != _socket.AF_UNIX or bool(copy.getpeername() or copy.getsockname())
        finally:
            copy.close()
    except OSError:
        return False
