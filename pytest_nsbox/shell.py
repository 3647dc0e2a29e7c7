"""`--sandbox-shell`: a shell in the box of the first test that fails in one, before its tear-down.

Of a test whose process lives, the shell is a child of that process: it finds the files, processes, environment and
working directory that the test left. Where the process has died, pytest's makes another one in the box, which is kept
for that.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

from pytest_nsbox import timeouts
from pytest_nsbox.forking import fork_into
from pytest_nsbox.real import os

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from pytest_nsbox.attempt import Attempt
    from pytest_nsbox.child import Child
    from pytest_nsbox.terminal import Terminal

_TERMINAL: Final = "/dev/tty"
_DEFAULT: Final = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGPIPE,
    signal.SIGCHLD,
)


class Shell:
    """The one shell of a session."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.opened = False

    def open_for(self, child: Child, report: pytest.TestReport) -> None:
        """In the child, which waits for the shell: the phase of ``report`` has failed."""
        if self.opened:
            return
        self.opened = True
        timeouts.give_back(child.item)
        child.channel.send("pdb", entered=True, shell=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._terminal.take()
            self._say(_header(report.nodeid, f"failed in {report.when}", report.longreprtext))
            os.waitpid(self._spawn(), 0)
        except OSError as error:
            self._say(f"no shell: {error}\n")
        finally:
            self._terminal.take()  # the shell had the front
            signal.signal(signal.SIGINT, before)
            child.channel.send("pdb", entered=False)

    def open_in(self, attempt: Attempt, enter: Callable[[Any], None]) -> None:
        """In pytest's process: the test's own has died. ``enter`` takes a forked process into a box."""
        if self.opened or attempt.box is None or not attempt.box.is_alive():
            return
        self.opened = True
        box, failures = attempt.box, []

        def in_child() -> None:
            try:
                enter(box)
            except BaseException as error:  # noqa: BLE001 - out of an at-fork handler nothing comes
                failures.append(error)

        pid = fork_into(box, in_child)
        if pid == 0:
            try:
                os.setpgid(0, 0)
                self._terminal.take()
                self._say(_header(attempt.item.nodeid, f"died in {attempt.phase}", ""))
                for error in failures:
                    raise error
                self._exec()
            except BaseException as error:  # noqa: BLE001 - nothing may come out of a fork
                self._say(f"no shell: {error}\n")
            finally:
                os._exit(127)
        self._terminal.give()
        os.waitpid(pid, 0)
        self._terminal.take_back()

    def _spawn(self) -> int:
        path = _find_shell()
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, _TERMINAL, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        ]
        return os.posix_spawn(
            path, [path, "-i"], os.environ, file_actions=streams, setsigmask=(), setsigdef=list(_DEFAULT)
        )

    def _exec(self) -> None:
        path = _find_shell()
        fd = os.open(_TERMINAL, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(fd, stream)
        for number in _DEFAULT:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(path, [path, "-i"], os.environ)

    def _say(self, text: str) -> None:
        fd = os.open(_TERMINAL, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("utf-8", "replace"))
        finally:
            os.close(fd)


def _find_shell() -> str:
    """The user's shell, if the box has it."""
    wanted = os.environ.get("SHELL", "")
    return wanted if wanted.startswith("/") and os.access(wanted, os.X_OK) else "/bin/sh"


def _header(nodeid: str, what: str, text: str) -> str:
    title = f" sandbox shell: {nodeid} {what} "
    told = f"{text}\n" if text else ""
    return f"\n\n{title:=^80}\n{told}This shell is in the test's box. Leave it (exit) to go on with the run.\n"
