"""Orders: what clients of containers want, one by one, and how they are answered."""

from __future__ import annotations

import errno
import os
import select

from pytest_nsbox.policy.errors import BadValueError, BoxFailed, KernelError
from pytest_nsbox.policy.units import parse_patience
from pytest_nsbox.warden import execute
from pytest_nsbox.warden.wire import Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.output import Output

# Returned instead of a value by what answers when something has happened.
LATER = object()


class Connection:
    """A client: one process of the test session."""

    def __init__(self, sock: socket) -> None:
        self.wire = Wire(sock)
        self.open = True
        # Answers wait until the client has read others.
        self.full = False


class Order:
    """One thing that a client wants, and the way to answer it, once."""

    def __init__(self, poll: select.epoll, connection: Connection, head: dict[str, Any], fds: tuple[int, ...]) -> None:
        self._poll = poll
        self.connection = connection
        self.number = head["n"]
        self.head = head
        self.fds = list(fds)
        self._answered = False

    def answer(self, value: object = None, output: Output | None = None) -> None:
        """Answer with a value, and what was printed."""
        payload, file = output.read() if output is not None else (b"", -1)
        try:
            self._send({"n": self.number, "value": value}, payload, () if file < 0 else (file,))
        finally:
            if file >= 0:
                os.close(file)

    def answer_with(self, value: object, fds: tuple[int, ...]) -> None:
        """Answer with a value and descriptors, which stay the caller's."""
        self._send({"n": self.number, "value": value}, fds=fds)

    def fail(self, text: str) -> None:
        """Answer that it did not work, and why."""
        self._send({"n": self.number, "error": text})

    def _send(self, head: dict[str, Any], payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        if self._answered or not self.connection.open:
            return
        self._answered = True
        try:
            if not self.connection.wire.send_soon(head, payload, fds):
                self.connection.full = True
                self._poll.modify(self.connection.wire.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            # Its end is noticed where it is read.
            return

    def seconds(self, name: str) -> float | None:
        """Return a field with a duration, None if it is not given. Raises BoxFailed for what is none."""
        value = self.head.get(name)
        if value is None:
            return None
        try:
            return parse_patience(value)
        except BadValueError as error:
            raise BoxFailed(f"{name}={value!r:.60}: {error}") from None

    def take_stdin(self) -> int:
        """Return the descriptor that came with the order, -1 if none did; it is the caller's now."""
        return self.fds.pop(0) if self.fds else -1

    def take_outputs(self) -> tuple[int, ...]:
        """Return the two descriptors after that for a program's output, () if there are none; the caller's now."""
        if len(self.fds) < 2:
            return ()
        return self.fds.pop(0), self.fds.pop(0)

    def answer_with_frames(self, value: object, frames: bytes) -> None:
        """Answer with a value, and with some of what was printed."""
        self._send({"n": self.number, "value": value}, frames)

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())


def answer_not_started(order: Order, error: KernelError | BoxFailed, *, run: bool) -> None:
    """Tell that a program could not be started: as an error, or (`run`) as a result with Docker's exit status."""
    if not run or not isinstance(error, KernelError) or error.call != "exec":
        order.fail(str(error))
        return
    code = 127 if error.errno == errno.ENOENT else 126
    told = {"not_started": str(error), "returncode": code, "counters": {}, "wall": 0.0, "timed_out": False}
    order.answer(told)


def make_program(head: dict[str, Any], spec: Spec) -> execute.Program:
    """Return the program that an order describes."""
    return execute.Program(
        argv=tuple(head["argv"]),
        env=dict(head["env"]),
        workdir=head.get("workdir"),
        user=head.get("user"),
        spec=spec,
        terminal=bool(head.get("terminal")),
    )
