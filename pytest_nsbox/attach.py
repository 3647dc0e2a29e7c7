"""What a command of `nsbox` shows of a box while that runs: its output as it comes, or a terminal of the box."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import termios
import threading
import tty
from typing import TYPE_CHECKING, Any

from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.warden.output import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_nsbox.warden.engine import Engine

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def show(printed: Iterable[tuple[int, bytes]]) -> None:
    """Write what a box printed to our own streams: (number of the stream, data), as `output.split` has it."""
    for stream, data in printed:
        target = sys.stdout.buffer if stream == 1 else sys.stderr.buffer
        target.write(data)
        target.flush()


def follow(engine: Engine, box: str) -> None:
    """Write what `box` printed and prints to our own streams, until it has ended."""
    at, rest = 0, b""
    while True:
        value, frames = engine.ask("follow", box=box, at=at)
        rest += frames
        whole = split(rest)
        show(whole)
        rest = rest[sum(5 + len(data) for _, data in whole) :]
        at = value["at"]
        if value["ended"]:
            return


def follow_with_signals(engine: Engine, box: str) -> None:
    """The same; signals that we get meanwhile go to the box's main program."""
    failures: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            follow(engine, box)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            failures.append(error)
        finally:
            done.set()

    def pass_on(number: int, _frame: Any) -> None:
        # The main thread does nothing but wait; the other one may well be asking something.
        with contextlib.suppress(BoxFailed):
            engine.tell("signal", box=box, signal=number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        threading.Thread(target=run, daemon=True).start()
        done.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for failure in failures:
        raise failure


def require_terminal() -> None:
    """Refuse `-t` where nobody could type."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BoxFailed("-t: our own standard input and output are no terminal (leave -t out)")


class Terminal:
    """A terminal of the box. `theirs` goes along with the order that starts a program."""

    def __init__(self) -> None:
        require_terminal()
        self._ours, self._theirs = socket.socketpair()
        self._master = -1

    @property
    def theirs(self) -> int:
        """Where the box's end of it is sent from."""
        return self._theirs.fileno()

    def serve(self) -> None:
        """Be the user's hands and eyes until the program has closed its terminal."""
        self._theirs.close()
        try:
            _, fds, _, _ = socket.recv_fds(self._ours, 1, 1)
        finally:
            self._ours.close()
        if not fds:
            return
        self._master = fds[0]
        try:
            self._copy_size()
            with self._size_followed(), _raw():
                self._copy()
        finally:
            os.close(self._master)

    def _copy(self) -> None:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._master, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                try:
                    data = os.read(fd, 1 << 16)
                except OSError:
                    # EIO: nobody has the other end any more.
                    data = b""
                if fd == 0 and not data:
                    poll.unregister(0)
                    os.write(self._master, b"\4")
                elif not data:
                    return
                else:
                    _write(self._master if fd == 0 else 1, data)

    def _copy_size(self, *_: object) -> None:
        size = array.array("H", (0, 0, 0, 0))
        with contextlib.suppress(OSError):
            fcntl.ioctl(0, termios.TIOCGWINSZ, size, True)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    @contextlib.contextmanager
    def _size_followed(self) -> Iterator[None]:
        before = signal.signal(signal.SIGWINCH, self._copy_size)
        try:
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    before = termios.tcgetattr(0)
    # What was typed already counts.
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
