"""A client's end of the talk about containers: asks, from as many threads as there are, and waits for answers."""

from __future__ import annotations

import select
import threading
import time

from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it
from pytest_nsbox.policy.units import LONGEST_WAIT
from pytest_nsbox.real import os
from pytest_nsbox.warden.output import split
from pytest_nsbox.warden.wire import BrokenWireError, Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

    Found = tuple[Any, bytes]
    Answer = tuple[dict[str, Any], bytes, tuple[int, ...]]


class Late(Exception):  # noqa: N818  # no error: what was waited for has not come yet
    """The answer did not come in time. It may be waited for again, by its number."""


class Engine:
    """One connection to the warden. Belongs to the process that made it."""

    def __init__(self, sock: _socket.socket) -> None:
        self._wire = Wire(sock)
        self._number = 0
        self._answers: dict[int, Answer] = {}
        # One of the waiting threads reads, for all. Each waits to be woken by a condition of its own.
        self._lock = threading.Lock()
        self._waiting: dict[int, threading.Condition] = {}
        self._reading = False
        self._sending = threading.Lock()
        self.gone = ""

    def ask(self, do: str, fds: tuple[int, ...] = (), **fields: Any) -> Found:
        """Ask for something and wait for its answer: the value, and what was printed (frames of output.py). BoxFailed
        with what the warden says against it.
        """
        return self.answer(self.tell(do, fds, **fields))

    def fetch(self, do: str, **fields: Any) -> tuple[Any, tuple[int, ...]]:
        """Ask for descriptors, which the caller closes; return the value and them. BoxFailed as for `ask`."""
        head, _, fds = self._wait(self.tell(do, **fields), None)
        if "error" in head:
            raise BoxFailed(head["error"])
        return head["value"], fds

    def tell(self, do: str, fds: tuple[int, ...] = (), **fields: Any) -> int:
        """Ask for something; return the number by which `answer` waits for it."""
        with self._sending:
            self._number += 1
            number = self._number
            try:
                self._wire.send({"n": number, "do": do, **fields}, fds=fds)
            except OSError as error:
                raise self._lost(str(error)) from None
        return number

    def answer(self, number: int, timeout: float | None = None) -> Found:
        """Wait for the answer to `number`, at most `timeout` seconds: then `Late` is raised."""
        return _read(*self._wait(number, timeout))

    def _wait(self, number: int, timeout: float | None) -> Answer:
        deadline = None if timeout is None else time.monotonic() + timeout
        mine = threading.Condition(self._lock)
        with self._lock:
            self._waiting[number] = mine
            try:
                while number not in self._answers:
                    if self.gone:
                        raise self._lost(self.gone)
                    if self._reading:
                        rest = None if deadline is None else deadline - time.monotonic()
                        if rest is not None and rest <= 0:
                            raise Late
                        mine.wait(None if rest is None else min(rest, LONGEST_WAIT))
                    else:
                        self._read_for_all(deadline)
                return self._answers.pop(number)
            finally:
                del self._waiting[number]
                if not self._reading:
                    # One of the others has to read now.
                    for other in self._waiting.values():
                        other.notify()
                        break

    def _read_for_all(self, deadline: float | None) -> None:
        """Read, with the lock let go meanwhile, and wake those whose answers came: nobody else."""
        self._reading = True
        self._lock.release()
        try:
            self._read(deadline)
        finally:
            self._lock.acquire()
            self._reading = False
            for number, waiting in self._waiting.items():
                if number in self._answers or self.gone:
                    waiting.notify()

    def _read(self, deadline: float | None) -> None:
        """Read one piece of what the warden says, or come to the deadline."""
        if deadline is not None:
            waiting = select.poll()
            waiting.register(self._wire.fileno(), select.POLLIN)
            if not waiting.poll(min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT) * 1000):
                if time.monotonic() >= deadline:
                    raise Late
                return
        try:
            if not self._wire.fill():
                self.gone = "it closed the connection"
            while (found := self._wire.pop()) is not None:
                self._answers[found[0]["n"]] = found
        except (OSError, BrokenWireError) as error:
            self.gone = str(error)

    def _lost(self, reason: str) -> BoxFailed:
        self.gone = self.gone or reason
        return BoxFailed(f"the warden is gone, and all its boxes with it: {reason}")

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._wire.fileno()

    def close(self) -> None:
        """End the connection; the warden removes every container that was started on it."""
        self.gone = self.gone or "the connection was closed"
        for _, _, fds in self._answers.values():
            for fd in fds:
                os.close(fd)
        self._answers.clear()
        self._wire.close()


def _read(head: dict[str, Any], payload: bytes, fds: tuple[int, ...]) -> Found:
    """Return the value of an answer, and its output, from the file that came along as well."""
    parts = []
    for fd in fds:
        with os.fdopen(fd, "rb") as file:
            # Others read from the same description, and the warden writes to it.
            at = 0
            while part := os.pread(file.fileno(), 1 << 24, at):
                at += len(part)
                parts.append(part)
    if "error" in head:
        raise BoxFailed(head["error"])
    return head["value"], b"".join([*parts, payload])


def streams(frames: bytes) -> tuple[bytes, bytes]:
    """Return what was printed to stdout, and to stderr."""
    found = split(frames)
    return b"".join(data for stream, data in found if stream == 1), b"".join(data for s, data in found if s == 2)


def together(frames: bytes) -> bytes:
    """Return what was printed, in the order in which it came."""
    return b"".join(data for _, data in split(frames))
