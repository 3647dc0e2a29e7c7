"""A container that a test started: what the fixtures `nsbox` and `nsbox_session` return for it."""

from __future__ import annotations

import operator
import signal as signals
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from pytest_nsbox.fixtures import Change
from pytest_nsbox.leavings import Input, Result, decoded, raise_unless_zero, result, told_apart, usage
from pytest_nsbox.policy.errors import BadValueError, BoxFailed
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it
from pytest_nsbox.policy.image import DEFAULT_PATH, ImageConfig
from pytest_nsbox.policy.record import record
from pytest_nsbox.policy.units import parse_patience
from pytest_nsbox.real import os
from pytest_nsbox.warden.engine import Late, together

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from pytest_nsbox.nsbox import NsBox
    from pytest_nsbox.policy.image import Image
    from pytest_nsbox.policy.spec import Spec

    Path = os.PathLike[str]
STOP_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL, as Docker's
_ARGUMENTS = "a list such as ['sh', '-c', 'echo hello']"


@record
class Origin:
    """What a box was started from: the arguments that it was given, and its image if its root is one."""

    argv: tuple[str, ...] = ()
    image: Image | None = None

    def base(self, spec: Spec) -> dict[str, Any]:
        """What `commit` must know, as plain values."""
        config = (self.image.config if self.image is not None else ImageConfig()).committed(self.argv, spec)
        found: dict[str, Any] = {"config": config.shown()}
        if self.image is not None:
            found.update({"id": self.image.id} if self.image.id else {"directory": self.image.layers[0]})
        return found

    def stop_signal(self) -> dict[str, Any]:
        """The signal that asks it to stop, if it is not SIGTERM."""
        name = self.image.config.stop_signal if self.image is not None else ""
        if not name:
            return {}
        try:
            return {"signal": int(name) if name.isdigit() else signal_named(name)}
        except KeyError:
            raise BoxFailed(f"the image's config has StopSignal {name!r}: the name of a signal is expected") from None


class Box:
    """A container that runs, or has run. In a ``with`` statement it is stopped and removed at the end."""

    def __init__(self, boxes: NsBox, state: dict[str, Any], spec: Spec, origin: Origin) -> None:
        self._boxes = boxes
        self._name: str = state["name"]
        self._pid: int = state["pid"]
        self._state = state
        self._left: dict[str, Any] | None = None  # of one that was removed
        self.spec = spec
        self._origin = origin

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
    def ports(self) -> dict[int | str, int]:
        """Published ports: ``{box port: host port}``, with ``"53/udp"`` for a port of UDP's."""
        found = self._state.get("ports", {}).items()
        return {port if port.endswith("/udp") else int(port.partition("/")[0]): host for port, host in found}

    # --- what happens to it

    def wait(self, timeout: float | str | None = None) -> int:
        """Wait until its main program has ended and return its `returncode`; TimeoutError after ``timeout``.

        timeout  seconds, or a text such as "30s"
        """
        if self._left is None:
            engine = self._boxes.engine
            seconds = _seconds("Box.wait", timeout)
            try:
                self._state, _ = engine.answer(engine.tell("wait", box=self._name), seconds)
            except Late:
                raise TimeoutError(f"the box {self._name!r} still runs after {seconds:g} s") from None
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
        timeout: float | str | None = None,
        check: bool = False,
        text: bool = True,
    ) -> Result:
        """Run one more program in the box and wait for it.

        env, user, workdir  as the keys of a spec; what is not given is as for the box's main program
        timeout             seconds until it is killed; the box runs on
        """
        own = {"user": user, "workdir": workdir, "env": env}
        spec = self._boxes.spec("Box.exec", {key: value for key, value in own.items() if value is not None})
        fields = {
            "argv": (whole := arguments(argv)),
            "env": environment({**dict(self.spec.env), **dict(spec.env)}),
            "user": spec.user or self.spec.user,
            "workdir": spec.workdir or self.spec.workdir,
            "timeout": _seconds("Box.exec", timeout),
        }
        value, frames = self._ask_with_input(input, fields)
        found = result(value, frames, self.spec, text=text)
        if check:
            raise_unless_zero(found, whole, self._name)
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
        self._ask("signal", signal=_number_of(sig))

    def stop(self, timeout: float | str | None = STOP_PATIENCE) -> int:
        """SIGTERM (or the image's StopSignal), after ``timeout`` SIGKILL; return the `returncode`.

        One that has ended is no error.

        timeout  seconds, or a text such as "30s"; None: it is never killed
        """
        if self._left is None:
            seconds = _seconds("Box.stop", timeout)
            self._state = self._ask("stop", seconds=seconds, **self._origin.stop_signal())
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

    def commit(self, image: str | None = None, *, pause: bool = True) -> Image:
        """Keep what it wrote to its root as a layer on its image, under the name ``image`` if one is given; return the
        new image. The box goes on.

        pause  let none of its processes run meanwhile

        What is in volumes, tmpfs, /dev, and in the box's own /etc/hosts, /etc/hostname and /etc/resolv.conf is no part
        of it. The config is the image's with what the box was started with: Cmd, Env, User and WorkingDir. From a box
        with the host's root it is an image of the changes to that alone.
        """
        if self._left is not None:
            raise BoxFailed(f"the box {self._name!r} was removed")
        return self._boxes.commit(self._name, self._origin.base(self.spec), image, pause=pause)

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


def signal_named(name: str) -> signals.Signals:
    """The signal that "HUP", "hup" or "SIGHUP" names; KeyError if there is none."""
    return signals.Signals["SIG" + name.upper().removeprefix("SIG")]


def _number_of(sig: object) -> int:
    try:
        number = int(signal_named(sig) if isinstance(sig, str) else operator.index(sig))  # type: ignore[arg-type]
    except (KeyError, TypeError):
        number = 0
    if not 0 < number < signals.NSIG:
        accepted = f"a number from 1 to {signals.NSIG - 1}, or a name such as 'HUP'"
        raise ValueError(f"Box.signal: sig={sig!r}: not a signal (accepted: {accepted})")
    return number


def _seconds(place: str, timeout: object) -> float | None:
    if timeout is None:
        return None
    try:
        return parse_patience(timeout)
    except BadValueError as error:
        raise ValueError(f"{place}: timeout={timeout!r:.60}: {error}") from None


def arguments(argv: Sequence[str | Path], image: Image | None = None) -> list[str]:
    """The arguments of a program as texts; nothing at all only where an image may have a command."""
    least = 1 if image is None else 0
    if isinstance(argv, (str, bytes, dict)) or not isinstance(argv, Iterable):
        raise TypeError(f"argv={argv!r}: not a list (accepted: {_ARGUMENTS})")
    given: list[object] = list(argv)
    found = [os.fsdecode(part) for part in given if isinstance(part, (str, os.PathLike))]
    if len(found) < max(least, len(given)) or any("\0" in part for part in found):
        raise TypeError(f"argv={argv!r}: not a list of texts (accepted: {_ARGUMENTS})")
    return found


def environment(given: Mapping[str, str | None]) -> dict[str, str]:
    """The whole environment of a program: as in Docker nothing is inherited, but the way to the host's programs."""
    found = {"PATH": os.environ.get("PATH", DEFAULT_PATH), **given}
    return {name: value for name, value in found.items() if value is not None}
