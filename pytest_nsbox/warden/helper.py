"""Processes that the warden forks of itself for one kind of work each."""

from __future__ import annotations

import marshal
import os
from _socket import MSG_NOSIGNAL, socket

from pytest_nsbox.kernel import process
from pytest_nsbox.kernel.line import be_patient, line
from pytest_nsbox.kernel.rights import rights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from pytest_nsbox.warden.server import Server


class Helper:
    """Such a process that answers at once: it is there from the first order on, and ends with the warden. If somebody
    kills it, the next order gets another one.

    fork      returns pid and pidfd of a fork of us, and 0 and anything in it
    run       what that does, given its end of the line
    patience  seconds that an answer may take
    """

    def __init__(
        self, server: Server, fork: Callable[[], tuple[int, int]], run: Callable[[int], NoReturn], patience: float
    ) -> None:
        self._server = server
        self._fork = fork
        self._run = run
        self._patience = patience
        self._pidfd = -1
        self._control: socket | None = None

    def is_there(self) -> bool:
        """Say if it was started, and has not ended as far as we know."""
        return self._control is not None

    def tell(self, message: tuple[Any, ...], fds: Sequence[int] = ()) -> bool:
        """Tell it something; False if it is gone. Raises KernelError or OSError if it cannot be started."""
        if self._control is None:
            self._start()
        assert self._control is not None
        try:
            self._control.sendmsg([marshal.dumps(message)], rights(fds), MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def hear(self, most: int) -> bytes:
        """Wait for its answer; nothing if it is gone. Raises BlockingIOError when the patience is at its end."""
        assert self._control is not None
        try:
            return self._control.recv(most)
        except BlockingIOError:
            raise
        except OSError:
            return b""

    def _start(self) -> None:
        ours, theirs = line()
        pid, self._pidfd = self._fork()
        if pid == 0:
            self._run(theirs.detach())
        theirs.close()
        be_patient(ours, self._patience)
        self._control = ours
        self._server.watch(self._pidfd, self._ended)

    def _ended(self) -> None:
        if process.reap(self._pidfd):
            self._forget()

    def close(self) -> None:
        """End it."""
        if self._pidfd >= 0:
            process.kill(self._pidfd)
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            self._forget()

    def _forget(self) -> None:
        self._server.forget(self._pidfd)
        self._pidfd = -1
        if self._control is not None:
            self._control.close()
            self._control = None
