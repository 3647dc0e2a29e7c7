"""pytest's side of the warden: start it, get boxes, enter one in a forked child, give it back.

One test, in the process that forks and in the forked child:

    box = warden.acquire(spec)          usually made already; see `Warden.prefetch`
    box.before_fork()                   our next child will be born in the box's pid namespace
    pid = os.fork()
    child:   box.enter()                cgroups, namespaces, ids; needs a process with one thread
             box.apply_limits()         ulimits, working directory, user
    parent:  box.after_fork_in_parent() our next child will not
             … box.kill(); waitpid(pid)
    released = box.release()
"""

from __future__ import annotations

import _socket
import sys
from contextlib import suppress

from pytest_nsbox.kernel import libc, namespaces, process, seccomp
from pytest_nsbox.kernel.line import be_patient
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.record import keyword_record, replace
from pytest_nsbox.policy.spec import DEFAULT
from pytest_nsbox.real import os
from pytest_nsbox.warden import messages as m
from pytest_nsbox.warden.handle import Box, Released
from pytest_nsbox.warden.late import find_late
from pytest_nsbox.warden.spawn import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TypeVar

    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.spawn import Spawned

    M = TypeVar("M")

__all__ = ["Box", "Released", "SessionConfig", "Warden"]

SILENCE = 10.0  # seconds
_CALLED_IN_TESTS = (("prctl", 5), ("setns", 2), ("unshare", 1))  # by every test's process, on its way into the box
_NO_ROOM = "this process has no room for the descriptors that the warden sent: Too many open files (raise ulimit -n)"


@keyword_record
class SessionConfig:
    """What the warden must know of the test session.

    tmpdir         where its own directory is made
    cgroup_parent  group below which boxes' groups are made, relative to each hierarchy's mount; None: our own group
    base_temp      pytest's base temporary directory, once it is known
    shared_paths   ini `sandbox_shared_paths`
    rw_paths       other paths that boxes write to (pytest's cache directory)
    rootdir        pytest's rootdir: artifacts are copied to sandbox-artifacts/ in it
    pool           how many boxes are kept ready
    volumes        directory of the named volumes that outlive sessions, if there is one
    """

    tmpdir: str = "/tmp"
    cgroup_parent: str | None = None
    base_temp: str | None = None
    shared_paths: tuple[str, ...] = ()
    rw_paths: tuple[str, ...] = ()
    rootdir: str = "/"
    pool: int = 2
    volumes: str = ""


class Warden:
    """The client's end."""

    def __init__(self, channel: m.Channel, pid: int, config: SessionConfig) -> None:
        self.pid = pid
        self._channel = channel
        self._config = config
        self._owner = os.getpid()
        self._number = 0
        self._answers: dict[int, tuple[m.Answer, tuple[int, ...]]] = {}
        # Requests for boxes that nobody has taken yet, oldest first: number of the request and what the box is of.
        self._pending: dict[int, tuple[Spec, tuple[object, ...]]] = {}
        self._dropped: set[int] = set()
        self._configured = False
        self._keyed: tuple[Spec | None, Spec] = (None, DEFAULT)
        self._stopped = False  # when we looked last
        self._closing = 0  # number of the request to end, once that was made
        self.gone = False  # killed, or it failed; every call fails from then on
        # Descriptors to write b"0" to in every child, before those of its box: kernel.cgroup_node.Session.open_screens.
        self.screens: tuple[int, ...] = ()
        # What tests are refused: by default, and with `seccomp="none"`. Where we have a terminal, to type into it.
        has_terminal = process.has_terminal_to_type_into()
        self.filter = seccomp.Filter(typing=has_terminal, keys=True)
        self.least_filter = seccomp.Filter(typing=has_terminal, keys=False)
        self._own_pid_namespace = namespaces.open_namespace("self", "pid")

    @classmethod
    def start(cls, config: SessionConfig, spawned: Spawned | None = None) -> Warden:
        """Start a warden and return at once; it gets ready while pytest goes on. OSError if it cannot be started.

        spawned  a process that was started already
        """
        if spawned is None or spawned.taken:
            spawned = spawn()
        spawned.taken = True
        # A test that the memory limit does not kill would wait for memory for ever.
        process.keep_oom_score()
        for name, arguments in _CALLED_IN_TESTS:
            libc.prepare(name, arguments)
        be_patient(spawned.sock, SILENCE)
        warden = cls(m.Channel(spawned.sock), spawned.pid, config)
        # It prepares its session while we do other things. If it died, the first box tells.
        with suppress(OSError):
            warden._configure()
        return warden

    def configure(self, config: SessionConfig) -> None:
        """Replace what `start` was told, before the next box; boxes made ahead are given back."""
        if config != self._config:
            self.forget()
            self._config = config
            self._configured = False

    def fileno(self) -> int:
        """Return the control socket's descriptor, which a forked child must close before all else; `Box.enter` does."""
        return self._channel.sock.fileno()

    def _key(self, spec: Spec) -> Spec:
        """What boxes of `spec` have in common; mostly asked for the same spec again and again."""
        if spec is not self._keyed[0]:
            self._keyed = spec, spec.box_key()
        return self._keyed[1]

    def prefetch(self, spec: Spec, most: int | None = None) -> None:
        """Have boxes of `spec` made ahead, up to the pool's size or `most`; return at once."""
        try:
            wanted = self._wanted(spec)
            while len(self._pending) < (self._config.pool if most is None else most):
                self._request(wanted)
        except (OSError, BoxFailed):
            # acquire() will find out, and tell.
            return

    def _shared(self) -> tuple[str, ...]:
        config = self._config
        return (*([config.base_temp] if config.base_temp else []), *config.rw_paths, *config.shared_paths)

    def is_ahead(self, spec: Spec) -> bool:
        """Say if a box of `spec` was asked for already and nobody has taken it."""
        try:
            return self._wanted(spec) in self._pending.values()
        except BoxFailed:
            return False

    def _wanted(self, spec: Spec) -> tuple[Spec, tuple[object, ...]]:
        """Return what the warden is told of a box: its spec, and its image now, if its root is one."""
        key = self._key(spec)
        if key.rootfs is None:
            return key, ()
        from pytest_nsbox.warden import roots

        return roots.resolve(key, self._config.rootdir)

    def _configure(self) -> None:
        if not self._configured:
            config = self._config
            path = tuple(entry for entry in map(str, sys.path) if os.path.isabs(entry))
            shared = self._shared()
            self._channel.send(
                m.Configure(config.tmpdir, config.cgroup_parent, shared, config.pool, config.volumes, path)
            )
            self._configured = True

    def _request(self, wanted: tuple[Spec, tuple[object, ...]]) -> int:
        self._configure()
        self._number += 1
        self._channel.send(m.Make(self._number, wanted[0].to_json(), wanted[1]))
        self._pending[self._number] = wanted
        return self._number

    def acquire(self, spec: Spec, *, late: bool = True) -> Box:
        """Return a box of `spec`, fresh and empty. Raises BoxFailed with the reason if none can be made.

        late  look for sockets and shared paths that are new since it was made
        """
        wanted = self._wanted(spec)
        number = next((number for number, pending in self._pending.items() if pending == wanted), None)
        try:
            if number is None:
                number = self._request(wanted)
            del self._pending[number]
            answer, fds = self._wait(number)
        except OSError as error:
            self._died(str(error))
        made = m.expect(answer, m.Made)
        if wanted[1]:
            spec = replace(wanted[0], timeout=spec.timeout, artifacts=spec.artifacts)
        box = Box(self, made, fds, spec)
        now = find_late(self._shared(), sockets=made.sockets) if late else {}
        if any(made.bound.get(path) != place for path, place in now.items()):
            try:
                self.ask(m.Refresh(self.next_number(), box.name), m.Done)
            except BoxFailed:
                box.release()
                raise
        if spec.net not in ("host", "none"):
            from pytest_nsbox.warden import joining

            joining.join(self, box)
        return box

    def forget(self) -> None:
        """Give back the boxes that were made ahead."""
        for number in list(self._pending):
            del self._pending[number]
            found = self._answers.pop(number, None)
            if found is None:
                self._dropped.add(number)
            else:
                self._drop(*found)

    def _drop(self, answer: m.Answer, fds: tuple[int, ...]) -> None:
        for fd in fds:
            os.close(fd)
        if isinstance(answer, m.Made):
            self.drop(answer.box)

    def drop(self, name: str) -> None:
        """Have a box ended that nobody will ask for again; return at once."""
        # If the warden is gone, so is the box.
        with suppress(OSError):
            self._channel.send(m.Drop(name))

    def ask(self, request: m.Request, kind: type[M]) -> M:
        """Send `request`, wait for its answer and return it; BoxFailed with what the warden says against it."""
        self.tell(request)
        return self.answer(request.number, kind)  # type: ignore[union-attr]  # every request that is answered has one

    def tell(self, request: m.Request) -> None:
        """Send `request`; `answer` waits for what comes back. Raises BoxFailed if the warden is gone."""
        try:
            self._channel.send(request)
        except OSError as error:
            self._died(str(error))

    def answer(self, number: int, kind: type[M]) -> M:
        """Wait for the answer to request `number` and return it, or raise BoxFailed with what the warden says against
        it.
        """
        try:
            answer, _ = self._wait(number)
        except OSError as error:
            self._died(str(error))
        return m.expect(answer, kind)

    def connect(self) -> _socket.socket:
        """Return a connection on which containers can be asked for, see engine.py. Raises BoxFailed."""
        number = self.next_number()
        self.tell(m.Connect(number))
        try:
            _, fds = self._wait(number)
        except OSError as error:
            self._died(str(error))
        if not fds:
            raise BoxFailed(_NO_ROOM)
        return _socket.socket(fileno=fds[0])

    def next_number(self) -> int:
        """Return a number for a request."""
        self._number += 1
        return self._number

    def _wait(self, number: int) -> tuple[m.Answer, tuple[int, ...]]:
        while (found := self._answers.pop(number, None)) is None:
            try:
                message, fds = self._channel.receive()
            except BlockingIOError:
                self._see_that_it_runs()
                continue
            except m.ProtocolError as error:
                self._died(str(error))
            self._stopped = False
            if isinstance(message, m.Made):
                message, fds = self._check(message, fds)
            if message.number in self._dropped:  # type: ignore[union-attr]  # answers have numbers
                self._dropped.discard(message.number)  # type: ignore[union-attr]
                self._drop(message, fds)  # type: ignore[arg-type]
            else:
                self._answers[message.number] = (message, fds)  # type: ignore[union-attr,assignment]
        if isinstance(found[0], m.Failed):
            raise BoxFailed(found[0].text)
        return found

    def _see_that_it_runs(self) -> None:
        """It has been silent for `SILENCE`. Whatever takes it so long, we wait; but not for one that stands still."""
        before, self._stopped = self._stopped, process.is_stopped(self.pid)
        if before and self._stopped:
            os.kill(self.pid, signal.SIGKILL)
            self._died("somebody stopped it (SIGSTOP), and it did not go on")

    def _check(self, made: m.Made, fds: tuple[int, ...]) -> tuple[m.Made | m.Failed, tuple[int, ...]]:
        """Return the message and the descriptors of the box, if they have all come, and keep those of the session."""
        if len(fds) != made.fds:
            if made.screens:
                self._died(_NO_ROOM)
            with suppress(OSError):
                self._channel.send(m.Drop(made.box))
            return m.Failed(made.number, _NO_ROOM), ()
        if made.screens:
            self.screens, fds = fds[-made.screens :], fds[: -made.screens]
        return made, fds

    def _died(self, reason: str) -> NoReturn:
        self.gone = True
        raise BoxFailed(f"the warden (process {self.pid}) is gone, and all its boxes with it: {reason}") from None

    def begin_close(self) -> None:
        """Have all that `close` does begun, and return at once. Only `close` may follow."""
        if self.pid >= 0 and os.getpid() == self._owner:
            with suppress(BoxFailed, OSError):
                self._begin_close()

    def _begin_close(self) -> None:
        if not self._closing:
            self._closing = self.next_number()
            self.forget()
            self.tell(m.Close(self._closing))

    def close(self, patience: float = 15.0) -> tuple[str, ...]:
        """End every box and the warden; return when nothing is left, with what could not be removed. A second call does
        nothing.
        """
        if self.pid < 0 or os.getpid() != self._owner:
            return ()
        problems: tuple[str, ...] = ()
        try:
            self._channel.sock.settimeout(patience)
            self._begin_close()
            problems = self.answer(self._closing, m.Closed).problems
        except (BoxFailed, OSError, m.ProtocolError) as error:
            problems = (str(error),)
            # What it leaves the next session sweeps.
            os.kill(self.pid, signal.SIGKILL)
        self.close_in_child()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.pid = -1
        return problems

    def close_in_child(self) -> None:
        """Close every descriptor of ours: in a forked child they would keep the warden alive, or open other boxes."""
        self._channel.close()
        for _, fds in self._answers.values():
            for fd in fds:
                os.close(fd)
        self._answers.clear()
        for fd in self.screens:
            os.close(fd)
        self.screens = ()
        if self._own_pid_namespace >= 0:
            os.close(self._own_pid_namespace)
            self._own_pid_namespace = -1

    def own_pid_namespace(self) -> int:
        """Return a descriptor of the pid namespace that pytest itself is in."""
        return self._own_pid_namespace
