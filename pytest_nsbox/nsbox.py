"""Containers that a test starts: what the fixtures `nsbox` and `nsbox_session` return.

The warden makes and starts them; pytest's process, or the test's own in its box, only talks to it.
"""

from __future__ import annotations

import signal as signals
import threading
from typing import TYPE_CHECKING, Any, Literal, overload

from pytest_nsbox import child, placement
from pytest_nsbox.fixtures import Change
from pytest_nsbox.leavings import Input, Result, decoded, raise_unless_zero, result, told_apart, usage
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.spec import Layer, Spec
from pytest_nsbox.real import os
from pytest_nsbox.volume import Volume
from pytest_nsbox.warden.engine import Engine, Late, together

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from pytest_nsbox.policy.image import Image
    from pytest_nsbox.smallest import Smallest

    Connect = Callable[[], socket]
    Path = os.PathLike[str]

STOP_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL, as Docker's
LEFT_PATIENCE = 1.0  # the same for what a test leaves behind
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# Connections are asked for by one thread at a time; by process: a fork may happen while one is held.
_locks: dict[int, threading.Lock] = {}
_of_child: dict[int, Engine] = {}


class Box:
    """A container that runs, or has run. In a ``with`` statement it is stopped and removed at the end."""

    def __init__(self, boxes: NsBox, state: dict[str, Any], spec: Spec) -> None:
        self._boxes = boxes
        self._name: str = state["name"]
        self._pid: int = state["pid"]
        self._state = state
        self._left: dict[str, Any] | None = None  # of one that was removed
        self.spec = spec

    def __repr__(self) -> str:
        return f"<Box {self._name} {self.status}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._left is None:
            self.stop()
            self._remove()

    # --- what it is

    @property
    def name(self) -> str:
        """Its name, unique in the session."""
        return self._name

    @property
    def pid(self) -> int:
        """The process id of its main program, as the host numbers it; 0 when it has ended."""
        return self._pid if self.status in ("running", "paused") else 0

    @property
    def status(self) -> str:
        """What it does now: created, running, paused or exited."""
        status: str = self._read_state()["status"]
        return status

    @property
    def returncode(self) -> int | None:
        """The exit status of its main program as `subprocess` gives it; None while it runs."""
        code: int | None = self._read_state()["returncode"]
        return code

    @property
    def ip(self) -> str | None:
        """Its address in its network; None without one."""
        return self._state.get("ip")

    @property
    def ports(self) -> dict[int, int]:
        """Published ports: ``{box port: host port}``."""
        return {int(port): host for port, host in self._state.get("ports", {}).items()}

    # --- what happens to it

    def wait(self, timeout: float | None = None) -> int:
        """Wait until its main program has ended and return its `returncode`; TimeoutError after ``timeout`` seconds."""
        if self._left is None:
            engine = self._boxes.engine
            try:
                self._state, _ = engine.answer(engine.tell("wait", box=self._name), timeout)
            except Late:
                raise TimeoutError(f"the box {self._name!r} still runs after {timeout:g} s") from None
        code: int = self._state["returncode"]
        return code

    def exec(  # noqa: PLR0913 - subprocess.run's keywords
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str | None] | None = None,
        user: str | int | None = None,
        workdir: str | None = None,
        input: str | bytes | None = None,  # noqa: A002 - subprocess' name
        timeout: float | None = None,
        check: bool = False,
        text: bool = True,
    ) -> Result:
        """Run one more program in the box and wait for it.

        env, user, workdir  as the keys of a spec; what is not given is as for the box's main program
        timeout             seconds until it is killed; the box runs on
        """
        spec = self._boxes.spec("Box.exec", {"user": user} if user is not None else {})
        fields = {
            "argv": (arguments := _arguments(argv)),
            "env": _environment({**dict(self.spec.env), **(env or {})}),
            "user": spec.user or self.spec.user,
            "workdir": workdir or self.spec.workdir,
            "timeout": timeout,
        }
        value, frames = self._ask_with_input(input, fields)
        found = result(value, frames, self.spec, text=text)
        if check:
            raise_unless_zero(found, arguments, self._name)
        return found

    def _ask_with_input(self, given: str | bytes | None, fields: dict[str, Any]) -> tuple[Any, bytes]:
        with Input(given) as fds:
            return told_apart(self._boxes.engine, "exec", fds, {**fields, "box": self._name})

    @overload
    def logs(self) -> str: ...
    @overload
    def logs(self, *, text: Literal[False]) -> bytes: ...
    def logs(self, *, text: bool = True) -> str | bytes:
        """What its main program and the children of that printed so far, both streams in the order in which it came."""
        frames = self._left["frames"] if self._left is not None else self._ask("logs", with_output=True)
        found: str | bytes = decoded(together(frames), text=text)
        return found

    def signal(self, sig: int | str) -> None:
        """Send a signal to its main program: a number or a name such as "HUP"."""
        number = signals.Signals["SIG" + sig.upper().removeprefix("SIG")] if isinstance(sig, str) else sig
        self._ask("signal", signal=int(number))

    def stop(self, timeout: float = STOP_PATIENCE) -> int:
        """SIGTERM, after ``timeout`` seconds SIGKILL; return the `returncode`. One that has ended is no error."""
        if self._left is None:
            self._state = self._ask("stop", seconds=timeout)
        code: int = self._state["returncode"]
        return code

    def kill(self) -> int:
        """Kill every process of it; return the `returncode`. One that has ended is no error."""
        if self._left is None:
            self._state = self._ask("kill")
        code: int = self._state["returncode"]
        return code

    def pause(self) -> None:
        """Freeze every process of it."""
        self._ask("pause")

    def resume(self) -> None:
        """Let them go on."""
        self._ask("resume")

    # --- what it did

    def usage(self) -> dict[str, int | float]:
        """What it used so far: the report properties' names less ``sandbox.``; seconds and bytes."""
        return usage(self._read_result(), self.spec)

    def changes(self) -> list[Change]:
        """Paths added, changed and deleted in its root so far, sorted by path."""
        return [Change(kind, path) for kind, path in self._read_result()["changes"]]

    def inspect(self) -> dict[str, Any]:
        """Id, Name, State, ExitCode, Pid, Args, Env, Namespaces, Mounts, Cgroup, Networks, Limits and Image."""
        return dict(self._left["inspect"] if self._left is not None else self._ask("inspect"))

    # --- how that is asked

    def _ask(self, do: str, *, with_output: bool = False, **fields: Any) -> Any:
        if self._left is not None:
            raise BoxFailed(f"the box {self._name!r} was removed")
        value, frames = self._boxes.engine.ask(do, box=self._name, **fields)
        return frames if with_output else value

    def _read_state(self) -> dict[str, Any]:
        if self._state["status"] != "exited" and self._left is None:
            self._state = {**self._state, **self._ask("state")}
        return self._state

    def _read_result(self) -> dict[str, Any]:
        found: dict[str, Any] = self._left["result"] if self._left is not None else self._ask("result")
        return found

    def _remove(self) -> None:
        """End it and free its name; what it left is kept here."""
        if self._left is not None:
            return
        inspected = self._ask("inspect")
        result, frames = self._boxes.engine.ask("remove", box=self._name)
        self._state = {**self._state, **result}
        self._left = {"inspect": inspected, "result": result, "frames": frames}


class NsBox:
    """Starts containers. Each key of the ``sandbox`` marker is a keyword here as well."""

    def __init__(self, connect: Connect, rootdir: str) -> None:
        self._connect = connect
        self._rootdir = rootdir
        self._owner = os.getpid()
        self._engine: Engine | None = None
        self.boxes: list[Box] = []
        self.volumes: list[Volume] = []

    @property
    def engine(self) -> Engine:
        """The connection of this process: a test in a box has one of its own, also to boxes that pytest started."""
        with _locks.setdefault(os.getpid(), threading.Lock()):
            if os.getpid() != self._owner and child.current is not None:
                return _engine_of_child(child.current)
            if self._engine is None or self._engine.gone:
                sock = self._connect()
                placement.OWN_SOCKETS.add(str(sock.fileno()))
                self._engine = Engine(sock)
            return self._engine

    def connect(self) -> None:
        """Connect to the warden, as the first call would."""
        self.engine  # noqa: B018 - made when it is looked at

    def spec(self, place: str, values: Mapping[str, Any]) -> Spec:
        """The spec of keywords; SpecProblems (a ValueError) with all that is wrong in them."""
        return Spec.build([Layer(dict(values), place)], rootdir=self._rootdir)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        input: str | bytes | None = None,  # noqa: A002 - subprocess' name
        timeout: float | str | None = None,
        check: bool = False,
        text: bool = True,
        name: str | None = None,
        **spec: Any,
    ) -> Result:
        """Run a program in a container of its own, wait for it, and remove the container.

        input    what it reads from its standard input; nothing by default
        timeout  until it is killed: seconds, or a text such as "30s"
        check    raise BoxFailed, which shows everything, unless it ends with status 0
        text     stdout and stderr as text (UTF-8), else as bytes
        """
        joined = _joined(spec)
        made = self.spec("nsbox.run", {**spec, "timeout": timeout})
        fields = {**self._fields(argv, made, name), **joined}
        with Input(input) as fds:
            value, frames = told_apart(self.engine, "start", fds, {**fields, "run": True})
        found = result(value, frames, made, text=text)
        if check:
            raise_unless_zero(found, fields["argv"], value.get("name", name))
        return found

    def smallest(
        self,
        work: Sequence[str | Path] | Callable[[str | float], object],
        key: str,
        low: str | float,
        high: str | float,
        *,
        precision: str | float | None = None,
        **spec: Any,
    ) -> Smallest:
        """Find by bisection the smallest limit ``key``, of ``low`` to ``high``, under which ``work`` still succeeds.

        work       arguments of a program, which is run in a container each time and succeeds with status 0 and no OOM
                   kill; or a callable, which is given the limit and fails by returning False or by an AssertionError,
                   SandboxError, BoxFailed, OSError or MemoryError
        key        mem, disk, pids, cpu or timeout
        precision  how near the answer comes; 1 MiB, one process, 0.05 CPUs or 0.1 s by default

        BoxFailed if not even ``high`` is enough.
        """
        from pytest_nsbox.smallest import find

        return find(self, work, key, (low, high), precision, spec)

    def start(self, argv: Sequence[str | Path], *, name: str | None = None, **spec: Any) -> Box:
        """Start a program in a container of its own and return at once. BoxFailed if it cannot be started."""
        joined = _joined(spec)
        made = self.spec("nsbox.start", spec)
        state, _ = self.engine.ask("start", **self._fields(argv, made, name), **joined)
        box = Box(self, state, made)
        self.boxes.append(box)
        return box

    def image(self, path: str | Path, name: str | None = None) -> Image:
        """Import a directory, a tar, an archive of docker save or an OCI layout into the user's store, under ``name``.

        Its ``id`` or names go into ``rootfs=``. Relative paths start at pytest's rootdir.
        """
        return self._image("add", os.fspath(path), name)

    def _image(self, do: str, wanted: str, name: str | None = None) -> Image:
        from pytest_nsbox.warden import roots

        if child.current is not None:
            return roots.told(child.current.ask([do, self._rootdir, wanted, name]))
        return roots.told(roots.tell(do, self._rootdir, wanted, name))

    def _fields(self, argv: Sequence[str | Path], spec: Spec, name: str | None) -> dict[str, Any]:
        if name is not None and not _is_name(name):
            raise ValueError(f"name={name!r}: not a name (accepted: letters, digits and _ . - after the first)")
        if spec.rootfs is None:
            return self._own(_arguments(argv), spec, name)
        image = self._image("find", spec.rootfs)
        whole = image.config.argv(_arguments(argv, least=0))
        return {**self._own(list(whole), image.config.applied(spec), name), "image": image.for_box()}

    def _own(self, argv: list[str], spec: Spec, name: str | None) -> dict[str, Any]:
        return {
            "argv": argv,
            "env": _environment(dict(spec.env)),
            "workdir": spec.workdir,
            "user": spec.user,
            "name": name,
            "spec": spec.to_json(),
        }

    def volume(self, name: str) -> Volume:
        """Make a volume for ``volumes=["NAME:DST"]``, or find the one of that name. One that was made here is removed
        at the end.
        """
        if not _is_name(name):
            raise ValueError(f"volume {name!r}: not a name (accepted: letters, digits and _ . - after the first)")
        made, _ = self.engine.ask("volume", name=name)
        volume = Volume(self, name)
        if made:
            self.volumes.append(volume)
        return volume

    # --- the end

    def left(self) -> list[Box]:
        """Boxes that were started here and not removed."""
        return [box for box in self.boxes if box._left is None]

    def close(self) -> None:
        """Stop what runs, remove everything."""
        if self._engine is None or os.getpid() != self._owner:
            return
        engine, self._engine = self._engine, None
        try:
            if not engine.gone:
                numbers = [engine.tell("stop", box=box.name, seconds=LEFT_PATIENCE) for box in self.left()]
                for number in numbers:
                    _forgive(engine, number)
                for number in [engine.tell("remove", box=box.name) for box in self.left()]:
                    _forgive(engine, number)
                for number in [engine.tell("remove_volume", name=volume.name) for volume in self.volumes]:
                    _forgive(engine, number)
        finally:
            placement.OWN_SOCKETS.discard(str(engine.fileno()))
            engine.close()


def _joined(spec: dict[str, Any]) -> dict[str, Any]:
    """Take ``net=other_box`` out of `spec`; return what tells the warden."""
    if isinstance(spec.get("net"), Box):
        return {"joined": spec.pop("net").name}
    return {}


def _forgive(engine: Engine, number: int) -> None:
    try:
        engine.answer(number, STOP_PATIENCE)
    except (BoxFailed, Late):
        # Gone already, or it cannot go now: the warden sees to it, and tells at the end of the session.
        return


def _engine_of_child(found: child.Child) -> Engine:
    pid = os.getpid()
    if pid not in _of_child:
        _of_child.clear()
        _of_child[pid] = Engine(found.connect())
    return _of_child[pid]


def _arguments(argv: Sequence[str | Path], least: int = 1) -> list[str]:
    if isinstance(argv, (str, bytes)):
        raise TypeError(f"argv={argv!r}: not a list (accepted: a list such as ['sh', '-c', 'echo hello'])")
    found = [os.fspath(part) for part in argv]
    if len(found) < least or any("\0" in part for part in found):
        raise TypeError(f"argv={argv!r}: not a list of texts (accepted: a list such as ['sh', '-c', 'echo hello'])")
    return found


def _environment(given: Mapping[str, str | None]) -> dict[str, str]:
    """The whole environment of a program: as in Docker nothing is inherited, but the way to the host's programs."""
    found = {"PATH": os.environ.get("PATH", _PATH), **given}
    return {name: value for name, value in found.items() if value is not None}


def _is_name(name: object) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not name[0].isalnum():
        return False
    return all(char.isascii() and (char.isalnum() or char in "_.-") for char in name)
