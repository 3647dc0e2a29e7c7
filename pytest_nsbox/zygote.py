"""A process that forks tests in pytest's place, as long as pytest's own does nothing for them but log that they passed.

What pytest's process writes to while it logs and counts, a fork would have to copy, although no test wants it; and
whoever forks is busy with that for half of the time that a quick test takes. So where tests follow each other quietly a
fork of pytest's process, the zygote, does nothing but fork::

    pytest                                    zygote                     the test's process
    ask(box, socket)  ----------------------> forks  ------------------> goes into its box, and waits for its turn
    answer()          <-------- pid, pidfd --
    status(pid)       <-----------> waits for it

It knows of pytest's process what was so when it was forked. `ahead` takes it out of service as soon as that process
does anything else, since tests must see that. It keeps no descriptor open then: what a fixture closes is closed.
"""

from __future__ import annotations

import _socket
import contextlib
import marshal
import select
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_nsbox.kernel import process
from pytest_nsbox.kernel.line import be_patient
from pytest_nsbox.kernel.rights import descriptors, rights, room
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.real import os

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LARGEST: Final = 1 << 18  # bytes: more than the kernel lets anybody send in one message
_LARGEST_ANSWER: Final = 1 << 14
_SILENCE: Final = 10.0  # seconds, after which it is looked if somebody stopped it
_LOOK_EVERY: Final = 20  # milliseconds, for children that have ended while nobody asks for another
_REMEMBERED: Final = 64  # statuses of children that were reaped; pytest asks for the last ones, if at all
_exit: Final = os._exit


class Forked(NamedTuple):
    """A test's process. ``pidfd`` is the reader's to close."""

    pid: int
    pidfd: int


class Zygote:
    """In pytest's process: the other end. One question at a time."""

    def __init__(self, pid: int, sock: _socket.socket, random_state: Any) -> None:
        self.pid = pid
        self.random_state = random_state  # of `random`, in every process that it forks
        self.asked = 0  # how often it was asked to fork
        self._sock = sock
        be_patient(sock, _SILENCE)

    def ask(self, number: int, nodeid: str, made: bytes, fds: Sequence[int]) -> None:
        """Have it fork for a test; `answer` must follow. OSError if it is gone.

        number  of the test among the session's items
        made    an encoded `messages.Made`
        fds     the test's end of its socket, then the box's
        """
        self.asked += 1
        self._tell("fork", number, nodeid, made, fds=fds)

    def answer(self) -> Forked:
        """Wait for the process that was asked for. Raises BoxFailed if there is none."""
        (pid, text), fds = self._hear()
        if pid == 0 or not fds:
            raise BoxFailed(text or "there is no room for a descriptor (raise ulimit -n)")
        return Forked(pid, fds[0])

    def status(self, pid: int) -> int:
        """Wait for a process of its to end; its wait status, 0 if nobody knows."""
        try:
            self._tell("status", pid)
            return int(self._hear()[0][0])
        except (BoxFailed, OSError):
            return 0

    def learn(self, pages: list[int]) -> None:
        """Tell it which pages a process that it had asked for that wrote to."""
        with contextlib.suppress(OSError):
            self._tell("pages", pages)

    def retire(self) -> None:
        """Return when it holds no descriptor of pytest's process any more. It forks nothing from then on."""
        with contextlib.suppress(BoxFailed, OSError):
            self._tell("retire")
            self._hear()

    def close(self) -> None:
        """Have it end when all its processes have; also, in a process that was forked, close what leads to it."""
        self._sock.close()

    def _tell(self, *message: Any, fds: Sequence[int] = ()) -> None:
        self._sock.sendmsg([marshal.dumps(message)], rights(fds))

    def _hear(self) -> tuple[Any, list[int]]:
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(_LARGEST_ANSWER, room(1))
                break
            except BlockingIOError:
                if process.is_stopped(self.pid):  # whatever else takes it so long, we wait
                    os.kill(self.pid, signal.SIGKILL)
            except OSError as error:
                raise BoxFailed(f"the process that forks tests is gone: {error}") from None
        if not data:
            raise BoxFailed("the process that forks tests is gone")
        return marshal.loads(data), descriptors(ancillary)


class Service:
    """The zygote's own work.

    fork   does so for what `Zygote.ask` was told; the pid, 0 in the child
    learn  is told what `Zygote.learn` was
    """

    def __init__(
        self,
        sock: _socket.socket,
        fork: Callable[[int, str, bytes, list[int]], int],
        learn: Callable[[list[int]], None],
    ) -> None:
        self._sock = sock
        self._fork = fork
        self._learn = learn
        self._children: set[int] = set()
        self._statuses: dict[int, int] = {}
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def run(self) -> bool:
        """Serve until pytest's process closes its end and all children have ended; True in a child, at once."""
        process.die_with_parent()
        while (request := self._next()) is not None:
            (kind, *values), fds = request
            if kind == "fork":
                if self._fork_for(*values, fds=fds) == 0:
                    return True
            elif kind == "status":
                self._reply((self._wait_for(values[0]),))
            elif kind == "pages":
                self._learn(values[0])
            elif kind == "retire":
                self._let_go()
                self._reply(())
        while self._children:
            self._wait_for(next(iter(self._children)))
        return False

    def _next(self) -> tuple[Any, list[int]] | None:
        while self._children and not self._poll.poll(_LOOK_EVERY):
            self._reap()
        data, ancillary, _, _ = self._sock.recvmsg(_LARGEST, room())
        return (marshal.loads(data), descriptors(ancillary)) if data else None

    def _reply(self, values: Sequence[Any], fds: Sequence[int] = ()) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            self._sock.sendmsg([marshal.dumps(tuple(values))], rights(fds))

    def _fork_for(self, number: int, nodeid: str, made: bytes, *, fds: list[int]) -> int:
        try:
            pid = self._fork(number, nodeid, made, fds)
        except (BoxFailed, KernelError, OSError) as error:
            self._reply((0, str(error)[:1000]))
            return -1
        if pid == 0:
            self._sock.close()
            return 0
        self._children.add(pid)
        pidfd = os.pidfd_open(pid)
        self._reply((pid, ""), [pidfd])
        os.close(pidfd)
        self._reap()
        return pid

    def _reap(self) -> None:
        """A box ends when its last process is reaped."""
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._note(pid, status)

    def _wait_for(self, pid: int) -> int:
        if pid in self._children:
            self._note(pid, os.waitpid(pid, 0)[1])
        return self._statuses.get(pid, 0)

    def _note(self, pid: int, status: int) -> None:
        self._children.discard(pid)
        self._statuses[pid] = status
        if len(self._statuses) > _REMEMBERED:
            del self._statuses[next(iter(self._statuses))]

    def _let_go(self) -> None:
        """Close every descriptor but the one that we are asked by."""
        process.close_all_but((self._sock.fileno(),))


def serve(settle_down: Callable[[], None], service: Service) -> None:
    """Be a zygote; return in the processes that it forks, and nowhere else."""
    try:
        settle_down()
        forked = service.run()
    except BaseException:  # noqa: BLE001 - pytest's process finds us gone, and forks itself
        _exit(1)
    if not forked:
        _exit(0)


def is_alone() -> bool:
    """Whether this process has no other thread, whose work a zygote would not see."""
    return len(os.listdir("/proc/self/task")) == 1
