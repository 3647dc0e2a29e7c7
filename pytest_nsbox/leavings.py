"""What programs in containers leave: results, read from the warden's answers; and what they are given to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_nsbox.fixtures import Change
from pytest_nsbox.policy import usage as usages
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it
from pytest_nsbox.policy.outcome import signal_name
from pytest_nsbox.policy.record import record
from pytest_nsbox.real import os
from pytest_nsbox.warden.engine import Engine, streams

if TYPE_CHECKING:
    from pytest_nsbox.policy.spec import Spec


@record
class Result:
    """What a program in a box left.

    returncode  as in `subprocess`: -9 for SIGKILL; 127 for a program that does not exist, 126 for one that cannot run
    stdout, stderr  text, or bytes under ``text=False``
    usage       as `Box.usage`; for `exec` it is the whole box's
    oom_killed  whether the box's memory limit killed any of its processes
    timed_out   whether ``timeout`` ended it
    changes     paths that it added, changed or deleted in the box's root; () for `exec`
    """

    returncode: int
    stdout: Any
    stderr: Any
    usage: dict[str, int | float]
    oom_killed: bool
    timed_out: bool
    changes: tuple[Change, ...]


class Input:
    """What a program is to read, as a descriptor in a tuple; () for nothing. A file: it can never block anybody."""

    def __init__(self, given: str | bytes | None) -> None:
        self._given = given
        self._fds: tuple[int, ...] = ()

    def __enter__(self) -> tuple[int, ...]:
        if self._given is None:
            return ()
        given: object = self._given
        if not isinstance(given, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"input={given!r:.60}: not a text (accepted: str or bytes)")
        rest = memoryview(given.encode() if isinstance(given, str) else given).cast("B")
        whole = os.memfd_create("nsbox-input", os.MFD_CLOEXEC)
        try:
            while rest:
                rest = rest[os.write(whole, rest) :]
            os.fchmod(whole, 0o444)
            self._fds = (os.open(f"/proc/self/fd/{whole}", os.O_RDONLY | os.O_CLOEXEC),)
        finally:
            os.close(whole)
        return self._fds

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)


def told_apart(engine: Engine, do: str, fds: tuple[int, ...], fields: dict[str, Any]) -> tuple[Any, bytes]:
    """Ask; a program that cannot be started is a result like any other, with Docker's status and the reason printed."""
    value, frames = engine.ask(do, fds, **fields)
    if "not_started" in value:
        text = value["not_started"].encode() + b"\n"
        frames += b"\2" + len(text).to_bytes(4, "big") + text
    return value, frames


def result(value: dict[str, Any], frames: bytes, spec: Spec, *, text: bool) -> Result:
    out, err = streams(frames)
    used = usage(value, spec)
    return Result(
        value["returncode"],
        decoded(out, text=text),
        decoded(err, text=text),
        used,
        bool(used.get("oom_kills")),
        value["timed_out"],
        tuple(Change(kind, path) for kind, path in value.get("changes", ())),
    )


def usage(value: dict[str, Any], spec: Spec) -> dict[str, int | float]:
    changes = value.get("changes")
    return usages.complete(
        usages.parse(value["counters"]),
        spec,
        wall_s=value["wall"],
        files_changed=len(changes) if changes is not None else None,
    )


def decoded(data: bytes, *, text: bool) -> Any:
    return data.decode("utf-8", "replace") if text else data


def raise_unless_zero(found: Result, argv: list[str], name: str) -> None:
    if found.returncode == 0 and not found.timed_out:
        return
    if found.timed_out:
        how = f"timed out after {found.usage['wall_s']:.1f} s"
    elif found.returncode < 0:
        how = f"killed by {signal_name(-found.returncode)}"
    else:
        how = f"exited with status {found.returncode}"
    parts = [f"{argv} in box {name}: {how}{' (OOM-killed)' if found.oom_killed else ''}"]
    for title, printed in (("stdout", found.stdout), ("stderr", found.stderr)):
        shown = printed if isinstance(printed, str) else printed.decode("utf-8", "replace")
        parts.append(f"--- {title}\n{shown.rstrip()}" if shown.strip() else f"--- {title}: nothing")
    raise BoxFailed("\n".join(parts))
