"""Containers that a test starts: what the fixtures `nsbox` and `nsbox_session` return.

The warden makes and starts them; pytest's process, or the test's own in its box, only talks to it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pytest_nsbox import child, placement
from pytest_nsbox.container import STOP_PATIENCE, Box, Origin, arguments, environment
from pytest_nsbox.leavings import Input, Result, raise_unless_zero, result, told_apart
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it
from pytest_nsbox.policy.networks import is_word
from pytest_nsbox.policy.spec import Layer, Spec
from pytest_nsbox.real import os
from pytest_nsbox.volume import Volume
from pytest_nsbox.warden.engine import Engine, Late

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Mapping, Sequence

    from pytest_nsbox.network import Network
    from pytest_nsbox.policy.image import Image
    from pytest_nsbox.smallest import Smallest

    Connect = Callable[[], socket]
    Path = os.PathLike[str]

LEFT_PATIENCE = 1.0  # the same for what a test leaves behind


# Connections are asked for by one thread at a time; by process: a fork may happen while one is held.
_locks: dict[int, threading.Lock] = {}
_of_child: dict[int, Engine] = {}


class NsBox:
    """Starts containers. Each key of the ``sandbox`` marker is a keyword here as well."""

    def __init__(self, connect: Connect, rootdir: str) -> None:
        self._connect = connect
        self._rootdir = rootdir
        self._owner = os.getpid()
        self._engine: Engine | None = None
        self.boxes: list[Box] = []
        self.volumes: list[Volume] = []
        self.networks: list[Network] = []

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
        made, image = self.read_image(self.spec("nsbox.run", {**spec, "timeout": timeout}))
        fields = {**self.fields(arguments(argv, image), made, image, name), **joined}
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

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        name: str | None = None,
        publish: Mapping[int | str, int | str] | Sequence[str | int] | str | int | None = None,
        **spec: Any,
    ) -> Box:
        """Start a program in a container of its own and return at once. BoxFailed if it cannot be started.

        publish  ports of the box that answer on the host's 127.0.0.1: ``{80: 8080}``, a host port of 0 is any free one;
                 or as Docker writes it, ``"8080:80"``. Without ``net=`` the box gets a network of its own
        """
        joined = _joined(spec)
        if publish is not None:
            from pytest_nsbox.network import read_publish

            joined |= {"publish": read_publish(publish, spec, joined)}
        made, image = self.read_image(self.spec("nsbox.start", spec))
        given = arguments(argv, image)
        state, _ = self.engine.ask("start", **self.fields(given, made, image, name), **joined)
        box = Box(self, state, made, Origin(tuple(given), image))
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

    def commit(self, box: str, base: dict[str, Any], name: str | None, *, pause: bool) -> Image:
        """Keep what the box named `box` wrote as an image; `Box.commit` is for tests."""
        from pytest_nsbox.warden import roots

        if child.current is not None:
            return roots.told(child.current.ask(["commit", box, base, name, pause]))
        return roots.told(roots.commit(self.engine, box, base, name=name, pause=pause))

    def fields(self, argv: list[str], spec: Spec, image: Image | None, name: str | None) -> dict[str, Any]:
        """What the warden is told of a container."""
        if name is not None and not _is_name(name):
            raise ValueError(f"name={name!r}: not a name (accepted: letters, digits and _ . - after the first)")
        whole = argv if image is None else list(image.config.argv(argv))
        fields: dict[str, Any] = {
            "argv": whole,
            "env": environment(dict(spec.env)),
            "workdir": spec.workdir,
            "user": spec.user,
            "name": name,
            "spec": spec.to_json(),
        }
        return fields if image is None else {**fields, "image": image.for_box()}

    def read_image(self, spec: Spec) -> tuple[Spec, Image | None]:
        """Return `spec` with the config of its image applied, and the image, if its root is one."""
        if spec.rootfs is None:
            return spec, None
        image = self._image("find", spec.rootfs)
        return image.config.applied(spec), image

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

    def network(
        self,
        name: str | None = None,
        *,
        subnet: str | Sequence[str] | None = None,
        internal: bool = True,
        rate: str | int | None = None,
        delay: str | float | None = None,
        loss: str | float | None = None,
    ) -> Network:
        """Make a network for ``net=``, or find the one of that name. Its boxes reach each other by name and address.

        subnet    "10.7.0.0/24", an IPv6 network, or one of each; by default what nobody uses
        internal  False: with a way out for TCP and UDP, to what the host reaches
        rate      how much reaches each box at most: "10mbit", or bytes per second such as "1M"
        delay     of what goes to a box, one way: "50ms"; loss: the share that gets lost, "5%"

        One that was made here is removed at the end.
        """
        from pytest_nsbox.network import make

        found, made = make(self, name, subnet=subnet, internal=internal, rate=rate, delay=delay, loss=loss)
        if made:
            self.networks.append(found)
        return found

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
                numbers = [engine.tell("remove_volume", name=volume.name) for volume in self.volumes]
                numbers += [engine.tell("network", what="remove", name=network.name) for network in self.networks]
                for number in numbers:
                    _forgive(engine, number)
        finally:
            placement.OWN_SOCKETS.discard(str(engine.fileno()))
            engine.close()


def _joined(spec: dict[str, Any]) -> dict[str, Any]:
    """Take ``net=other_box`` out of `spec`, or write a network's name there; return what tells the warden."""
    net = spec.get("net")
    if isinstance(net, Box):
        return {"joined": spec.pop("net").name}
    if net is not None and not isinstance(net, (str, bool)):
        spec["net"] = getattr(net, "name", net)
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


def _is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= 64 and is_word(name)
