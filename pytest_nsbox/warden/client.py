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

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.record import keyword_record, record
from pytest_nsbox.policy.users import find_user
from pytest_nsbox.real import os
from pytest_nsbox.warden import messages as m
from pytest_nsbox.warden import ulimits
from pytest_nsbox.warden.late import find_late

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TypeVar

    from pytest_nsbox.policy.spec import Spec

    M = TypeVar("M")

# What a terminal or its user sends to all of pytest.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_BOOT = "import sys; sys.path.append(sys.argv[1]); from pytest_nsbox.warden.server import main; main(int(sys.argv[2]))"


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
    """

    tmpdir: str = "/tmp"
    cgroup_parent: str | None = None
    base_temp: str | None = None
    shared_paths: tuple[str, ...] = ()
    rw_paths: tuple[str, ...] = ()
    rootdir: str = "/"
    pool: int = 2


@record
class Released:
    """What a box left.

    counters       {counter file: its text}, for policy.usage
    files_changed  how many paths of the root it added, changed or deleted
    artifacts      files copied out of it; `problems`: what could not be copied
    """

    counters: dict[str, str]
    files_changed: int
    artifacts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


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
        self._pending: dict[int, Spec] = {}
        self._dropped: set[int] = set()
        self._configured = False
        self.gone = False  # killed, or it failed; every call fails from then on
        self._own_pid_namespace = namespaces.open_namespace("self", "pid")

    @classmethod
    def start(cls, config: SessionConfig) -> Warden:
        """Start a warden and return at once; it gets ready while pytest goes on. OSError if it cannot be started."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        try:
            os.set_inheritable(theirs.fileno(), True)
            command = [sys.executable, "-I", "-S", "-c", _BOOT, package_parent, str(theirs.fileno())]
            null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
            # Ctrl-C is for pytest alone, from the warden's first moment on.
            pid = os.posix_spawn(
                sys.executable,
                command,
                {"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                file_actions=null,
                setsid=True,
                setsigmask=SIGNALS,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        warden = cls(m.Channel(ours), pid, config)
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

    def prefetch(self, spec: Spec) -> None:
        """Have boxes of `spec` made ahead, up to the pool's size; return at once."""
        key = spec.box_key()
        try:
            while len(self._pending) < self._config.pool:
                self._request(key)
        except OSError:
            # acquire() will find out, and tell.
            return

    def _shared(self) -> tuple[str, ...]:
        config = self._config
        return (*([config.base_temp] if config.base_temp else []), *config.rw_paths, *config.shared_paths)

    def is_ahead(self, spec: Spec) -> bool:
        """Say if a box of `spec` was asked for already and nobody has taken it."""
        return spec.box_key() in self._pending.values()

    def _configure(self) -> None:
        if not self._configured:
            config = self._config
            self._channel.send(m.Configure(config.tmpdir, config.cgroup_parent, self._shared(), config.pool))
            self._configured = True

    def _request(self, key: Spec) -> int:
        self._configure()
        self._number += 1
        self._channel.send(m.Make(self._number, key.to_json()))
        self._pending[self._number] = key
        return self._number

    def acquire(self, spec: Spec) -> Box:
        """Return a box of `spec`, fresh and empty. Raises BoxFailed with the reason if none can be made."""
        key = spec.box_key()
        number = next((number for number, pending in self._pending.items() if pending == key), None)
        try:
            if number is None:
                number = self._request(key)
            del self._pending[number]
            answer, fds = self._wait(number)
        except OSError as error:
            self._died(str(error))
        made = m.expect(answer, m.Made)
        box = Box(self, made, fds, spec)
        late = find_late(self._shared(), sockets=made.sockets)
        if any(made.bound.get(path) != place for path, place in late.items()):
            try:
                self.ask(m.Refresh(self.next_number(), box.name), m.Done)
            except BoxFailed:
                box.release()
                raise
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
            try:
                self._channel.send(m.Drop(answer.box))
            except OSError:
                return

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

    def next_number(self) -> int:
        """Return a number for a request."""
        self._number += 1
        return self._number

    def _wait(self, number: int) -> tuple[m.Answer, tuple[int, ...]]:
        while (found := self._answers.pop(number, None)) is None:
            try:
                message, fds = self._channel.receive()
            except m.ProtocolError as error:
                self._died(str(error))
            if message.number in self._dropped:  # type: ignore[union-attr]  # answers have numbers
                self._dropped.discard(message.number)  # type: ignore[union-attr]
                self._drop(message, fds)  # type: ignore[arg-type]
            else:
                self._answers[message.number] = (message, fds)  # type: ignore[union-attr,assignment]
        if isinstance(found[0], m.Failed):
            raise BoxFailed(found[0].text)
        return found

    def _died(self, reason: str) -> NoReturn:
        self.gone = True
        raise BoxFailed(f"the warden (process {self.pid}) is gone, and all its boxes with it: {reason}") from None

    def close(self, patience: float = 15.0) -> tuple[str, ...]:
        """End every box and the warden; return when nothing is left, with what could not be removed. A second call does
        nothing.
        """
        if self.pid < 0 or os.getpid() != self._owner:
            return ()
        problems: tuple[str, ...] = ()
        self._channel.sock.settimeout(patience)
        try:
            self.forget()
            problems = self.ask(m.Close(self.next_number()), m.Closed).problems
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
        if self._own_pid_namespace >= 0:
            os.close(self._own_pid_namespace)
            self._own_pid_namespace = -1

    def own_pid_namespace(self) -> int:
        """Return a descriptor of the pid namespace that pytest itself is in."""
        return self._own_pid_namespace


class Box:
    """A box that this process may fork a child into.

    name      unique in the session
    pidfd     of its init; `init_pid` on the host
    attach    descriptors to write b"0" to, from inside the child
    """

    def __init__(self, warden: Warden, made: m.Made, fds: tuple[int, ...], spec: Spec) -> None:
        self.name = made.box
        self.spec = spec
        self.init_pid = made.pid
        self.pidfd = fds[0]
        self.timens = fds[-1] if made.clock else None
        self.attach = fds[1:-1] if made.clock else fds[1:]
        self._namespaces = made.namespaces
        self._warden = warden
        self._cwd: str | None = None
        self._releasing: int | None = None

    def is_alive(self) -> bool:
        """Say if its init is."""
        return not process.has_ended(self.pidfd)

    def before_fork(self) -> None:
        """Make our next child be born in the box's pid namespace. No thread may be started until
        `after_fork_in_parent`.
        """
        namespaces.setns(self.pidfd, namespaces.NEWPID)

    def after_fork_in_parent(self) -> None:
        """Have our children in our own pid namespace again."""
        namespaces.setns(self._warden.own_pid_namespace(), namespaces.NEWPID)

    def enter(self) -> None:
        """In the forked child, while it has one thread: go into the box. Raises KernelError; then the child must end.

        Closes every descriptor of the warden's. Afterwards the process is root of the box, and its working directory
        the box's "/".
        """
        self._cwd = _working_directory()
        for fd in self.attach:
            try:
                os.write(fd, b"0")
            except OSError as error:
                raise KernelError("attach", f"cgroup of {self.name}", error.errno or 0) from None
        ulimits.raise_hard(self.spec)
        if self._namespaces & namespaces.NEWUSER:
            # As the host's root still, whose quota of keys is large.
            process.leave_session_keyring()
        namespaces.setns(self.pidfd, self._namespaces & ~namespaces.NEWPID)
        if self.timens is not None:
            namespaces.setns(self.timens, namespaces.NEWTIME)
        namespaces.unshare(namespaces.NEWCGROUP)
        if self._namespaces & namespaces.NEWUSER:
            process.become(0, 0)
            # Taken away by the change of ids; without it the test could not read its own /proc/self.
            process.set_dumpable(dumpable=True)
        self._close_fds()
        self._warden.close_in_child()

    def apply_limits(self) -> None:
        """In the child, in the box: ulimits, working directory, user. Raises KernelError or BoxFailed."""
        ulimits.set_all(self.spec)
        self._change_directory()
        if self.spec.user is not None:
            user = find_user(self.spec.user, _text_of("/etc/passwd"), _text_of("/etc/group"))
            process.become(user.uid, user.gid, user.groups)
            process.set_dumpable(dumpable=True)

    def _change_directory(self) -> None:
        path = self.spec.workdir or self._cwd
        if path is None:
            return
        try:
            os.chdir(path)
        except OSError as error:
            if self.spec.workdir is not None:
                raise KernelError("chdir", path, error.errno or 0) from None

    def kill(self) -> None:
        """Kill every process of the box, at once. Its child of ours must then be reaped, or the box cannot end.

        The box's mounts live on if there are artifacts to copy out of it.
        """
        if self.spec.artifacts:
            self._warden.ask(m.Kill(self._warden.next_number(), self.name), m.Done)
        else:
            process.kill(self.pidfd)

    def counters(self) -> dict[str, str]:
        """Return the counter files of the box's cgroups so far, for policy.usage."""
        return self._warden.ask(m.Read(self._warden.next_number(), self.name), m.Counters).texts

    def changes(self) -> list[tuple[str, str]]:
        """Return (kind, path) of what differs from the root that the box began with: A added, C changed, D deleted."""
        answer = self._warden.ask(m.Compare(self._warden.next_number(), self.name), m.Changes)
        return [(kind, path) for kind, path in answer.changes]

    def begin_release(self, artifacts_to: str = "") -> None:
        """Ask the warden for `release` without waiting for its answer; its work goes on meanwhile."""
        if self._releasing is None:
            number = self._warden.next_number()
            workdir = self.spec.workdir or _working_directory() or "/"
            globs = self.spec.artifacts if artifacts_to else ()
            request = m.Release(number, self.name, globs, artifacts_to, workdir)
            self._releasing = number
            try:
                self._warden.tell(request)
            finally:
                self._close_fds()

    def release(self, artifacts_to: str = "") -> Released:
        """Give the box back: kill what is left in it and return what it used.

        The box's last process ends only when its child of ours is reaped; that may be later.

        artifacts_to  the directory that copies of what the spec's `artifacts` match are put in, made if it is missing;
                      relative globs start at the spec's working directory, else at ours
        """
        self.begin_release(artifacts_to)
        assert self._releasing is not None
        answer = self._warden.answer(self._releasing, m.Released)
        return Released(answer.texts, answer.files_changed, answer.artifacts, answer.problems)

    def _close_fds(self) -> None:
        fds = (self.pidfd, *self.attach, *((self.timens,) if self.timens is not None else ()))
        self.attach, self.timens, self.pidfd = (), None, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        # Removed under us.
        return None


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
